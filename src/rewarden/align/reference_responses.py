"""Responses of the starting policy to the run's own prompts: sampled once, stored, and what "usual" means from then on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from rewarden.align.prompts import Prompt, prompts_of_step
from rewarden.align.rewards.components import Endogenous, endogenous_rewards
from rewarden.align.rewards.functions import About, known
from rewarden.align.rewards.sources import RewardSource
from rewarden.align.rollouts import REFERENCE, Rollouts, RolloutSampler, kept_rows
from rewarden.disk.atomic import in_place_of
from rewarden.disk.checksums import damage, is_sealed, seal
from rewarden.files import write_rows
from rewarden.monitors.mahalanobis import fit_reference, mahalanobis
from rewarden.monitors.monitor import Rollout

FOLDER = "reference"


class Responses(NamedTuple):
    """What is kept of the reference responses; the texts are in responses.parquet."""

    prompt: Int[Tensor, " rows"]
    """Number of the prompt, among those of the run."""
    length: Int[Tensor, " rows"]
    """Tokens."""
    reward: Float[Tensor, " rows"]
    """Reward under the reward model, reward units."""
    latent: Float[Tensor, "rows latent"] | None
    """Latents, where the reward or the detector has them."""
    endogenous: Float[Tensor, " rows"] | None
    """Endogenous reward, where one is asked for."""
    uncertainty: Float[Tensor, " rows"] | None = None
    """One standard deviation in reward units, where the reward has it."""

    def rollout(self) -> Rollout:
        """What monitors start from; the starting policy has not moved, so its divergence is 0."""
        return Rollout(
            step=0,
            reward=self.reward,
            kl=torch.zeros_like(self.reward),
            length=self.length,
            latent=self.latent,
            uncertainty=self.uncertainty,
            prompt=self.prompt,
        )


def prompts_for(number_of_prompts: int, steps: int, per_step: int, count: int, seed: int) -> list[int]:
    """Which prompts the reference answers, one entry per response: those that the run will use, each as often as the others.

    Where the run uses more distinct prompts than `count`, an even selection of them.
    """
    longest = min(steps, -(-number_of_prompts // per_step))
    used = dict.fromkeys(
        place for step in range(1, longest + 1) for place in prompts_of_step(number_of_prompts, step, per_step, seed)
    )
    distinct = list(used)
    if len(distinct) > count:
        return [distinct[place * len(distinct) // count] for place in range(count)]
    return [distinct[place % len(distinct)] for place in range(count)]


def store(run: Path, rollouts: Rollouts, responses: Responses) -> None:
    """Write the responses: texts and numbers to responses.parquet, tensors to tensors.safetensors, checksums last."""
    distance = None
    if responses.latent is not None:
        latent = responses.latent.double()
        distance = mahalanobis(latent, fit_reference(latent, covariance="ledoit-wolf"))
    rows = kept_rows(rollouts, step=0, first_group=0, columns={"reward": responses.reward, "latent_distance": distance})
    write_rows(run / FOLDER / "responses.parquet", rows)
    tensors = {name: value.contiguous() for name, value in responses._asdict().items() if value is not None}
    with in_place_of(run / FOLDER / "tensors.safetensors") as aside:
        save_file(tensors, aside)
    seal(run / FOLDER)


def load(run: Path) -> Responses | None:
    """The stored responses; None when there are none, or not what was stored, which is said: they can be had again."""
    folder = run / FOLDER
    if (fault := damage(folder)) is not None:
        if is_sealed(folder):
            logging.getLogger("rewarden").info(f"{folder} is not whole ({fault}); the responses are sampled again")
        return None
    tensors = load_file(folder / "tensors.safetensors")
    return Responses(**{name: tensors.get(name) for name in Responses._fields})  # type: ignore[arg-type]


def classes_of(responses: Responses, prompts: Sequence[Prompt]) -> list[str | None]:
    """The prompt class of every response."""
    return [prompts[int(place)].prompt_class for place in responses.prompt]


def sample(
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    places: Sequence[int],
    sampler: RolloutSampler,
    model: PreTrainedModel,
) -> Rollouts:
    """One response for every entry of `places`, the numbers of the prompts to answer; `ids` are the prompts' tokens."""
    one = replace(sampler, group_size=1)
    return one(model, [prompts[i] for i in places], [ids[i] for i in places], step=REFERENCE)


def score(rollouts: Rollouts, places: Sequence[int], source: RewardSource, endogenous: Endogenous | None) -> Responses:
    """What is kept of the responses.

    Raises:
        RewardError: When no usable reward comes back.
    """
    prompts = rollouts.prompts
    with known(About(rollouts.completion_ids, 0)):
        output = source([each.text for each in prompts], rollouts.texts, [each.extra for each in prompts]).output
    return Responses(
        torch.tensor(places),
        rollouts.length,
        output.reward,
        output.latent,
        None if endogenous is None else endogenous_rewards(endogenous, prompts, rollouts.texts),
        output.uncertainty,
    )
