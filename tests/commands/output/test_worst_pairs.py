from __future__ import annotations

from rewarden.commands.measure import EvaluationData, Measured
from rewarden.commands.output.worst_pairs import worst_pairs
from rewarden.data import Pair, load_pairs


def pairs(count: int) -> list[Pair]:
    return load_pairs([{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(count)])


def measured(*gaps: float, truncated: int = -1) -> Measured:
    rows = [
        {"gap": gap, "chosen_length": 1, "rejected_length": 2, "truncated": place == truncated}
        for place, gap in enumerate(gaps)
    ]
    return Measured({}, rows, {}, {})


def test_the_worst_come_first_over_all_sets_and_right_ones_are_left_out() -> None:
    material = EvaluationData({"x": pairs(2), "y": pairs(2)})
    found = worst_pairs(material, {"m": measured(-1.0, 2.0, -3.0, 0.5, truncated=2)})
    assert [(each.set, each.prompt, each.gaps) for each in found] == [
        ("y", "p0", {"m": -3.0}),
        ("x", "p0", {"m": -1.0}),
    ]
    assert [each.truncated for each in found] == [True, False]
    assert found[0].lengths == (1, 2)


def test_models_have_an_equal_say_whatever_their_scale() -> None:
    material = EvaluationData({"x": pairs(2)})
    found = worst_pairs(material, {"small": measured(-0.1, 0.1), "large": measured(-10.0, -1.0)})
    assert [each.prompt for each in found] == ["p0"]  # p1: +1.0 for the small one, -0.14 for the large one


def test_no_more_than_asked_for() -> None:
    assert len(worst_pairs(EvaluationData({"x": pairs(12)}), {"m": measured(*[-1.0] * 12)})) == 10
    assert worst_pairs(EvaluationData(), {"m": measured()}) == []
