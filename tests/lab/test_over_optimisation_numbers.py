"""The numbers of the study of over-optimisation, on made-up runs whose answers are known, and its picture."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET

import pytest

import over_optimisation as study
import over_optimisation_numbers as numbers
import svg_lines
from rewarden.lab.gold import TERMS


def run(reward: float, quality: float, *, alarm: int | None = None, steps: int = 20) -> numbers.Steps:
    """A run whose reward and quality go in straight lines from 10 and -5, `reward` and `quality` a step."""
    return [
        {
            "step": step,
            "reward": 10 + reward * step,
            "reward_variance": 4.0,
            "quality": -5 + quality * step,
            "kl": 0.1 * step,
            "length": 40.0,
            "nats_per_character": math.nan if step == 20 else 2.0,
            **{f"quality/{name}": -1.0 for name in TERMS},
            **({"alarm": "!"} if step == alarm else {}),
        }
        for step in range(1, steps + 1)
    ]


def test_rewards_are_in_standard_deviations_of_the_start() -> None:
    found = numbers.standardised(run(2.0, 0.0))
    # The first five have mean 10 + 2 * 3 and standard deviation 2.
    assert [step["reward"] for step in found[:3]] == [-2, -1, 0]


def test_moments_are_means_of_five_steps() -> None:
    found = numbers.moments(run(1.0, -0.5, alarm=12))
    assert found["start"]["quality"] == pytest.approx(-5 - 0.5 * 3)
    assert found["end"]["quality"] == pytest.approx(-5 - 0.5 * 18)
    assert found["alarm"]["quality"] == pytest.approx(-5 - 0.5 * 10)
    assert found["alarm_step"] == 12
    assert found["change"]["quality"] == pytest.approx(-7.5)
    assert found["end"]["nats_per_character"] == 2  # the step without a number is left out
    assert math.isnan(found["end"]["monitor/mop/fraction"])
    assert numbers.moments(run(1.0, 0.0))["alarm"] is None


def test_the_budget_is_reached_when_the_mean_divergence_of_five_steps_is() -> None:
    found = numbers.moments([{**step, "kl": 2.0 * step["step"]} for step in run(1.0, -0.5)])
    # Steps 8 to 12 have 20 nats on average, steps 7 to 11 only 18.
    assert (found["budget_step"], found["budget"]["kl"]) == (12, pytest.approx(numbers.BUDGET))
    assert found["budget"]["quality"] == pytest.approx(-5 - 0.5 * 10)
    never = numbers.moments(run(1.0, 0.0))
    assert (never["budget_step"], never["budget"]) == (None, None)


def test_an_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, t(0.975; 2) = 4.3027.
    found = numbers.interval([1.0, 2.0, 3.0, math.nan])
    assert found == pytest.approx(
        {"value": 2, "low": 2 - 4.3027 / 3**0.5, "high": 2 + 4.3027 / 3**0.5, "seeds": 3}, abs=1e-4
    )
    assert numbers.interval([4.0]) == {"value": 4.0, "low": None, "high": None, "seeds": 1}
    assert numbers.interval([math.nan])["value"] is None


FOUND = {
    (method, noise, seed): run(1.0, slope + 0.01 * seed, alarm=9 if method == "standard" else None)
    for seed in (0, 1, 2)
    for method, noise, slope in (("standard", 0.25, -0.2), ("info-bottleneck", 0.25, 0.1), ("standard", 0.0, 0.0))
}


def test_differences_are_paired_by_seed() -> None:
    summary = numbers.summarise(FOUND)
    compared = {(*entry["left"], *entry["right"]): entry for entry in summary["differences"]}
    assert set(compared) == {
        ("info-bottleneck", 0.25, "standard", 0.25),
        ("standard", 0.25, "standard", 0.0),
    }
    # Slopes differ by 0.3 in every seed, so without spread; ends are 18 steps in, changes 15.
    entry = compared["info-bottleneck", 0.25, "standard", 0.25]
    assert entry["end"]["quality"]["value"] == pytest.approx(0.3 * 18)
    assert entry["change"]["quality"]["value"] == pytest.approx(0.3 * 15)
    assert entry["change"]["quality"]["high"] == pytest.approx(0.3 * 15)
    group = summary["groups"][0]
    assert (group["alarm_steps"], group["alarm"]["quality"]["seeds"]) == ([9, 9, 9], 3)
    assert summary["groups"][1]["alarm"]["quality"]["seeds"] == 0


def test_tables_show_every_group_and_mark_what_is_sure() -> None:
    summary = numbers.summarise(FOUND) | {"scale": {"real completions": -0.5, "admission": {}}}
    text = numbers.tables(summary)
    assert "| InfoRM 25% - Standard 25%, 3 | +0.00" in text
    assert "+4.50\\* [+4.50, +4.50]" in text
    assert "| Standard, 25% | never, never, never | 9, 9, 9 |" in text
    assert "| InfoRM, 25% | never, never, never | never, never, never |" in text
    assert "| real completions | -0.50 |" in text
    json.dumps(numbers._plain(summary), allow_nan=False)


def test_every_setting_has_a_look() -> None:
    assert set(numbers.LOOKS) == set(study.SETTINGS)
    names = [cell.name for cell in study.cells((0, 1, 2))]
    assert len(set(names)) == len(names) == 21


def test_the_picture_is_a_drawing_with_all_lines() -> None:
    root = ET.fromstring(numbers.picture(FOUND))
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Standard, 25% flipped", "InfoRM, 25% flipped", "Standard, 0% flipped"} <= set(names)
    lines = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke-width") == "1.8"]
    assert len(lines) == 3 * 3 + 3  # three panels, and the legend
    assert not any("nan" in (path.get("d") or "") for path in root.iter())


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (-0.31, 0.42, [-0.2, 0, 0.2, 0.4]),
        (3, 119, [20, 40, 60, 80, 100]),
        (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
    ],
)
def test_ticks_are_round(low: float, high: float, wanted: list[float]) -> None:
    assert svg_lines.ticks(low, high) == pytest.approx(wanted)


def test_a_constant_line_can_be_drawn() -> None:
    line = svg_lines.Line("a", "#000", [1.0, 2.0], [3.0, 3.0])
    assert "M52.0 " in svg_lines.figure([svg_lines.Panel("t", "x", "y", [line])], title="t")


def test_smoothing_is_a_mean_of_what_is_near() -> None:
    assert numbers.smoothed([0.0] * 4 + [9.0] + [0.0] * 4) == [1.8, 1.5, 9 / 7, 9 / 8, 1, 9 / 8, 9 / 7, 1.5, 1.8]


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "a\nb"),
        ("plain", "plain"),
        ("[1, 2]", "[1, 2]"),
        ("42", "42"),
        ("[]", "[]"),
    ],
)
def test_prompts_come_back_from_rollouts_as_text(kept: str, wanted: str) -> None:
    assert study.prompt_text(kept) == wanted
