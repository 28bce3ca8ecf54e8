"""The starting policy's responses: to which prompts, stored whole or not at all, and sampled again if they are not there."""

import os
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from pyarrow import parquet
from transformers import LlamaConfig, LlamaForCausalLM

from rewarden.align import reference_responses
from rewarden.align.prompts import Prompt, prompts_of_step
from rewarden.align.rewards.sources import Scores
from rewarden.align.rollouts import Rollouts, RolloutSampler
from rewarden.core import RewardOutput
from rewarden.hf.generation.token_choice import Sampling
from rewarden.monitors.mahalanobis import fit_reference

from .test_policy import SIZES

IDS = [[5, 6, 7], [200, 20, 8, 9], [44], [7, 6, 5]]
PROMPTS = [Prompt(f"prompt {number}", number + 1, "ab"[number % 2], {}) for number in range(len(IDS))]
PLACES = [2, 0, 1, 3, 2, 0, 1, 3]


@pytest.mark.parametrize(
    ("number", "steps", "per_step", "count"),
    [
        (10, 100, 4, 40),  # all prompts, four times each
        (10, 100, 4, 25),  # all prompts, two or three times
        (100, 5, 4, 60),  # twenty prompts are used at all
        (100, 1, 4, 7),
        (3, 2, 8, 10),  # more per step than there are
    ],
)
def test_the_prompts_of_the_run_are_answered_evenly(number: int, steps: int, per_step: int, count: int) -> None:
    used = {place for step in range(1, steps + 1) for place in prompts_of_step(number, step, per_step, 5)}
    found = reference_responses.prompts_for(number, steps, per_step, count, 5)
    assert len(found) == count
    assert set(found) == used
    for part in (found, found[: count // 2], found[count // 2 :]):  # monitors hold out a half
        times = Counter(part)
        assert max(times.values()) - min(times[place] for place in used) <= 1


def test_of_more_prompts_than_responses_an_even_selection_is_answered() -> None:
    """Even over the run: as many from its beginning as from its end."""
    order = [place for step in range(1, 26) for place in prompts_of_step(100, step, 4, 5)]
    assert len(set(order)) == 100
    found = reference_responses.prompts_for(100, 1000, 4, 20, 5)
    assert [order.index(place) for place in found] == list(range(0, 100, 5))
    assert reference_responses.prompts_for(100, 1000, 4, 100, 5) == order
    nearly = [order.index(place) for place in reference_responses.prompts_for(100, 1000, 4, 80, 5)]
    assert nearly == [place for place in range(100) if place % 5 != 4]
    assert reference_responses.prompts_for(100, 1000, 4, 20, 6) != found


class Source:
    """Rewards and latents made of texts; latents and uncertainties may be missing."""

    def __init__(self, *, has_latents: bool = True) -> None:
        self.has_latents = has_latents

    def __call__(self, prompts: list, completions: list, extras: list) -> Scores:
        assert len(prompts) == len(completions) == len(extras)
        length = torch.tensor([float(len(text)) for (text,) in completions])
        ends = torch.tensor([float(ord(text[-1])) if text else 0.0 for (text,) in completions])
        latent = torch.stack([length, ends, length * ends % 7], dim=-1) if self.has_latents else None
        spread = length / 2 if self.has_latents else None
        return Scores(RewardOutput(length * 0.5 - ends, spread, latent=latent), None)


def lengths_in_nats(prompts: list, texts: list) -> list:
    """An endogenous scorer."""
    return [[SimpleNamespace(reward=2.0 * len(text)) for text in group] for group in texts]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 265})).double().eval()
    found.generation_config.eos_token_id = [2, *range(7, 60)]
    return found


