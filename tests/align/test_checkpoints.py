"""Checkpoints that are whole or not there, whenever the run is killed, and that a run continues from exactly."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rewarden.align import checkpoints

PARTS = ("policy", "optimizer", "monitors")


def parts(step: int) -> dict[str, dict[str, Tensor]]:
    return {name: {"a": torch.full((2, 3), float(step)), "b": torch.tensor(step)} for name in PARTS}


def save(run: Path, step: int) -> None:
    checkpoints.save(run, step, parts(step), {"step": step})


def assert_whole(run: Path) -> list[int]:
    """Everything that is listed can be loaded, and is what was saved."""
    saved = checkpoints.steps_saved(run)
    for step in saved:
        found, state = checkpoints.load(run, step)
        assert state == {"step": step}
        assert found.keys() == set(PARTS)
        for tensors in found.values():
            assert tensors["a"].tolist() == [[step] * 3] * 2 and tensors["b"].item() == step
    return saved


class Killed(BaseException):
    """Stands for kill -9: nothing in the code catches it."""


class Kill:
    """Ends the process in the middle of its `number`-th operation on files."""

    def __init__(self, monkeypatch, number: int) -> None:
        self.left = number
        with_replacement = [
            (checkpoints, "save_file", self._half_a_file),
            (os, "replace", None),
            (shutil, "rmtree", self._half_a_folder),
            (Path, "write_text", self._half_a_text),
            (Path, "mkdir", None),
        ]
        for owner, name, half in with_replacement:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), half))

    def _counted(self, real, half):
        def call(*args, **more):
            self.left -= 1
            if self.left == 0:
                if half is not None:
                    half(*args)
                raise Killed
            return real(*args, **more)

        return call

    @staticmethod
    def _half_a_file(_tensors, path: Path) -> None:
        path.write_bytes(b"\x10")

    @staticmethod
    def _half_a_text(path: Path, text: str) -> None:
        path.write_bytes(text.encode()[: len(text) // 2])

    @staticmethod
    def _half_a_folder(folder: Path, *_more) -> None:
        if folder.exists():
            (folder / "policy.safetensors").unlink(missing_ok=True)


def killed_everywhere(monkeypatch, work: Callable[[], None]) -> Iterator[None]:
    """Kills the work in its 1st, 2nd, ... operation, and yields after each; returns when it went through."""
    for number in range(1, 60):
        is_done = False
        with monkeypatch.context() as patch:
            Kill(patch, number)
            with contextlib.suppress(Killed):
                work()
                is_done = True
        if is_done:
            return
        yield
    raise AssertionError("the work never ended")


def test_a_kill_at_any_moment_of_saving_leaves_no_half_checkpoint(monkeypatch, tmp_path) -> None:
    save(tmp_path, 1)
    kills = 0
    for _ in killed_everywhere(monkeypatch, lambda: save(tmp_path, 2)):
        kills += 1
        assert assert_whole(tmp_path) == [1]
    assert kills >= 5  # three parts, the state, and the renaming
    assert assert_whole(tmp_path) == [1, 2]
    checkpoints.rotate(tmp_path, set(), newest=5)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-000001", "step-000002"}


def test_a_kill_while_a_step_is_saved_again_leaves_it_whole_or_gone(monkeypatch, tmp_path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    for _ in killed_everywhere(monkeypatch, lambda: save(tmp_path, 2)):
        assert assert_whole(tmp_path) in ([1], [1, 2])
        save(tmp_path, 2)  # as the continued run does
        assert assert_whole(tmp_path) == [1, 2]


def test_a_kill_while_old_ones_are_deleted_leaves_no_half_checkpoint(monkeypatch, tmp_path) -> None:
    for step in (0, 10, 20, 30):
        save(tmp_path, step)
    for _ in killed_everywhere(monkeypatch, lambda: checkpoints.rotate(tmp_path, {0}, newest=1)):
        assert {0, 30} <= set(assert_whole(tmp_path))
    assert assert_whole(tmp_path) == [0, 30]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    ("keep", "newest", "left"),
    [
        (set(), 1, [40]),
        (set(), 2, [30, 40]),
        ({0}, 2, [0, 30, 40]),
        ({10, 30}, 1, [10, 30, 40]),
        ({99}, 4, [10, 20, 30, 40]),
        (set(), 5, [0, 10, 20, 30, 40]),
        (set(), 7, [0, 10, 20, 30, 40]),  # more than there are
        ({0}, 0, [0]),
    ],
)
def test_rotation_keeps_the_newest_and_those_it_is_told_to(keep, newest, left, tmp_path) -> None:
    for step in (0, 10, 20, 30, 40):
        save(tmp_path, step)
    checkpoints.rotate(tmp_path, keep, newest=newest)
    assert assert_whole(tmp_path) == left


def test_folders_and_what_is_no_checkpoint(tmp_path) -> None:
    assert checkpoints.steps_saved(tmp_path) == []
    save(tmp_path, 7)
    save(tmp_path, 1_000_000)
    (tmp_path / "checkpoints" / "step-000009").mkdir()  # nothing in it
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert checkpoints.steps_saved(tmp_path) == [7, 1_000_000]
    assert checkpoints.folder_of(tmp_path, 7) == tmp_path / "checkpoints" / "step-000007"
    files = sorted(path.name for path in checkpoints.folder_of(tmp_path, 7).iterdir())
    assert files == sorted([*(f"{name}.safetensors" for name in PARTS), "state.json", "checksums.json"])
    assert json.loads((checkpoints.folder_of(tmp_path, 7) / "state.json").read_text()) == {"step": 7}


def test_parts_may_be_empty_or_strided(tmp_path) -> None:
    strided = torch.arange(6.0).view(2, 3).T
    checkpoints.save(tmp_path, 1, {"none": {}, "some": {"x": strided}}, {})
    found, state = checkpoints.load(tmp_path, 1)
    assert found["none"] == {} and torch.equal(found["some"]["x"], strided) and state == {}


@pytest.mark.parametrize(
    "name", ["policy.safetensors", "optimizer.safetensors", "monitors.safetensors", "state.json", "metrics.jsonl"]
)
@pytest.mark.parametrize("harm", ["truncated", "empty", "missing", "altered"])
def test_with_a_damaged_file_the_one_before_is_taken_and_that_is_said(tmp_path, caplog, name, harm) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for step in (1, 2):
        save(tmp_path, step)
    path = checkpoints.folder_of(tmp_path, 2) / name
    whole = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes({"truncated": whole[:-1], "empty": b"", "altered": whole[:-1] + b"!"}[harm])
    with pytest.raises(ValueError, match=rf"step-000002 is not whole \({name} .*; put the file back"):
        checkpoints.load(tmp_path, 2)
    with caplog.at_level("INFO", "rewarden"):
        assert checkpoints.newest_whole(tmp_path) == 1
    assert f"step 2 is not whole ({name} " in caplog.text
    assert "going on from step 1" in caplog.text
    assert assert_whole(tmp_path) == [1]  # so that step 2 is saved again when the run comes by


def test_when_none_is_whole_that_is_said_and_nothing_deleted(tmp_path) -> None:
    assert checkpoints.newest_whole(tmp_path) is None
    for step in (1, 2):
        save(tmp_path, step)
        (checkpoints.folder_of(tmp_path, step) / "policy.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint to go on from: step 1 is not whole .* bytes instead of"):
        checkpoints.newest_whole(tmp_path)
    assert checkpoints.steps_saved(tmp_path) == [1, 2]


def test_the_best_that_a_checkpoint_speaks_of_must_be_whole(tmp_path, caplog) -> None:
    for step, best in ((1, None), (2, [2, 0.5]), (3, [2, 0.5])):
        checkpoints.save(tmp_path, step, parts(step), {"step": step, "best_gold": best})
    assert checkpoints.newest_whole(tmp_path) == 3
    (checkpoints.folder_of(tmp_path, 2) / "optimizer.safetensors").unlink()
    with caplog.at_level("INFO", "rewarden"):
        assert checkpoints.newest_whole(tmp_path) == 1
    assert "step 3 speaks of the best at step 2, which is not whole" in caplog.text
    assert checkpoints.steps_saved(tmp_path) == [1]


@pytest.mark.parametrize("harm", ["", '{"step"', '{"step": 1}\n', "[]\n\x00\n", None])
def test_a_damaged_log_is_put_back(tmp_path, caplog, harm) -> None:
    log, lines = tmp_path / "metrics.jsonl", '{"step": 1}\n{"step": 2}\n'
    log.write_text(lines)
    save(tmp_path, 2)
    log.write_text(lines + '{"step": 3}\n')
    with caplog.at_level("INFO", "rewarden"):
        assert checkpoints.newest_whole(tmp_path) == 2
    assert not caplog.text
    log.unlink()
    if harm is not None:
        log.write_text(harm)
    with caplog.at_level("INFO", "rewarden"):
        checkpoints.newest_whole(tmp_path)
    assert log.read_text() == lines
    assert "was not whole; it is again what the checkpoint of step 2 knows of it" in caplog.text


# --- Weights and the optimiser ---


class Small(nn.Module):
    """Tied weights, a frozen layer and a bias."""

    def __init__(self, *, hidden: int = 4) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(6, hidden)
        self.frozen = nn.Linear(hidden, hidden).requires_grad_(False)
        self.head = nn.Linear(hidden, 6)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.frozen(self.embed(ids)).tanh())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        model(torch.tensor([step % 6, 2, 5])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_continued_run_ends_at_the_same_bits(stop: int, tmp_path) -> None:
    whole = Small()
    train(whole, adamw(whole), range(6))
    first = Small()
    optimizer = adamw(first)
    train(first, optimizer, range(stop))
    weights = {"policy": checkpoints.trained_weights(first), "optimizer": checkpoints.optimizer_tensors(optimizer)}
    assert len(weights["optimizer"]) == (0 if stop == 0 else 2 * 3)  # two weights: step and two means of each
    checkpoints.save(tmp_path, stop, weights, {})

    second = Small()
    with torch.no_grad():
        for each in second.parameters():
            if each.requires_grad:
                each.zero_()
    again = adamw(second)
    found, _ = checkpoints.load(tmp_path, stop)
    checkpoints.load_weights(second, found["policy"])
    checkpoints.load_optimizer(again, found["optimizer"])
    assert second.head.weight is second.embed.weight
    train(second, again, range(stop, 6))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(second.parameters(), whole.parameters(), strict=True))
    if stop:  # without the optimiser's state it is another run
        forgetful = Small()
        checkpoints.load_weights(forgetful, found["policy"])
        train(forgetful, adamw(forgetful), range(stop, 6))
        assert not torch.equal(forgetful.head.bias, whole.head.bias)


def test_settings_stay_those_of_the_optimiser() -> None:
    model = Small()
    optimizer = adamw(model)
    train(model, optimizer, range(1))
    other = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=7.0, betas=(0.5, 0.6))
    checkpoints.load_optimizer(other, checkpoints.optimizer_tensors(optimizer))
    assert (other.param_groups[0]["lr"], other.param_groups[0]["betas"]) == (7.0, (0.5, 0.6))
    assert all(torch.equal(other.state[each]["exp_avg"], value["exp_avg"]) for each, value in optimizer.state.items())


def test_only_what_is_trained_is_saved_and_tied_weights_once() -> None:
    model = Small()
    assert checkpoints.trained_weights(model).keys() == {"embed.weight", "head.bias"}
    assert not any(each.requires_grad for each in checkpoints.trained_weights(model).values())


def test_weights_of_another_policy_are_refused_and_change_nothing() -> None:
    model = Small()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    good = {name: each + 1 for name, each in checkpoints.trained_weights(model).items()}
    odd = {
        r"\['extra'\] differ": good | {"extra": torch.zeros(1)},
        r"\['head.bias'\] differ": {"embed.weight": good["embed.weight"]},
        "shapes differ": good | {"head.bias": torch.zeros(5)},
    }
    for message, weights in odd.items():
        with pytest.raises(ValueError, match=rf"does not fit the policy \({message}\); resume with the policy"):
            checkpoints.load_weights(model, weights)
    with pytest.raises(ValueError, match="does not fit"):
        checkpoints.load_weights(Small(hidden=3), good)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    checkpoints.load_weights(model, good)
    assert torch.equal(model.head.bias, before["head.bias"] + 1)
