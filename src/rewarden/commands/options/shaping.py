"""Which number a model's output becomes: the options of `--shaping`, shared by every command that reads rewards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rewarden.shaping import Shaping


@dataclass(frozen=True, kw_only=True)
class ShapingOptions:
    """From a model's output to one reward."""

    shaping: Literal["nominal", "mean", "worst", "uwo", "lcb", "mix"] = "nominal"
    """From members to the reward: the model's own (of several models their mean), the members' mean, the lowest member, the
    mean less a penalty x variance (uwo) or x standard deviation (lcb), or a mix of nominal and worst."""
    nominal_weight: float | None = None
    """Weight of the nominal reward in the mix, from 0 to 1; needed with --shaping mix, refused without."""
    penalty: float | None = None
    """Of --shaping uwo (per reward unit, default 0.5) and lcb (a number of standard deviations, default 1); refused without."""
    variance: Literal["population", "unbiased"] | None = None
    """Of --shaping uwo and lcb: over k members (default), or over k - 1, which is k / (k - 1) times as much; refused without."""

    def chosen_shaping(self) -> Shaping:
        """The shaping that the options describe.

        Raises:
            ValueError: When options do not fit together, or would do nothing.
        """
        from rewarden import shaping

        if (self.shaping == "mix") != (self.nominal_weight is not None):
            raise ValueError("--nominal-weight belongs to --shaping mix: give both or neither")
        given = {"penalty": self.penalty, "variance": self.variance}
        given = {name: value for name, value in given.items() if value is not None}
        penalised: dict[str, Shaping] = {"uwo": shaping.uwo, "lcb": shaping.lcb}
        if given and self.shaping not in penalised:
            raise ValueError(
                f"--{next(iter(given))} belongs to --shaping uwo and lcb, and --shaping is {self.shaping}; change one of them"
            )
        if self.shaping in penalised:
            return partial(penalised[self.shaping], **given)
        if self.nominal_weight is not None:
            return partial(shaping.mix, nominal_weight=self.nominal_weight)
        plain: dict[str, Shaping] = {"nominal": shaping.nominal, "mean": shaping.mean, "worst": shaping.worst}
        return plain[self.shaping]
