"""The loop, step by step; `tests/commands/test_align.py` has the whole command."""

import importlib.util
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewarden.align import checkpoints, logs
from rewarden.align.loop import Run, RunPlan
from rewarden.commands.build import align_run
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.monitors.monitor import Monitor, Report
from rewarden.monitors.monitor_set import MonitorSet

_spec = importlib.util.spec_from_file_location("policy_runs", Path(__file__).parents[1] / "commands" / "policy_runs.py")
runs = importlib.util.module_from_spec(_spec)
sys.modules["policy_runs"] = runs
_spec.loader.exec_module(runs)


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


def built(policy, output, *, function=runs.ascii_share, gold=None, **changes):
    """A run that is set up and not started."""
    function = None if "reward" in changes else function
    found, _ = align_run.build(runs.options(policy, output, **changes), reward=function, gold=gold, prompts=runs.ROWS)
    return found


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dr-grpo", "ppo", "remax"])
def test_every_algorithm_moves_the_policy_towards_the_reward(algorithm, policy, tmp_path):
    """The exact probability of what is paid for, not the reward of a few samples."""
    output = tmp_path / "run"
    small = {"steps": 12, "prompts_per_step": 4, "group_size": 16, "max_new_tokens": 2, "lr": 2e-2}
    runs.run(policy, output, algorithm=algorithm, **small)
    assert runs.ascii_mass(output) > runs.ascii_mass(policy) + 0.15


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dr-grpo", "ppo", "remax"])
def test_rewards_that_are_all_the_same_leave_the_policy_as_it_is(algorithm, policy, tmp_path):
    """But for PPO, which first has to learn what to expect."""
    output = tmp_path / "run"
    runs.run(policy, output, function=lambda completions: [1.0] * len(completions), algorithm=algorithm, steps=2)
    assert runs.same_tensors(runs.weights(output), runs.weights(policy)) == (algorithm != "ppo")


def test_divergence_is_charged_in_the_reward(policy, tmp_path):
    """Advantages are RLOO's of what is left of the reward."""
    runs.run(policy, tmp_path / "run", kl_weight=0.3)
    rows = runs.rollouts(tmp_path / "run")
    assert any(abs(row["kl"]) > 0.01 for row in rows)
    for start in range(0, len(rows), 4):
        left = [row["reward"] - 0.3 * row["kl"] for row in rows[start : start + 4]]
        expected = [(each - sum(left) / 4) * 4 / 3 for each in left]
        assert [row["advantage"] for row in rows[start : start + 4]] == pytest.approx(expected, abs=1e-5)


def test_the_learning_rate_rises_to_its_value():
    plan = RunPlan(steps=9, prompts_per_step=1, seed=0, lr=3.0, warmup_steps=2)
    assert [plan.lr_of(step) for step in (1, 2, 3, 4, 9)] == [1.0, 2.0, 3.0, 3.0, 3.0]


def test_the_optimiser_is_given_the_learning_rate_of_the_step(policy, tmp_path):
    run = built(policy, tmp_path / "run", warmup_steps=3, lr=4.0)
    for step in (1, 2):
        run.advance()
        assert [group["lr"] for group in run.optimizer.param_groups] == [step]


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


def test_the_best_so_far_is_remembered(policy, tmp_path):
    """With its checkpoint, however many come after it."""
    run = built(policy, tmp_path / "run", steps=4, save_every=1, keep_checkpoints=1)
    run.advance()
    run.best_gold = (1, 7.5)
    while run.step < 4:
        run.advance()
    assert checkpoints.steps_saved(tmp_path / "run") == [1, 4]
    again = built(policy, tmp_path / "run", steps=4, resume=True)
    assert (again.best_gold, again.best_step()) == ((1, 7.5), 1)


def test_the_starting_policy_is_kept_where_gold_only_falls(policy, tmp_path):
    calls = []

    def falls(prompts, completions, **_):
        calls.append(len(completions))
        return [-float(len(calls))] * len(completions)

    summary = runs.run(policy, tmp_path / "run", held_out=3, eval_every=1, gold=falls)
    assert summary["best"]["step"] == 0
    assert calls == [3, 3, 3, 3]
    assert runs.same_tensors(runs.weights(tmp_path / "run" / "best"), runs.weights(policy))


