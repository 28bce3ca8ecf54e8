"""What a page says first, in words that a reader can check against the numbers beside them."""

from __future__ import annotations

from typing import Any

import pytest

from rewarden.report.models.verdict import caveats, verdict


def one(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"accuracy": {"value": value, "low": low, "high": high}, "n_pairs": 400, "n_prompts": 400} | more


def by_length(longer: tuple[float, float, float, int], shorter: tuple[float, float, float, int]) -> dict[str, Any]:
    found = {
        name: {"n_pairs": n, "accuracy": {"value": value, "low": low, "high": high}}
        for name, (value, low, high, n) in {"chosen_longer": longer, "chosen_shorter": shorter}.items()
    }
    return {"by_length": found}


def against(p: float) -> dict[str, Any]:
    return {"kind": "set", "name": "x", "first": "a", "second": "b", "p_holm": p}


def test_one_model_stands_to_chance() -> None:
    sets = {"x": one(0.63, 0.58, 0.68), "y": one(0.31, 0.27, 0.35), "z": one(0.5, 0.4, 0.6)}
    assert verdict({"a": {"sets": sets}}) == [
        "On x a is above chance (63 %).",
        "On y a is below chance (31 %).",
        "On z a is not distinguishable from chance (50 %).",
    ]


def test_models_that_cannot_be_told_apart_are_said_to_be_so_first() -> None:
    models = {"a": {"sets": {"x": one(0.63, 0.58, 0.68)}}, "b": {"sets": {"x": one(0.61, 0.56, 0.66)}}}
    found = verdict(models, [against(0.4)])
    assert found == [
        "By paired tests the two models cannot be told apart on x.",
        "On x every model is above chance (61 % to 63 %).",
    ]


def test_who_leads_is_named_with_where() -> None:
    models = {"a": {"sets": {"x": one(0.7, 0.65, 0.75)}}, "b": {"sets": {"x": one(0.5, 0.45, 0.55)}}}
    assert verdict(models, [against(0.01)]) == [
        "By paired tests a is ahead of all others on x.",
        "On x a is above chance (70 %); b is not distinguishable from chance (50 %).",
    ]


def test_dependence_on_length_comes_before_the_accuracies() -> None:
    found = one(0.6, 0.55, 0.65) | by_length((0.8, 0.75, 0.85, 250), (0.3, 0.25, 0.35, 150))
    first = verdict({"a": {"sets": {"x": found}}})[0]
    assert first == (
        "What a prefers depends on length: on x, a is right in 80 % of the 250 pairs whose chosen completion is the longer one "
        "and in 30 % of the 150 where it is the shorter one."
    )


@pytest.mark.parametrize(
    "parts", [((0.8, 0.5, 0.9, 250), (0.6, 0.55, 0.65, 150)), ((0.9, 0.8, 1.0, 5), (0.1, 0.0, 0.2, 150))]
)
def test_no_word_about_length_where_intervals_meet_or_pairs_are_few(parts: Any) -> None:
    found = one(0.6, 0.55, 0.65) | by_length(*parts)
    assert verdict({"a": {"sets": {"x": found}}}) == ["On x a is above chance (60 %)."]


def test_the_gain_of_best_of_n_is_read_against_a_random_pick() -> None:
    best = {
        "n": [1, 8],
        "gain": {"value": 0.4, "low": 0.1, "high": 0.7},
        "n_prompts": 46,
        "n_responses": 700,
        "truncated": 600,
    }
    assert verdict({"a": {"best_of_n": best}}) == ["On best of n a is better than a random pick (+0.400)."]
    assert caveats({"a": {"best_of_n": best}}) == [
        "Cut to the length limits: 600 of the 700 answers of best of n. Models never saw the ends, which the labels rest on.",
        "The gain of best of n stands on 46 prompts: its interval is ± 0.30 gold points.",
    ]


def test_small_cut_and_lopsided_sets_are_said() -> None:
    right = {"n_pairs": 15, "n_prompts": 15, "truncated": 14, "ties": 2}
    found = one(1.0, 0.796, 1.0) | right | by_length((1.0, 0.796, 1.0, 15), (0.0, 0.0, 0.0, 0))
    assert caveats({"m": {"sets": {"x": found}}}) == [
        "Few data: x has 15 prompts. Small differences there mean nothing.",
        "Cut to the length limits: 14 of the 15 pairs of x. Models never saw the ends, which the labels rest on.",
        "In 100 % of the pairs of x the chosen completion is the longer one, so a model that only counts tokens "
        "scores 100 % there.",
        "Ties, which count as wrong: 2 of 15 on x by m.",
        "All of 15 right on x by m: the true share may be as low as 80 %.",
    ]


def test_nothing_stands_against_a_large_clean_set() -> None:
    found = one(0.6, 0.55, 0.65, truncated=3, ties=1) | by_length((0.6, 0.5, 0.7, 210), (0.6, 0.5, 0.7, 190))
    assert caveats({"m": {"sets": {"x": found}}}) == []


def test_nothing_measured_says_nothing() -> None:
    assert verdict({"a": {}}) == caveats({"a": {}}) == []
    assert verdict({"a": {}, "b": {}}) == []


def test_a_model_that_is_behind_is_never_called_level() -> None:
    models = {
        name: {"sets": {"x": one(value, value - 0.1, value + 0.1)}}
        for name, value in zip("abc", (0.7, 0.68, 0.4), strict=True)
    }
    pairs = [against(0.5), against(0.01) | {"second": "c"}]
    assert verdict(models, pairs)[0] == "By paired tests no model is ahead of all others on anything; c is behind on x."
