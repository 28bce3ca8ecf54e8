"""A reward source whose latents come from another model: what watches latents then works with any reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewarden.align.rewards.sources import RewardSource, Scores
from rewarden.messages import Text


@dataclass(frozen=True)
class DetectedSource:
    """The source's word with the detector's latents.

    The detector stays as it is while the source may learn, so what was measured at the start can still be compared with.

    Raises:
        ValueError: When the detector has no latents.
    """

    source: RewardSource
    detector: RewardSource
    has_latents: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not self.detector.has_latents:
            raise ValueError("this model has no latents to watch; train one with `rewarden train ... info-bottleneck`")

    @property
    def record(self) -> dict[str, Any]:
        """The source's."""
        return self.source.record

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Sequence[str]], extras: Sequence[Mapping[str, Any]]
    ) -> Scores:
        """See `RewardSource.__call__`."""
        found = self.source(prompts, completions, extras)
        latent = self.detector(prompts, completions, extras).output.latent
        return found._replace(output=found.output._replace(latent=latent))
