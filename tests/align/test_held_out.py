import pytest
import torch

from rewarden.align.held_out import HeldOut
from rewarden.align.prompts import Prompt
from rewarden.align.rewards.components import length_penalty, shaped
from rewarden.align.rewards.pipeline import RewardPipeline
from rewarden.align.rewards.sources import FunctionSource
from rewarden.align.rollouts import HELD_OUT, Rollouts, RolloutSampler
from rewarden.hf.tokens import TokenGroup

PROMPTS = [Prompt("one", 1, "a", {"id": 5}), Prompt("two", 2, "b", {"id": 6})]


@pytest.fixture
def rollouts() -> Rollouts:
    groups = [TokenGroup((torch.arange(9).numpy(),) * 2, (3, 4), (False, True)) for _ in PROMPTS]
    return Rollouts(PROMPTS, groups, [["x", "xx"], ["xxx", ""]])


def length(prompts, completions, id, **_):
    """The id is there to see that columns arrive."""
    return [len(text) + number for text, number in zip(completions, id, strict=True)]


def test_held_out_completions_are_worth_their_components(rollouts: Rollouts) -> None:
    """6 - 6, 7 - 8, 9 - 6 and 6 - 8: neither clipped nor whitened."""
    components = [shaped(), length_penalty(2.0)]
    pipeline = RewardPipeline(FunctionSource(length, "length", None), components, clip=1.0, whiten=True)
    gold = FunctionSource(lambda completions: [float(len(text)) for text in completions], "gold", None)
    assert HeldOut(PROMPTS, []).worth(pipeline, rollouts) == {"reward": 0.0, "length": 3.5}
    assert HeldOut(PROMPTS, [], gold).worth(pipeline, rollouts) == {"reward": 0.0, "length": 3.5, "gold": 1.5}


def test_one_completion_of_each_with_random_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(RolloutSampler, "__call__", lambda self, *args, **named: calls.append((self, args, named)))
    sampler = RolloutSampler(None, None, group_size=8, seed=3, max_rows=9)
    HeldOut(PROMPTS, [[1], [2]]).sample(sampler, "model", 7)
    ((found, arguments, named),) = calls
    assert (found.group_size, found.seed) == (1, 3)
    assert arguments == ("model", PROMPTS, [[1], [2]]) and named == {"step": HELD_OUT + 7}
