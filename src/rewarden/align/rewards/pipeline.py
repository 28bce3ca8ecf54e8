"""What a policy is rewarded with: a sum of named components, then clipped, then whitened.

    reward = whiten(clip(sum over components of weight x value))

Every step of it is optional and visible: the contributions of the components are kept beside the reward, and so are their values
before weighting. Prompts, texts and lengths come in as they are, so the pipeline serves any loop, and any server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewarden.align.agreement import all_or_none
from rewarden.align.gather import Gather
from rewarden.align.prompts import Prompt
from rewarden.align.rewards.components import Completions, Component
from rewarden.align.rewards.functions import RewardError
from rewarden.align.rewards.sources import RewardSource, Scores
from rewarden.core import RewardOutput


class Rewards(NamedTuple):
    """What a policy is rewarded with for completions, one row each, in float32."""

    reward: Float[Tensor, " rows"]
    """Reward units, or standard deviations after whitening; higher is better."""
    components: dict[str, Tensor]
    """Weighted contributions (rows,) in reward units; they add up to the reward before clipping and whitening."""
    raw: dict[str, Tensor]
    """The components' values (rows,) before weighting, each in its own unit."""
    is_clipped: Bool[Tensor, " rows"]
    """Whether the sum lay outside the clip range."""
    output: RewardOutput
    """What the components were computed from: the source's word, with the latents that are watched."""
    embedding: Float[Tensor, "rows hidden"] | None = None
    """The pooled hidden state that the reward head read; None where there is no such thing."""
    cut: int = 0
    """Completions that the source saw only in part, because they or their prompts exceed its length limits."""

    @property
    def total(self) -> Float[Tensor, " rows"]:
        """The sum of the components, before clipping and whitening."""
        return torch.stack(list(self.components.values())).sum(0)


@dataclass(frozen=True)
class RewardPipeline:
    """From prompts and completions to rewards: a source, components of what it says, their sum, clipped and whitened.

    Clipping comes before whitening, as in the usual recipes for PPO: the range is in the reward model's own units.
    """

    source: RewardSource
    components: Sequence[Component]
    clip: float | None = None
    """Rewards are kept between -clip and clip, in reward units; None for no limit. InfoRM's recipe has 10."""
    whiten: bool = False
    """Subtract the batch's mean and divide by its standard deviation, the population's (divided by n)."""
    gather: Gather | None = None
    """Joins the processes: they fail together, and whiten over the rows of all. None where there is a single one."""

    def __post_init__(self) -> None:
        names = [component.name for component in self.components]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"got components {', '.join(names) or 'none at all'}, expected at least one, each with a name of its own; "
                "add one, or rename"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}, expected more than 0; raise it, or leave it out for no limit")

    def __call__(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[Sequence[str]],
        lengths: Int[Tensor, " rows"],
        truncated: Bool[Tensor, " rows"],
        *,
        reread: Callable[[Scores], RewardOutput] | None = None,
    ) -> Rewards:
        """The rewards of completions.

        All processes must call this together; a failure in one of them is a failure in all. Whitening, which looks at all
        processes, comes after all have found their rewards usable.

        Args:
            prompts: At least one.
            texts: The completions of every prompt, at least one.
            lengths: Tokens of each completion under the policy's tokenizer; rows are completions, prompt by prompt.
            truncated: Whether it was cut at the limit instead of ending by itself.
            reread: Replaces what the source says; latents stay those of the source, as the responses that they are compared
                with have no others.

        Raises:
            RewardError: When the source or a component gives no usable number, or has no weight for a class.
            ValueError: When a component asks for what the source does not have, for example members or latents.
        """

        def work() -> Rewards:
            return self.unwhitened(prompts, texts, lengths, truncated, reread=reread)

        found = work() if self.gather is None else all_or_none(self.gather.accelerator, work)
        if not self.whiten:
            return found
        batch = found.reward if self.gather is None else self.gather(found.reward)
        return found._replace(reward=whitened(found.reward, batch))

    def unwhitened(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[Sequence[str]],
        lengths: Int[Tensor, " rows"],
        truncated: Bool[Tensor, " rows"],
        *,
        reread: Callable[[Scores], RewardOutput] | None = None,
    ) -> Rewards:
        """The rewards of completions that stand alone, outside a step, in this process; see `__call__`."""
        scores = self.source([prompt.text for prompt in prompts], texts, [prompt.extra for prompt in prompts])
        output = scores.output
        if reread is not None:
            output = reread(scores)._replace(latent=output.latent)
        completions = Completions(prompts, texts, lengths, truncated, output)
        raw = {each.name: each.values(completions) for each in self.components}
        parts = {each.name: each.weights(completions) * raw[each.name] for each in self.components}
        total = torch.stack(list(parts.values())).sum(0)
        if not bool(total.isfinite().all()):  # finite values, and weights that are too much for float32
            raise RewardError(
                f"the sum of {', '.join(parts)} is not finite in {int((~total.isfinite()).sum())} of {len(total)} rows, expected "
                "a finite reward; lower the weights"
            )
        limited = total if self.clip is None else total.clamp(-self.clip, self.clip)
        return Rewards(limited, parts, raw, limited != total, output, scores.embedding, scores.cut)


def whitened(rows: Float[Tensor, " rows"], batch: Float[Tensor, " batch"]) -> Float[Tensor, " rows"]:
    """The rows in population standard deviations of the batch from the batch's mean.

    Statistics are in float64. A batch without spread (a standard deviation of at most 1e-6 of its largest absolute value, about
    the resolution of float32) gives 0 for every row: dividing by it would turn rounding into rewards.

    Args:
        rows: What to whiten.
        batch: What mean and standard deviation are of; the rows are part of it.

    Returns:
        Float32 like the rows; over the batch, mean 0 and population standard deviation 1.
    """
    values = batch.double()
    std = values.std(correction=0)
    if float(std) <= 1e-6 * float(values.abs().max()):
        return torch.zeros_like(rows)
    return ((rows.double() - values.mean().to(rows.device)) / std.to(rows.device)).to(rows)
