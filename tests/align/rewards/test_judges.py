from types import SimpleNamespace

import pytest
import torch

from rewarden.align.prompts import Prompt
from rewarden.align.rewards import pipeline
from rewarden.align.rewards.judges import Judges
from rewarden.align.rewards.sources import FunctionSource, Judged
from rewarden.align.rollouts import Rollouts
from rewarden.core import RewardOutput
from rewarden.hf.tokens import TokenGroup
from rewarden.shaping import nominal

PROMPTS = [Prompt("one", 1, "a", {"id": 5}), Prompt("two", 2, "b", {"id": 6})]
TEXTS = [["x", "xx"], ["xxx", ""]]


@pytest.fixture
def rollouts() -> Rollouts:
    groups = [TokenGroup((torch.arange(9).numpy(),) * 2, (3, 4), (False, True)) for _ in PROMPTS]
    return Rollouts(PROMPTS, groups, TEXTS)


def length(prompts, completions, id, **_):
    """The id is there to see that columns arrive."""
    return [len(text) + number for text, number in zip(completions, id, strict=True)]


def judges(**more) -> Judges:
    parts = [pipeline.shaped(nominal), pipeline.length_penalty(2.0)]
    return Judges(FunctionSource(length, "length", None), pipeline.Payment(parts, clip=1.0, whiten=True), **more)


def latent_source(prompts, completions, extras) -> Judged:
    return Judged(RewardOutput(torch.full((4,), 9.0), latent=torch.arange(8.0).view(4, 2)), None)


def test_the_source_s_word_with_the_detector_s_latents(rollouts):
    assert judges().judged(rollouts).output.latent is None
    found = judges(detector=latent_source).judged(rollouts).output
    assert found.reward.tolist() == [6, 7, 9, 6]
    assert found.latent.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_everything_that_is_paid_for(rollouts):
    class Endogenous:
        def __call__(self, prompts, completions):
            return [[SimpleNamespace(reward=float(len(prompt) + len(text))) for text in group]
                    for prompt, group in zip(prompts, completions, strict=True)]  # fmt: skip

    found = judges(endogenous=Endogenous()).completed(rollouts, RewardOutput(torch.zeros(4)))
    assert found.length.tolist() == [3, 4, 3, 4]
    assert found.is_truncated.tolist() == [False, True, False, True]
    assert found.prompt_class == ["a", "a", "b", "b"]
    assert found.endogenous.tolist() == [4, 5, 6, 3]
    assert judges().completed(rollouts, RewardOutput(torch.zeros(4))).endogenous is None


def test_without_whitening_clipping_stays(rollouts):
    completed = judges().completed(rollouts, judges().judged(rollouts).output)
    assert judges().unwhitened(completed).reward.tolist() == [0, -1, 1, -1]  # 6 - 6, 7 - 8, 9 - 6, 6 - 8, clipped


def test_held_out_completions_are_worth_their_components(rollouts):
    gold = FunctionSource(lambda completions: [float(len(text)) for text in completions], "gold", None)
    assert judges().held_out(rollouts) == {"reward": 0.0, "length": 3.5}
    assert judges(gold=gold).held_out(rollouts) == {"reward": 0.0, "length": 3.5, "gold": 1.5}