def test_truncated_completions_can_be_left_out(policy, tmp_path):
    """All are cut, as one token is no end; a policy that learns from nothing stays as it is."""
    runs.run(policy, tmp_path / "run", max_new_tokens=1, truncated="mask", lr=0.1)
    kept = [row["truncated"] for row in runs.rollouts(tmp_path / "run")]
    unmasked = tmp_path / "keep"
    runs.run(policy, unmasked, max_new_tokens=1, lr=0.1)
    assert all(kept)
    assert runs.same_tensors(runs.weights(tmp_path / "run"), runs.weights(policy))
    assert not runs.same_tensors(runs.weights(unmasked), runs.weights(policy))


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
    run.monitors = MonitorSet({"bell": Bell(*steps)})
    run.monitors.start(None)
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
    assert run.step == len(lines) == alarm
    assert run.is_stopped
    assert [line.get("alarm") for line in lines] == [None] * (alarm - 1) + ["ding"]
    assert lines[-1]["monitor/bell/at"] == alarm
    assert run.best_step() == best
    assert best in checkpoints.steps_saved(tmp_path / "run")


def test_without_stopping_the_best_stays_that_before_the_first_alarm(policy, tmp_path):
    run = built(policy, tmp_path / "run", steps=6, save_every=1, keep_checkpoints=1)
    with_bell(run, 4, 6, stops=False)()
    assert run.step == 6
    assert run.best_step() == 2
    assert checkpoints.steps_saved(tmp_path / "run") == [2, 6]
    assert run.monitors.first.step == 4


def test_a_stopped_run_stays_stopped(policy, tmp_path, monkeypatch):
    """Resumed with the same wish it does not go on; without the wish it does."""
    with_bell(built(policy, tmp_path / "run", steps=5), 2)()
    monkeypatch.setattr(align_run.align_rewards, "monitors", lambda *_: MonitorSet({"bell": Bell(2)}))
    again = built(policy, tmp_path / "run", steps=5, resume=True)
    assert again.step == 2
    again.plan = replace(again.plan, stop_on="bell")
    again()
    assert again.step == 2
    again.plan = replace(again.plan, stop_on=None)
    again()
    assert again.step == 5


def test_without_an_alarm_the_last_one_is_best(policy, tmp_path):
    run = with_bell(built(policy, tmp_path / "run", steps=3, save_every=2, keep_checkpoints=1))
    run()
    assert run.best_step() == 3
    assert checkpoints.steps_saved(tmp_path / "run") == [2, 3]  # were the next step to ring, 2 would be best


class Killed(BaseException):
    """As from kill -9: nothing gets a chance to tidy up."""


def _killed(*_, **__):
    raise Killed


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
        patched.setattr(logs, "write_rollouts", _killed)
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

    run.pipeline = replace(run.pipeline, source=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        run()
    assert checkpoints.steps_saved(tmp_path / "run") == [1]


def test_nothing_is_saved_in_the_middle_of_an_update(policy, tmp_path):
    """Two updates a step, the second of which fails: the weights belong to no step."""
    run = built(policy, tmp_path / "run", minibatches=2)
    run.advance()
    step, count = run.optimizer.step, []

    def fails(*arguments, **named):
        count.append(1)
        if len(count) == 2:
            raise MemoryError
        return step(*arguments, **named)

    run.optimizer.step = fails
    with pytest.raises(MemoryError):
        run()
    assert checkpoints.steps_saved(tmp_path / "run") == []


def test_a_gradient_that_is_not_finite_comes_before_the_weights_are_touched(policy, tmp_path):
    """So the steps before it are saved."""
    run = built(policy, tmp_path / "run", function=runs.ascii_share)
    run.advance()
    with torch.no_grad():
        next(run.policy.parameters()).grad = None
    hook = next(p for p in run.policy.parameters() if p.requires_grad).register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(ValueError, match="the gradient has length nan"):
        run()
    hook.remove()
    assert checkpoints.steps_saved(tmp_path / "run") == [1]


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(policy, tmp_path):
    output = tmp_path / "run"
    run = built(policy, output, steps=5, save_every=2)
    run()
    checkpoint = checkpoints.folder_of(output, 5)
    for each in checkpoint.iterdir():
        each.unlink()
    checkpoint.rmdir()
    again = built(policy, output, steps=4, save_every=2, resume=True)
    assert again.step == 4
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
    settings = {"reward": reward, "steps": 5, "reference_responses": 12} | changes
    run = built(policy, tmp_path / "whole", **settings)
    run()
    before = built(policy, tmp_path / "pieces", **settings)
    for _ in range(3):
        before.advance()
    before.save()
    again = built(policy, tmp_path / "pieces", resume=True, **settings)
    assert again.step == 3
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
    "moving the checkpoint or an old one": (checkpoints.os, "replace", 9),
    "deleting an old one": (checkpoints.shutil, "rmtree", 4),
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