@pytest.fixture
def sample(tokenizer, model, tmp_path):
    """sample(source): sample, score and store, with groups of three in the sampler."""
    writer = RolloutSampler(tokenizer, Sampling(6, temperature=1.0), group_size=3, seed=11, max_rows=5)

    def one(source: Source) -> Rollouts:
        rollouts = reference_responses.sample(PROMPTS, IDS, PLACES, writer, model)
        endogenous = lengths_in_nats if source.has_latents else None
        found = reference_responses.score(rollouts, PLACES, source, endogenous)
        reference_responses.store(tmp_path, rollouts, found)
        single = RolloutSampler(tokenizer, Sampling(6, temperature=1.0), group_size=1, seed=11, max_rows=64)
        return single(model, [PROMPTS[i] for i in PLACES], [IDS[i] for i in PLACES], step=0)

    return one


@pytest.mark.parametrize("has_latents", [True, False])
def test_responses_come_back_as_they_were_stored(has_latents: bool, sample, tmp_path) -> None:
    assert reference_responses.load(tmp_path) is None
    source = Source(has_latents=has_latents)
    written = sample(source)  # one response for every place, with the random numbers of step 0
    found = reference_responses.load(tmp_path)
    output = source(*([None] * 8, written.texts, [{}] * 8)).output
    assert found.prompt.tolist() == PLACES
    assert torch.equal(found.length, written.length)
    assert torch.equal(found.reward, output.reward)
    assert (found.latent is None) != has_latents and (found.endogenous is None) != has_latents
    assert (found.uncertainty is None) != has_latents
    rows = parquet.read_table(tmp_path / "reference" / "responses.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [f"prompt {place}" for place in PLACES]
    assert [row["completion"] for row in rows] == [text for group in written.texts for text in group]
    assert [row["reward"] for row in rows] == output.reward.tolist()
    assert {row["step"] for row in rows} == {0} and [row["group"] for row in rows] == list(range(8))
    if has_latents:
        assert torch.equal(found.latent, output.latent) and torch.equal(found.uncertainty, output.uncertainty)
        assert found.endogenous.tolist() == [2.0 * len(text) for (text,) in written.texts]
        fit = fit_reference(output.latent.double(), covariance="ledoit-wolf")
        gaps = output.latent.double() - fit.mean
        expected = (gaps @ fit.precision * gaps).sum(-1).sqrt()
        assert [row["latent_distance"] for row in rows] == pytest.approx(expected.tolist())
    else:
        assert {row["latent_distance"] for row in rows} == {None}
    assert {path.name for path in (tmp_path / "reference").iterdir()} == {
        "responses.parquet",
        "tensors.safetensors",
        "checksums.json",
    }


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("moment", ["write_rows", "save_file", "replace"])
def test_half_written_responses_are_not_there(moment: str, sample, tmp_path, monkeypatch) -> None:
    """So they are sampled again, and are what they would have been."""
    with monkeypatch.context() as patch:
        owner = os if moment == "replace" else reference_responses
        real = getattr(owner, moment)

        def killed(*args) -> None:
            if moment == "save_file":
                args[1].write_bytes(b"\x10")
            if moment == "replace" and args[1].suffix != ".safetensors":
                real(*args)
                return
            raise Killed

        patch.setattr(owner, moment, killed)
        with pytest.raises(Killed):
            sample(Source())
    assert reference_responses.load(tmp_path) is None
    written = sample(Source())
    assert torch.equal(reference_responses.load(tmp_path).length, written.length)
    assert not list((tmp_path / "reference").glob(".*"))


def test_what_monitors_and_prompt_classes_are_told() -> None:
    found = reference_responses.Responses(
        torch.tensor([1, 0, 3]),
        torch.tensor([4, 5, 6]),
        torch.tensor([0.5, 1.0, 2.0]),
        torch.eye(3),
        None,
        torch.tensor([0.1, 0.2, 0.3]),
    )
    rollout = found.rollout()
    assert rollout.step == 0 and rollout.kl.tolist() == [0, 0, 0]
    assert rollout.reward is found.reward and rollout.length is found.length
    assert rollout.latent is found.latent and rollout.prompt is found.prompt
    assert rollout.uncertainty is found.uncertainty
    assert reference_responses.classes_of(found, PROMPTS) == ["b", "a", "b"]
