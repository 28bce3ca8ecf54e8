"""Laws that every monitor obeys, and what it refuses."""

import dataclasses
import math
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewarden.monitors import MONITORS
from rewarden.monitors.cluster_separation import ClusterSeparation
from rewarden.monitors.mahalanobis import MahalanobisOutliers
from rewarden.monitors.monitor import Monitor, Rollout, Signal, State, latents_of

SMALL: list[Monitor] = [
    ClusterSeparation(),
    ClusterSeparation(eps=0.5, noise_cluster=False),
    MahalanobisOutliers(min_held_out=100),
    MahalanobisOutliers(p_values="chi-squared", covariance="empirical"),
]
every_monitor = pytest.mark.parametrize("monitor", SMALL, ids=repr)


def rollout(latent: Tensor | None, *, step: int = 1, prompt: Tensor | None = None, rows: int = 40) -> Rollout:
    zeros = torch.zeros(rows if latent is None else len(latent))
    return Rollout(step, zeros, zeros, zeros, latent=latent, prompt=prompt)


def normal(rows: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def started(monitor: Monitor) -> State:
    return monitor.start(rollout(normal(240, 0), step=0))


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_every_monitor_is_in_the_laws_and_frozen() -> None:
    assert {type(monitor) for monitor in SMALL} == set(MONITORS.values())
    assert all(MONITORS[monitor.name] is type(monitor) for monitor in SMALL)
    for monitor in SMALL:
        assert monitor.needs == {"latent"}
        with pytest.raises(dataclasses.FrozenInstanceError):
            monitor.name = "other"  # type: ignore[misc]


def test_what_monitors_may_need_are_the_fields_that_may_be_missing() -> None:
    hints = get_type_hints(Rollout)
    optional = {name for name, hint in hints.items() if type(None) in get_args(hint)}
    assert set(get_args(Signal)) == optional - {"prompt"}


@every_monitor
def test_before_the_first_update_there_is_nothing_to_say(monitor: Monitor) -> None:
    assert monitor.report(started(monitor)) == ({}, None)


@every_monitor
def test_values_are_finite_numbers_and_clean_completions_raise_no_alarm(monitor: Monitor) -> None:
    state = started(monitor)
    for step in range(1, 6):
        state = monitor.update(state, rollout(normal(40, step), step=step))
        values, alarm = monitor.report(state)
        assert values and all(isinstance(value, float) and math.isfinite(value) for value in values.values())
        assert alarm is None or monitor == SMALL[3]  # nominal p-values promise nothing


@every_monitor
def test_an_update_leaves_the_state_and_the_rollout_alone(monitor: Monitor) -> None:
    state, batch = started(monitor), rollout(normal(40, 1), prompt=torch.arange(40) // 4)
    before = {key: value.clone() for key, value in state.items()}
    assert batch.latent is not None and batch.prompt is not None
    latent, prompt = batch.latent.clone(), batch.prompt.clone()
    after = monitor.update(state, batch)
    monitor.report(after)
    assert same(state, before) and not same(after, before)
    assert torch.equal(batch.latent, latent) and torch.equal(batch.prompt, prompt)
    assert same(monitor.update(state, batch), after)  # and once more gives the same


@every_monitor
def test_a_state_does_not_share_memory_with_what_it_came_from(monitor: Monitor) -> None:
    latent = normal(240, 0).double()
    state = monitor.start(rollout(latent, step=0))
    kept = {key: value.clone() for key, value in state.items()}
    latent.zero_()
    assert same(state, kept)


@every_monitor
def test_a_stored_state_goes_on_to_the_same_reports(monitor: Monitor, tmp_path: Path) -> None:
    state, resumed = started(monitor), started(monitor)
    for step in range(1, 8):
        batch = rollout(
            normal(40 if step < 5 else 24, step), step=step, prompt=torch.arange(40 if step < 5 else 24) // 4
        )
        state = monitor.update(state, batch)
        resumed = monitor.update(resumed, batch)
        save_file(resumed, tmp_path / "state.safetensors")
        resumed = load_file(tmp_path / "state.safetensors")
        assert same(state, resumed)
        assert monitor.report(state) == monitor.report(resumed)


@every_monitor
def test_the_order_of_the_completions_does_not_matter(monitor: Monitor) -> None:
    state, latent, prompt = started(monitor), normal(40, 1), torch.arange(40) // 4
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    reports = [
        monitor.report(monitor.update(state, rollout(latent[rows], prompt=prompt[rows])))
        for rows in (torch.arange(40), order)
    ]
    assert reports[0].values == pytest.approx(reports[1].values)


@every_monitor
def test_only_latents_are_read(monitor: Monitor) -> None:
    state, latent = started(monitor), normal(40, 1)
    noise = torch.full((40,), math.nan)
    batch = Rollout(7, noise, noise, noise, latent=latent, uncertainty=noise)
    assert same(monitor.update(state, batch), monitor.update(state, rollout(latent)))


@every_monitor
def test_without_latents_the_methods_that_have_them_are_named(monitor: Monitor) -> None:
    with pytest.raises(
        ValueError, match=rf"'{monitor.name}' looks at latents.*has none; train info-bottleneck.*ensemble"
    ):
        monitor.start(rollout(None))
    with pytest.raises(ValueError, match=r"train info-bottleneck"):
        monitor.update(started(monitor), rollout(None))


@every_monitor
def test_empty_and_unreadable_batches_are_refused_with_their_step(monitor: Monitor) -> None:
    state = started(monitor)
    with pytest.raises(ValueError, match=r"latents of shape \(0, 6\) at step 3.*leave steps without completions out"):
        monitor.update(state, rollout(torch.zeros(0, 6), step=3))
    with pytest.raises(ValueError, match=r"width 5 at step 1 and 6 for the reference.*same reward model"):
        monitor.update(state, rollout(normal(40, 1, width=5)))
    for value in (math.nan, math.inf):
        latent = normal(40, 1)
        latent[[3, 8], 2] = value
        with pytest.raises(ValueError, match=r"not finite at step 1: 2 of 40 completions"):
            monitor.update(state, rollout(latent))
        with pytest.raises(ValueError, match=r"not finite at step 0: 2 of 40 completions"):
            monitor.start(rollout(latent, step=0))


@every_monitor
def test_too_few_references_are_refused(monitor: Monitor) -> None:
    with pytest.raises(ValueError, match=r"(got|of) 1\b.*sample"):
        monitor.start(rollout(normal(1, 0), step=0))


def test_prompts_must_be_as_many_as_completions() -> None:
    with pytest.raises(ValueError, match=r"'x' got 3 prompt numbers for 40 completions at step 1; give one to each"):
        latents_of(rollout(normal(40, 0), prompt=torch.arange(3)), "x")


def test_latents_are_copied_to_double_precision() -> None:
    latent = normal(4, 0).double().requires_grad_()
    read = latents_of(rollout(latent), "x")
    assert read.dtype == torch.float64 and not read.requires_grad and read.data_ptr() != latent.data_ptr()
    assert torch.equal(read, latent.detach())
    assert latents_of(rollout(normal(4, 0).bfloat16()), "x").dtype == torch.float64
