"""A run that is stopped, killed or continued ends as one that never was."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rewarden.align import checkpoints, logs
from rewarden.align.loop import Run
from rewarden.methods.info_bottleneck import InfoBottleneck

from .small_runs import Killed, built, runs


@pytest.fixture(scope="module")
def policy(write_backbone):
    return Path(write_backbone("llama", language_model=True))


def test_the_best_so_far_is_remembered(policy, tmp_path):
    """With its checkpoint, however many come after it."""
    run = built(policy, tmp_path / "run", steps=4, save_every=1, keep_checkpoints=1)
    run.advance()
    run.progress.best_gold = (1, 7.5)
    while run.progress.step < 4:
        run.advance()
    assert checkpoints.steps_saved(tmp_path / "run") == [1, 4]
    again = built(policy, tmp_path / "run", steps=4, resume=True)
    assert (again.progress.best_gold, again.store.best_step()) == ((1, 7.5), 1)


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(policy, tmp_path):
    output = tmp_path / "run"
    run = built(policy, output, steps=5, save_every=2)
    run()
    checkpoint = checkpoints.folder_of(output, 5)
    for each in checkpoint.iterdir():
        each.unlink()
    checkpoint.rmdir()
    again = built(policy, output, steps=4, save_every=2, resume=True)
    assert again.progress.step == 4
    assert [line["step"] for line in runs.metrics(output)] == [1, 2, 3, 4]
    assert sorted(path.stem for path in (output / "rollouts").iterdir()) == [f"step-00000{n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "ppo", "policy_epochs": 2, "minibatches": 2, "kl_weight": 0.1},
        {"algorithm": "grpo", "lora": True, "lora_rank": 2, "kl_weight": 0.1},
        {"whiten": True, "reward_clip": 0.5, "length_penalty": 0.01},
    ],
    ids=["ppo", "lora", "reward pipeline"],
)
def test_a_run_in_pieces_ends_as_one_in_one_piece(changes, policy, tmp_path):
    runs.run(policy, tmp_path / "whole", steps=4, **changes)
    for steps in (1, 3, 4):
        runs.run(policy, tmp_path / "pieces", steps=steps, resume=steps > 1, **changes)
    runs.assert_same_end(tmp_path / "whole", tmp_path / "pieces")


@pytest.mark.parametrize(
    "changes",
    [
        {"r2m": True, "r2m_width": 8, "r2m_lr": 1e-2},
        {"retrain_every": 2, "retrain_lr": 1e-3},
        {"stop_on": "csi", "ibl_weight": 0.1},
    ],
    ids=["r2m", "retraining", "monitors"],
)
def test_what_learns_or_remembers_beside_the_policy_is_resumed(changes, policy, tmp_path):
    reward = runs.reward_model(policy, tmp_path / "reward", InfoBottleneck(latent_size=4))
    if "retrain_every" in changes:
        changes = changes | {"detector": reward}  # the latents that are watched stay
    settings = {"reward": reward, "steps": 5, "reference_responses": 12} | changes
    run = built(policy, tmp_path / "whole", **settings)
    run()
    before = built(policy, tmp_path / "pieces", **settings)
    for _ in range(3):
        before.advance()
    before.store.save()
    again = built(policy, tmp_path / "pieces", resume=True, **settings)
    assert again.progress.step == 3
    again()
    for name in ("policy", "optimizer", "monitors", "feedback", "reward"):
        one, two = (
            load_file(checkpoints.folder_of(tmp_path / each, 5) / f"{name}.safetensors") for each in ("whole", "pieces")
        )
        assert runs.same_tensors(one, two)
        learns = {"policy", "optimizer", "monitors", *(["feedback"] if "r2m" in changes else [])}
        learns |= {"reward"} if "retrain_every" in changes else set()
        assert bool(one) == (name in learns)
    assert runs.metrics(tmp_path / "whole") == runs.metrics(tmp_path / "pieces")
    assert runs.rollouts(tmp_path / "whole") == runs.rollouts(tmp_path / "pieces")


CRASHES = {
    "writing a part": (checkpoints, "save_file", 7),
    "moving the checkpoint or an old one": (os, "replace", 9),
    "deleting an old one": (shutil, "rmtree", 3),
    "logging": (logs, "append", 3),
    "writing completions": (logs, "write_rollouts", 3),
}


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=[] if place == "logging" else pytest.mark.slow) for place in CRASHES]
)
def test_a_kill_in_the_middle_of_writing_loses_nothing(place, policy, tmp_path, monkeypatch):
    """Before or after the call that writes, by turns."""
    runs.run(policy, tmp_path / "whole", save_every=1, keep_checkpoints=1)
    owner, name, last = CRASHES[place]
    write, count, killed = getattr(owner, name), [], []

    def dies(*arguments, **named):
        count.append(1)
        if len(count) == limit and not comes_first:
            write(*arguments, **named)
        if len(count) == limit:
            killed.append(limit)
            raise Killed
        return write(*arguments, **named)

    for limit in range(1, last + 1):
        comes_first = limit % 2 == 1
        output = tmp_path / str(limit)
        with monkeypatch.context() as patched, suppress(Killed):
            count.clear()
            patched.setattr(owner, name, dies)
            patched.setattr(Run, "_rescue", lambda _: None)
            runs.run(policy, output, save_every=1, keep_checkpoints=1)
        runs.run(policy, output, save_every=1, keep_checkpoints=1, resume=True)
        runs.assert_same_end(tmp_path / "whole", output)
        assert not list((output / "checkpoints").glob(".step-*"))
    assert len(killed) == last
