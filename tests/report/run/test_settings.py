from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarden.report.run import settings
from rewarden.report.run.folder import RunFolder, read_run

EVIL = "<img src=x onerror=alert(1)>"


def run_of(*steps: dict[str, Any], record: dict[str, Any] | None = None) -> RunFolder:
    return RunFolder(Path("run"), list(steps), record or {}, {}, ())


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in some HTML, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_metrics_of_r2m_by_hand() -> None:
    run = run_of({"step": 1, "r2m/gre": 1.5, "kl": 7.0}, {"step": 2, "r2m/gre": 0.5}, {"step": 3, "r2m/gre": 4.0})
    head, *rows = cells(settings.r2m(run))
    assert head == ["metric", "first", "last", "lowest", "highest", "mean", "steps"]
    assert rows == [["gre", "1.500", "4.000", "0.500", "4.000", "2.000", "3"]]
    assert cells(settings.numbers(run))[1:] == [
        ["kl", settings.meaning("kl"), "7.000", "7.000", "7.000", "7.000", "7.000", "1"]
    ]
    assert settings.r2m(run_of({"step": 1, "kl": 1.0})) == settings.numbers(run_of({"step": 1})) == ""


def test_time_by_hand() -> None:
    rows = cells(
        settings.timing(run_of(*({"step": s, "seconds": each} for s, each in enumerate([9.0, 1.0, 2.0, 4.0]))))
    )
    assert rows[1:] == [
        ["all logged steps", "16.000"],
        ["a step: median", "3.000"],
        ["a step: mean", "4.000"],
        ["first step", "9.000"],
        ["slowest step", "9.000"],
    ]
    assert settings.timing(run_of({"step": 1})) == ""


def test_the_command_is_rebuilt_from_arguments() -> None:
    arguments = {
        "policy": "a b", "lr": 3e-5, "kl_weight": 0.0, "r2m": True, "resume": False, "stop_on": None,
        "names": ["x", "y"], "none": [], "sampling": {"top_p": 0.9},
    }  # fmt: skip
    expected = """rewarden align --policy 'a b' --lr 3e-05 --kl-weight 0.0 --r2m --no-resume --names x y --sampling.top-p 0.9"""
    assert settings.command({"arguments": arguments}) == expected
    assert settings.command({}) == settings.command({"arguments": {}}) == settings.command({"arguments": "x"}) == ""


def test_the_command_that_was_typed_wins() -> None:
    words = ["rewarden", "align", "--policy", "it's; rm -rf"]
    assert shlex.split(settings.command({"command": words, "arguments": {"x": 1}})) == words
    assert settings.command({"command": "rewarden align --x"}) == "rewarden align --x"


def test_everything_in_the_record_is_on_the_page(hacked_run: Path, read_page: Callable[..., Any]) -> None:
    text = read_page(settings.settings(read_run(hacked_run))).text
    shown = [
        "rewarden-tiny",
        "prompts.jsonl",
        "3e-05",
        "20240611",
        "BradleyTerry",
        "RLOO",
        "clip_low",
        "0.2",
        "2.99.1",
        "–",
    ]
    assert [each for each in shown if each not in text] == []
    assert "rewarden align --policy rewarden-tiny --reward runs/standard" in text


def test_nested_records_and_plain_entries() -> None:
    record = {"algorithm": "rloo", "reward": {"method": {"method": "Ensemble", "members": [1, 2]}, "empty": {}}}
    rows = cells(settings.settings(run_of(record=record)))
    assert rows[1:] == [
        ["algorithm", "rloo"],
        ["method.method", "Ensemble"],
        ["method.members", "[1, 2]"],
        ["empty", "{}"],
    ]
    assert "There is no run.json" in settings.settings(run_of())


def test_escaping() -> None:
    record = {EVIL: EVIL, "arguments": {EVIL: EVIL, "b": {EVIL: [EVIL]}}, "command": EVIL}
    run = run_of({"step": 1, EVIL: 1.0, f"r2m/{EVIL}": 2.0}, record=record)
    text = settings.settings(run) + settings.r2m(run) + settings.numbers(run)
    assert EVIL not in text
    assert "<img" not in text


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("kl", "estimated KL to the starting policy, nats a completion"),
        ("held_out/gold", "on held-out prompts: mean of the independent judge"),
        ("monitor/mop/fraction", "a reading of the monitor mop"),
        ("reward_length_penalty", "a part of the reward"),
        ("unheard_of", ""),
    ],
)
def test_a_metric_is_explained_in_a_few_words(key: str, said: str) -> None:
    assert settings.meaning(key) == said
