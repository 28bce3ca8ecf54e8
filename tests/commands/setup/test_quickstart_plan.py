"""What the quickstart says before it begins is counted, not guessed."""

from __future__ import annotations

import pytest

from rewarden.commands.measure import EvaluationData
from rewarden.commands.setup.quickstart_plan import Cut, Plan, plan
from rewarden.hf.tokens import Limits


def made_up(training: Cut, **evaluation: Cut) -> Plan:
    return Plan([], EvaluationData(), training, evaluation)


def test_every_set_that_is_cut_is_named_in_one_line() -> None:
    whole, cut = Cut(10, 0, 100, 20), Cut(300, 284, 100, 600)
    said = made_up(whole, arena=cut, **{"hh": whole, "best-of-n": Cut(729, 625, 100, 729)}).says_what_is_cut(192)
    assert "cut to 192 tokens" in said
    assert "284 of 300 pairs of arena and 625 of 729 best-of-n answers lose their ends" in said
    assert "hh" not in said
    assert "training" not in said
    assert "\n" not in said
    assert made_up(whole, arena=whole).says_what_is_cut(192) == "All completions are taken whole."


def test_twice_the_text_and_half_the_cores_take_longer() -> None:
    small, large = Cut(1, 0, 100_000, 1_000), Cut(1, 0, 200_000, 2_000)
    one = made_up(small, x=small).seconds(3, 1.0, 2)
    assert made_up(large, x=large).seconds(3, 1.0, 2) == pytest.approx(2 * one)
    assert made_up(small, x=small).seconds(3, 1.0, 1) == pytest.approx(1.85 * one)


@pytest.mark.slow
def test_the_bundled_data_as_they_are() -> None:
    found = plan("rewarden-tiny", Limits(512, 192), 20)
    assert len(found.rows) == found.training.rows == 20
    assert (found.evaluation["arena"].rows, found.evaluation["arena"].cut) == (300, 284)
    assert (found.evaluation["best-of-n"].rows, found.evaluation["best-of-n"].cut) == (729, 625)
    whole = plan("rewarden-tiny", Limits(4096), 20)
    assert whole.says_what_is_cut(4096) == "All completions are taken whole."
    assert whole.material.completions == found.material.completions


@pytest.mark.parametrize("pairs", [0, 1601])
def test_pairs_that_are_not_there_are_refused(pairs: int) -> None:
    with pytest.raises(ValueError, match="there are 1,600 training pairs, so give 1 to 1600"):
        plan("rewarden-tiny", Limits(512, 192), pairs)
