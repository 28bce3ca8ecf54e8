import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial import distance
from torch import Tensor

from rewarden.monitors.mahalanobis import (
    Covariance,
    MahalanobisOutliers,
    every_second_prompt,
    fit_reference,
    mahalanobis,
    reference_of,
)
from rewarden.monitors.monitor import Report, Rollout
from rewarden.monitors.p_values import chi_squared_p_values, conformal_p_values, outlier_fraction

FOUR = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
POINT = torch.tensor([[3.0, 0.5]])


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(latent: Tensor, step: int = 0, prompt: Tensor | None = None) -> Rollout:
    zeros = torch.zeros(len(latent))
    return Rollout(step, zeros, zeros, zeros, latent=latent, prompt=prompt)


# --- The distance ---


def test_by_hand_with_the_empirical_covariance() -> None:
    reference = fit_reference(FOUR, covariance="empirical")
    assert reference.mean.tolist() == [1.0, 0.5]
    torch.testing.assert_close(reference.precision, torch.tensor([[0.75, 0.0], [0.0, 3.0]]).double(), rtol=1e-5, atol=0)
    measured = mahalanobis(POINT.double(), reference)  # 2 / sqrt(4/3 + 1e-6)
    assert measured.item() == pytest.approx(1.7320502, abs=1e-7)
    assert chi_squared_p_values(measured, 2).item() == pytest.approx(0.22313, abs=1e-5)


def test_by_hand_with_ledoit_wolf() -> None:
    # Divided by n the variances are 1 and 1/4, which shrink towards their mean 5/8 by 4/9: to 5/6 and 5/12.
    reference = fit_reference(FOUR, covariance="ledoit-wolf")
    torch.testing.assert_close(
        reference.precision, torch.tensor([[1.2, 0.0], [0.0, 2.4]]).double(), rtol=1e-5, atol=1e-12
    )
    assert mahalanobis(POINT.double(), reference).item() == pytest.approx(2.191, abs=5e-4)


