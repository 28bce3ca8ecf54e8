"""The loop, step by step; `tests/commands/test_align.py` has the whole command."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewarden.align import checkpoints, logs
from rewarden.align.loop import Run
from rewarden.commands.setup import align_run
from rewarden.monitors.monitor import Monitor, Report
from rewarden.monitors.monitor_set import MonitorSet

from .small_runs import Killed, built, killed, runs


@pytest.fixture(scope="module")
def policy(write_backbone):
    return Path(write_backbone("llama", language_model=True))


@pytest.fixture(scope="module")
def finished(policy, tmp_path_factory):
    """A run of five steps with three held-out prompts, evaluated at every second one and at the end."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    runs.run(policy, folder, steps=5, held_out=3, eval_every=2, save_every=2, gold=length_of)
    return folder


def length_of(prompts, completions, **_):
    return [float(len(text)) for text in completions]


def test_metrics_are_the_means_of_the_rollouts(finished):
    lines, rows = runs.metrics(finished), runs.rollouts(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        mine = [row for row in rows if row["step"] == line["step"]]
        assert len(mine) == 8
        assert [row["group"] for row in mine] == [0] * 4 + [1] * 4
        for metric, column in (("reward", "reward"), ("kl", "kl"), ("length", "tokens"), ("truncated", "truncated")):
            assert line[metric] == pytest.approx(sum(row[column] for row in mine) / 8, abs=1e-6)
        assert line["reward_nominal"] == pytest.approx(sum(row["reward_nominal"] for row in mine) / 8, abs=1e-6)
        for start in (0, 4):  # RLOO: against the mean of the other three, so the sum of a group is 0
            group = [(row["reward"], row["advantage"]) for row in mine[start : start + 4]]
            mean = sum(reward for reward, _ in group) / 4
            assert [advantage for _, advantage in group] == pytest.approx(
                [(r - mean) * 4 / 3 for r, _ in group], abs=1e-6
            )


def test_the_first_step_is_the_starting_policy_s(finished):
    first, later = runs.metrics(finished)[0], runs.metrics(finished)[1:]
    assert first["kl"] == 0.0
    assert all(line["kl"] != 0 for line in later)


def test_rewards_in_the_rollouts_are_those_of_the_function(finished):
    rows = runs.rollouts(finished)
    assert [row["reward"] for row in rows] == pytest.approx(runs.ascii_share(None, [row["completion"] for row in rows]))


def test_held_out_prompts_are_evaluated_and_never_trained_on(finished):
    lines, rows = runs.metrics(finished), runs.rollouts(finished)
    assert [line["step"] for line in lines if "held_out/reward" in line] == [2, 4, 5]
    seen = {row["prompt"] for row in rows}
    assert len(seen) == 3
    assert seen < {row["prompt"] for row in runs.ROWS}


def test_evaluation_changes_nothing(policy, finished, tmp_path):
    """Another rhythm, no gold, and whatever the global generator is at."""
    torch.manual_seed(1234)
    runs.run(policy, tmp_path / "other", steps=5, held_out=3, eval_every=5, save_every=2)
    assert runs.same_tensors(runs.weights(finished), runs.weights(tmp_path / "other"))
    assert runs.rollouts(finished) == runs.rollouts(tmp_path / "other")


def test_the_best_is_that_of_the_best_gold(finished):
    lines = {line["step"]: line["held_out/gold"] for line in runs.metrics(finished) if "held_out/gold" in line}
    best = json.loads((finished / "best.json").read_text())
    state = json.loads((runs.last_checkpoint(finished) / "state.json").read_text())
    step, gold = state["best_gold"]
    assert best["step"] == step
    assert gold >= max(lines.values())
    assert step == 0 or gold == lines[step]
    saved = load_file(checkpoints.folder_of(finished, step) / "policy.safetensors")
    kept = runs.weights(finished / "best")
    assert all(torch.equal(kept[name.removeprefix("language_model.")], each) for name, each in saved.items())


def test_the_starting_policy_is_kept_where_gold_only_falls(policy, tmp_path):
    calls = []

    def falls(prompts, completions, **_):
        calls.append(len(completions))
        return [-float(len(calls))] * len(completions)

    summary = runs.run(policy, tmp_path / "run", held_out=3, eval_every=1, gold=falls)
    assert summary["best"]["step"] == 0
    assert calls == [3, 3, 3, 3]
    assert runs.same_tensors(runs.weights(tmp_path / "run" / "best"), runs.weights(policy))


class Bell(Monitor):
    """Rings at the steps it is told."""

    name = "bell"

    def __init__(self, *steps):
        self.steps = steps

    def start(self, _):
        return {"step": torch.tensor(0)}

    def update(self, _, rollout):
        return {"step": torch.tensor(rollout.step)}

    def report(self, state):
        return Report({"at": float(state["step"])}, "ding" if int(state["step"]) in self.steps else None)


def with_bell(run, *steps, stops=True):
    run.make_step.monitors.monitors = {"bell": Bell(*steps)}
    run.make_step.monitors.start(None)
    run.plan = replace(run.plan, stop_on="bell" if stops else None)
    return run


@pytest.mark.parametrize(
    ("alarm", "save_every", "keep", "best"),
    [
        (4, 1, 2, 2),  # the policy of step 3 wrote what rang at step 4
        (4, 1, 1, 2),
        (4, 2, 1, 2),
        (4, 3, 1, 0),
        (2, 1, 1, 0),
        (1, 1, 1, 0),  # too early for anything to be good: the starting policy
    ],
)
def test_an_alarm_ends_the_run_and_the_last_good_checkpoint_is_best(alarm, save_every, keep, best, policy, tmp_path):
    run = built(policy, tmp_path / "run", steps=6, save_every=save_every, keep_checkpoints=keep)
    with_bell(run, alarm)()
    lines = runs.metrics(tmp_path / "run")
    assert run.progress.step == len(lines) == alarm
    assert run.is_stopped
    assert [line.get("alarm") for line in lines] == [None] * (alarm - 1) + ["ding"]
    assert lines[-1]["monitor/bell/at"] == alarm
    assert run.store.best_step() == best
    assert best in checkpoints.steps_saved(tmp_path / "run")


def test_without_stopping_the_best_stays_that_before_the_first_alarm(policy, tmp_path):
    run = built(policy, tmp_path / "run", steps=6, save_every=1, keep_checkpoints=1)
    with_bell(run, 4, 6, stops=False)()
    assert run.progress.step == 6
    assert run.store.best_step() == 2
    assert checkpoints.steps_saved(tmp_path / "run") == [2, 6]
    assert run.make_step.monitors.first.step == 4


def test_a_stopped_run_stays_stopped(policy, tmp_path, monkeypatch):
    """Resumed with the same wish it does not go on; without the wish it does."""
    with_bell(built(policy, tmp_path / "run", steps=5), 2)()
    monkeypatch.setattr(align_run.align_rewards, "monitors", lambda *_, **__: MonitorSet({"bell": Bell(2)}))
    again = built(policy, tmp_path / "run", steps=5, resume=True)
    assert again.progress.step == 2
    again.plan = replace(again.plan, stop_on="bell")
    again()
    assert again.progress.step == 2
    again.plan = replace(again.plan, stop_on=None)
    again()
    assert again.progress.step == 5


def test_without_an_alarm_the_last_one_is_best(policy, tmp_path):
    run = with_bell(built(policy, tmp_path / "run", steps=3, save_every=2, keep_checkpoints=1))
    run()
    assert run.store.best_step() == 3
    assert checkpoints.steps_saved(tmp_path / "run") == [2, 3]  # were the next step to ring, 2 would be best


class FailsAt:
    """A reward function that raises at one of its calls, the first being the reference responses."""

    __name__ = "fails_at"

    def __init__(self, call, function=runs.ascii_share):
        self.call, self.function, self.calls = call, function, 0

    def __call__(self, prompts, completions, **columns):
        self.calls += 1
        if self.calls == self.call:
            raise RuntimeError("out of paper")
        return self.function(prompts, completions, **columns)


@pytest.mark.parametrize("algorithm", ["rloo", "ppo"])
def test_a_failing_reward_costs_no_finished_step(algorithm, policy, tmp_path):
    runs.run(policy, tmp_path / "whole", steps=4, algorithm=algorithm)
    output = tmp_path / "broken"
    with pytest.raises(ValueError, match=r"step 3: .*out of paper.*Steps up to 2 are saved; mend the reward.*--resume"):
        runs.run(policy, output, steps=4, algorithm=algorithm, function=FailsAt(4))
    assert checkpoints.steps_saved(output)[-1] == 2
    runs.run(policy, output, steps=4, algorithm=algorithm, function=FailsAt(-1), resume=True)
    runs.assert_same_end(tmp_path / "whole", output)


def test_a_failing_reward_at_the_first_step(policy, tmp_path):
    with pytest.raises(ValueError, match=r"step 1: .* No step was finished; mend"):
        runs.run(policy, tmp_path / "run", function=FailsAt(2))
    assert checkpoints.steps_saved(tmp_path / "run") == [0]


def test_a_failing_evaluation_costs_no_finished_step(policy, tmp_path, monkeypatch):
    """The step before it is whole, but not logged yet: its numbers wait for the evaluation."""
    settings = {"steps": 4, "held_out": 2, "eval_every": 2}
    runs.run(policy, tmp_path / "whole", gold=FailsAt(-1, length_of), **settings)
    output = tmp_path / "broken"
    with pytest.raises(ValueError, match=r"held-out prompts after step 2: .*Steps up to 2 are saved"):
        runs.run(policy, output, gold=FailsAt(2, length_of), **settings)
    assert [line["step"] for line in runs.metrics(output)] == [1]
    with pytest.raises(ValueError, match="held-out prompts after step 2"):  # and once more
        runs.run(policy, output, gold=FailsAt(1, length_of), resume=True, **settings)
    with monkeypatch.context() as patched, suppress(Killed):  # step 2 is logged, and no later checkpoint knows of it
        patched.setattr(Run, "_rescue", lambda _: None)
        patched.setattr(logs, "write_rollouts", killed)
        runs.run(policy, output, gold=FailsAt(-1, length_of), resume=True, **settings)
    assert [line["step"] for line in runs.metrics(output)] == [1, 2]
    runs.run(policy, output, gold=FailsAt(-1, length_of), resume=True, **settings)
    runs.assert_same_end(tmp_path / "whole", output)


def test_an_interruption_between_updates_saves(policy, tmp_path):
    run = built(policy, tmp_path / "run")
    run.advance()

    class Interrupted:
        record, has_latents = {}, False

        def __call__(self, *_):
            raise KeyboardInterrupt

    run.make_step.pipeline = replace(run.make_step.pipeline, source=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        run()
    assert checkpoints.steps_saved(tmp_path / "run") == [1]


def test_nothing_is_saved_in_the_middle_of_an_update(policy, tmp_path):
    """Two updates a step, the second of which fails: the weights belong to no step."""
    run = built(policy, tmp_path / "run", minibatches=2)
    run.advance()
    step, count = run.make_step.learner.optimizer.step, []

    def fails(*arguments, **named):
        count.append(1)
        if len(count) == 2:
            raise MemoryError
        return step(*arguments, **named)

    run.make_step.learner.optimizer.step = fails
    with pytest.raises(MemoryError):
        run()
    assert checkpoints.steps_saved(tmp_path / "run") == []


def test_a_gradient_that_is_not_finite_comes_before_the_weights_are_touched(policy, tmp_path):
    """So the steps before it are saved."""
    run = built(policy, tmp_path / "run", function=runs.ascii_share)
    run.advance()
    with torch.no_grad():
        next(run.make_step.policy.parameters()).grad = None
    hook = next(p for p in run.make_step.policy.parameters() if p.requires_grad).register_hook(
        lambda grad: grad * float("nan")
    )
    with pytest.raises(ValueError, match="the gradient has length nan"):
        run()
    hook.remove()
    assert checkpoints.steps_saved(tmp_path / "run") == [1]


def test_drafts_of_the_report_come_as_often_as_was_asked(policy, tmp_path):
    run = built(policy, tmp_path / "run", steps=5, report_every=2)
    seen = []
    run(on_report=lambda: seen.append(run.progress.step))
    assert seen == [2, 4]
