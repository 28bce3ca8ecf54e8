"""Which pairs models rank most wrongly: what a reader looks at to see what stands behind an accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rewarden.report.models.worst import WorstPair

if TYPE_CHECKING:
    from rewarden.commands.measure import EvaluationData, Measured


def worst_pairs(material: EvaluationData, measured: Mapping[str, Measured], count: int = 10) -> list[WorstPair]:
    """The pairs of all sets whose rejected completion is furthest ahead of the chosen one.

    Gaps of a model are measured in their own root mean square, so that models with different reward scales have an equal say.

    Args:
        material: Where the texts are.
        measured: By model, with a row for every pair in the order of the sets.
        count: How many at most.

    Returns:
        The worst first; only pairs that the models rank wrongly on average.
    """
    pairs = [(name, pair) for name, own in material.sets.items() for pair in own]
    gaps = {label: [row["gap"] for row in each.pairs] for label, each in measured.items()}
    scale = {label: (sum(gap * gap for gap in own) / max(1, len(own))) ** 0.5 or 1.0 for label, own in gaps.items()}
    score = [sum(own[place] / scale[label] for label, own in gaps.items()) for place in range(len(pairs))]
    rows = next(iter(measured.values())).pairs
    found = []
    for place in sorted((place for place in range(len(pairs)) if score[place] < 0), key=score.__getitem__)[:count]:
        name, pair = pairs[place]
        row = rows[place]
        found.append(
            WorstPair(
                set=name,
                where=pair.where,
                prompt=pair.prompt,
                chosen=pair.chosen,
                rejected=pair.rejected,
                gaps={label: own[place] for label, own in gaps.items()},
                lengths=(row["chosen_length"], row["rejected_length"]),
                truncated=any(each.pairs[place]["truncated"] for each in measured.values()),
            )
        )
    return found