def test_the_distance_is_not_squared_and_the_mean_is_at_0() -> None:
    reference = fit_reference(FOUR, covariance="empirical")
    assert mahalanobis(torch.tensor([[1.0, 0.5], [5.0, 0.5], [9.0, 0.5]]), reference).tolist() == pytest.approx(
        [0.0, 4 * 0.75**0.5, 8 * 0.75**0.5], rel=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
def test_against_scipy_as_the_released_code_does_it(seed: int) -> None:
    latents = normal(50, 6, seed) @ normal(6, 6, seed + 10)
    inverse = np.linalg.inv(np.cov(latents.numpy(), rowvar=False) + 1e-6 * np.eye(6))
    points, centre = normal(9, 6, seed + 20), latents.numpy().mean(0)
    expected = [distance.mahalanobis(point, centre, inverse) for point in points.numpy()]
    found = mahalanobis(points, fit_reference(latents, covariance="empirical"))
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_invertible_maps_of_the_space_change_nothing() -> None:
    latents, points, by = normal(80, 5, 0), normal(12, 5, 1), normal(5, 5, 2)
    assert float(torch.linalg.cond(by)) < 100
    base = mahalanobis(points, fit_reference(latents, covariance="empirical", ridge=0.0))
    mapped = mahalanobis(points @ by + 3, fit_reference(latents @ by + 3, covariance="empirical", ridge=0.0))
    torch.testing.assert_close(mapped, base, rtol=1e-8, atol=1e-8)


def test_shrinkage_knows_turns_and_one_scale_for_all_but_no_other_map() -> None:
    latents, points = normal(20, 5, 0) * torch.arange(1, 6), normal(12, 5, 1)
    base = mahalanobis(points, fit_reference(latents, covariance="ledoit-wolf", ridge=0.0))
    turn = 100 * torch.linalg.qr(normal(5, 5, 2)).Q
    turned = mahalanobis(points @ turn, fit_reference(latents @ turn, covariance="ledoit-wolf", ridge=0.0))
    torch.testing.assert_close(turned, base, rtol=1e-8, atol=1e-8)
    stretch = torch.tensor([100.0, 1, 1, 1, 1]).double()
    stretched = mahalanobis(points * stretch, fit_reference(latents * stretch, covariance="ledoit-wolf", ridge=0.0))
    assert not torch.allclose(stretched, base, rtol=0.01)


def test_squared_distances_of_the_fitted_rows_have_mean_width_times_n_minus_1_over_n() -> None:
    latents = normal(40, 7, 0)
    squared = mahalanobis(latents, fit_reference(latents, covariance="empirical", ridge=0.0)).square()
    assert squared.mean().item() == pytest.approx(7 * 39 / 40)  # trace of S^-1 S, with n - 1 in S


def test_rows_do_not_see_each_other_and_types_are_the_callers() -> None:
    reference = fit_reference(normal(40, 7, 0), covariance="empirical")
    points = normal(5, 7, 1).float()
    together = mahalanobis(points, reference)
    assert together.dtype == torch.float32 and reference.precision.dtype == torch.float64
    for row, point in zip(together, points, strict=True):
        torch.testing.assert_close(mahalanobis(point[None], reference)[0], row)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1 reference latents, 0 of them not finite; expected at least 2"):
        fit_reference(FOUR[:1], covariance="ledoit-wolf")
    with pytest.raises(ValueError, match=r"got 4 reference latents, 1 of them not finite"):
        fit_reference(torch.cat([FOUR[:3], torch.tensor([[math.nan, 0.0]])]), covariance="ledoit-wolf")
    with pytest.raises(ValueError, match=r"got 6 reference latents of width 6.*sample more than 6.*ledoit-wolf"):
        fit_reference(normal(6, 6, 0), covariance="empirical")
    with pytest.raises(ValueError, match=r"all reference latents are equal.*collapsed"):
        fit_reference(torch.ones(9, 2), covariance="ledoit-wolf")
    with pytest.raises(ValueError, match=r"plus ridge 0 is singular; raise the ridge"):
        fit_reference(FOUR * torch.tensor([1.0, 0.0]), covariance="empirical", ridge=0.0)
    with pytest.raises(ValueError, match=r"covariance is 'oas'; it must be 'empirical'.*or 'ledoit-wolf'"):
        inspect.unwrap(fit_reference)(FOUR, covariance="oas")  # type: ignore[arg-type]


def test_six_references_of_width_six_are_enough_for_ledoit_wolf() -> None:
    assert mahalanobis(normal(6, 6, 1), fit_reference(normal(6, 6, 0), covariance="ledoit-wolf")).isfinite().all()


# --- Which p-values to believe ---


def flagged(references: int, covariance: Covariance, spectrum: Tensor, *, clean: int = 1000) -> float:
    """Share of clean samples that the chi-squared p-value calls outliers at 1 %."""
    reference = fit_reference(normal(references, 128, 0) * spectrum, covariance=covariance)
    p_values = chi_squared_p_values(mahalanobis(normal(clean, 128, 1) * spectrum, reference), 128)
    return outlier_fraction(p_values, 0.01).fraction


def test_chi_squared_is_nominal() -> None:
    flat, falling = torch.ones(128).double(), torch.logspace(0, -1, 128).double()
    assert flagged(512, "empirical", flat) == pytest.approx(0.52, abs=0.08)
    assert flagged(1280, "empirical", flat) == pytest.approx(0.08, abs=0.04)
    assert flagged(512, "ledoit-wolf", flat) <= 0.03
    assert flagged(512, "ledoit-wolf", falling) <= 0.005


@pytest.mark.parametrize("covariance", ["empirical", "ledoit-wolf"])
def test_conformal_is_not(covariance: Covariance) -> None:
    falling = torch.logspace(0, -1, 128).double()
    for spectrum in (torch.ones(128).double(), falling):
        fitting, held_out = (normal(1024, 128, 0) * spectrum).split(512)
        reference = fit_reference(fitting, covariance=covariance)
        p_values = conformal_p_values(
            mahalanobis(normal(1000, 128, 1) * spectrum, reference), mahalanobis(held_out, reference)
        )
        assert 0.001 <= outlier_fraction(p_values, 0.01).fraction <= 0.03
        assert outlier_fraction(p_values, 0.2).fraction == pytest.approx(0.2, abs=0.07)


# --- The two halves of the reference ---


def test_every_second_prompt_is_held_out_whole() -> None:
    assert every_second_prompt(None, 5).tolist() == [False, True, False, True, False]
    prompt = torch.tensor([7, 3, 3, 9, 7, 20, 9])  # 3 and 9 stay, 7 and 20 are held out
    assert every_second_prompt(prompt, 7).tolist() == [True, False, False, False, True, True, False]


def test_too_few_references_say_how_many_to_sample() -> None:
    with pytest.raises(
        ValueError, match=r"got 999 reference .* out 499; .* alpha 0.01 need 500 .*at least 1000 .*chi-squared"
    ):
        MahalanobisOutliers().start(of(normal(999, 4, 0)))
    assert MahalanobisOutliers().start(of(normal(1000, 4, 0)))
    with pytest.raises(ValueError, match=r"out 500; conformal p-values at alpha 0.001 need 999 held out.*least 1998"):
        MahalanobisOutliers(alpha=0.001).start(of(normal(1000, 4, 0)))
    with pytest.raises(ValueError, match=r"got 2000 .* holds out 0;.* of as many prompts as possible"):
        MahalanobisOutliers().start(of(normal(2000, 4, 0), prompt=torch.zeros(2000, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"got 4 reference latents of width 4; their empirical covariance is singular"):
        MahalanobisOutliers(covariance="empirical", min_held_out=4, alpha=0.5, alarm_factor=1.0).start(
            of(normal(8, 4, 0))
        )


def test_the_smallest_p_value_can_reach_alpha() -> None:
    monitor = MahalanobisOutliers(alpha=0.01, min_held_out=1, window=1)
    state = monitor.start(of(normal(198, 4, 0)))
    assert len(state["calibration"]) == 99
    assert monitor.report(monitor.update(state, of(normal(64, 4, 1) + 100))).values["fraction"] == 1


def test_the_halves_fit_and_calibrate() -> None:
    latents, prompt = normal(1100, 4, 0), torch.arange(1100) % 60
    monitor = MahalanobisOutliers(covariance="empirical")
    state = monitor.start(of(latents, prompt=prompt))
    held_out = every_second_prompt(prompt, 1100)
    fitted = fit_reference(latents[~held_out], covariance="empirical")
    assert torch.equal(reference_of(state).mean, fitted.mean)
    assert torch.equal(reference_of(state).precision, fitted.precision)
    torch.testing.assert_close(state["calibration"], mahalanobis(latents[held_out], fitted).sort().values)
    everything = MahalanobisOutliers(covariance="empirical", p_values="chi-squared").start(of(latents, prompt=prompt))
    assert torch.equal(everything["mean"], latents.mean(0)) and not len(everything["calibration"])


# --- The monitor ---


def share_of(hits: int, rows: int) -> Tensor:
    return torch.tensor([0.001] * hits + [0.5] * (rows - hits), dtype=torch.float64)


REFERENCE = of(normal(1024, 8, 0))


def watched(monitor: MahalanobisOutliers, rollouts: list[Rollout], reference: Rollout = REFERENCE) -> list[Report]:
    state, reports = monitor.start(reference), []
    for rollout in rollouts:
        state = monitor.update(state, rollout)
        reports.append(monitor.report(state))
    return reports


def partly(far: int, rows: int = 64, seed: int = 1) -> Tensor:
    """Latents at the reference's mean, the first `far` of them a long way off."""
    latents = 0.01 * normal(rows, 8, seed)
    latents[:far] += 100
    return latents


@pytest.mark.parametrize("p_values", ["conformal", "chi-squared"])
def test_values(p_values: str) -> None:
    monitor = MahalanobisOutliers(p_values=p_values)  # type: ignore[arg-type]
    state = monitor.update(monitor.start(REFERENCE), of(partly(6)))
    values = monitor.report(state).values
    expected = outlier_fraction(share_of(6, 64), 0.01, confidence=0.99)
    assert values["fraction"] == 6 / 64
    assert (values["fraction_low"], values["fraction_high"]) == pytest.approx(expected[1:3])
    assert (values["rows"], values["effective_rows"]) == (64.0, 64.0)
    assert values["distance"] == pytest.approx(float(mahalanobis(partly(6), reference_of(state)).mean()))
    if p_values == "conformal":
        assert values["reference_distance"] == pytest.approx(float(state["calibration"].mean()))
    else:
        assert "reference_distance" not in values


def test_the_window_forgets() -> None:
    rollouts = [of(partly(far), step) for step, far in enumerate([32, 0, 16, 0, 0, 0], 1)]
    values = [report.values for report in watched(MahalanobisOutliers(window=3), rollouts)]
    assert [value["fraction"] * value["rows"] for value in values] == pytest.approx([32, 32, 48, 16, 16, 0])
    assert [value["rows"] for value in values] == [64, 128, 192, 192, 192, 192]
    assert values[0]["distance"] > 10 * values[1]["distance"]  # the distance is that of the last update


def test_prompts_of_different_rollouts_are_different_prompts() -> None:
    prompt = torch.arange(64) // 8
    rollouts = [of(partly(8), step, prompt) for step in (1, 2, 3, 4)]
    monitor = MahalanobisOutliers()
    state = monitor.start(REFERENCE)
    for rollout in rollouts:
        state = monitor.update(state, rollout)
    assert len(state["group"].unique()) == 32
    assert len(state["group"]) == 256


def test_outliers_of_one_prompt_raise_no_alarm_and_those_of_all_prompts_do() -> None:
    prompt, spread = torch.arange(64) // 8, torch.arange(64) % 8
    reports = [watched(MahalanobisOutliers(), [of(partly(8), 1, of_rows)])[-1] for of_rows in (prompt, spread)]
    assert [report.values["fraction"] for report in reports] == [0.125, 0.125]
    assert [report.alarm is None for report in reports] == [True, False]


def test_the_alarm_says_what_how_much_and_what_to_do() -> None:
    alarm = watched(MahalanobisOutliers(window=2), [of(partly(0)), of(partly(64))])[-1].alarm
    share = outlier_fraction(share_of(64, 128), 0.01, confidence=0.99)
    assert alarm is not None
    assert alarm.startswith(
        f"50.0% of the last 128 completions (99% interval {share.low:.1%} to {share.high:.1%}) are outliers among the starting "
        "policy's responses, where 1.0% is expected and 3.0% tolerated"
    )
    assert "go back to the last checkpoint before this" in alarm


def test_the_alarm_is_raised_where_the_lower_end_passes_the_factor() -> None:
    values = {far: outlier_fraction(share_of(far, 64), 0.01, confidence=0.99).low for far in range(20)}
    for factor in (1.0, 3.0, 5.0):
        for far, low in values.items():
            report = watched(MahalanobisOutliers(alarm_factor=factor), [of(partly(far))])[-1]
            assert (report.alarm is not None) == (low > factor * 0.01)


Sampler = Callable[[int, int, int], Tensor]


def independent(prompts: int, each: int, seed: int) -> Tensor:
    return normal(prompts * each, 8, seed)


def of_prompts(prompts: int, each: int, seed: int) -> Tensor:
    """Half of the variance is the prompt's, whose completions are alike."""
    return (normal(prompts, 8, seed).repeat_interleave(each, 0) + normal(prompts * each, 8, seed + 500_000)) / 2**0.5


def alarms(sample: Sampler, moved: Callable[[Tensor], Tensor], *, run: int, steps: int) -> list[bool]:
    """Whether each step raises an alarm, in a run whose policy is the starting one but for what `moved` does to its latents."""
    monitor, seed = MahalanobisOutliers(), 1000 * (run + 1)
    rollouts = [of(moved(sample(8, 8, seed + step)), step, torch.arange(64) // 8) for step in range(1, steps + 1)]
    reports = watched(monitor, rollouts, of(sample(1024, 1, seed)))
    return [report.alarm is not None for report in reports]


@pytest.mark.parametrize("sample", [independent, of_prompts])
def test_a_policy_that_stays_where_it_was_raises_no_alarm(sample: Sampler) -> None:
    runs = [any(alarms(sample, lambda latents: latents, run=run, steps=60)) for run in range(10)]
    assert sum(runs) <= 1  # an unlucky set of held-out references may


@pytest.mark.parametrize("sample", [independent, of_prompts])
@pytest.mark.parametrize(("share", "within"), [(0.1, 12), (0.2, 6), (0.5, 3)])
def test_a_policy_of_which_a_share_leaves_raises_it_soon(sample: Sampler, share: float, within: int) -> None:
    def left(latents: Tensor) -> Tensor:
        return latents + 6 * (torch.arange(64) % 10 < 10 * share).double()[:, None]

    for run in range(3):
        assert alarms(sample, left, run=run, steps=within)[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", 0.0),
        ("alpha", 1.0),
        ("confidence", 1.0),
        ("window", 0),
        ("min_held_out", 0),
        ("alarm_factor", 0.5),
        ("alarm_factor", 100.0),
        ("alarm_factor", math.nan),
    ],
)
def test_thresholds_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} (is )?{value}"):
        MahalanobisOutliers(**{field: value})  # type: ignore[arg-type]
