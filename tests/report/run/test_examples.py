from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rewarden.report.run import examples
from rewarden.report.run.examples import ReferenceAnswers
from rewarden.report.run.folder import read_columns, read_run

EVIL = "</div><script>alert(1)</script>"


def written(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def row(prompt: str, completion: str, **numbers: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **numbers}


def test_steps_are_spread_and_hold_the_wanted_ones() -> None:
    assert examples.chosen_steps([3, 5], [4, None]) == [3, 5]
    assert examples.chosen_steps([], [4]) == []
    assert examples.chosen_steps(range(1, 102), [None, 60, 55, 999]) == [1, 21, 41, 55, 60, 61, 81, 101]


def test_the_signal_is_the_first_that_there_is() -> None:
    reference = ReferenceAnswers.of([row("p", "r", reward=1.0), row("p", "s", reward=3.0), row("q", "t", reward=-5.0)])
    rows = [row("p", "a", reward=3.0), row("q", "b", reward=0.0), row("p", "c", reward=2.5)]

    def order(rows: list[dict[str, Any]], reference: ReferenceAnswers) -> tuple[str, list[str]]:
        name, found = examples.most_outlying(rows, reference)
        return name.split()[0], [each["completion"] for each in found]

    # Gains: 3 - 2, 0 + 5, and the second of prompt p is left out.
    assert order(rows, reference) == ("reward", ["b", "a"])
    assert examples.most_outlying(rows, reference)[0].startswith("reward gained")
    nothing = ReferenceAnswers.of([])
    assert order(rows, nothing) == ("reward", ["a", "b"])
    unsure = [each | {"uncertainty": u} for each, u in zip(rows, (0.1, None, 0.2), strict=True)]
    assert order(unsure, nothing) == ("uncertainty", ["c", "b"])
    far = [each | {"latent_distance": d} for each, d in zip(unsure, (float("nan"), 1.0, 0.5), strict=True)]
    assert order(far, reference) == ("latent", ["b", "c"])
    assert examples.most_outlying([], nothing)[1] == []


def test_gain_and_place_among_the_reference_by_hand() -> None:
    reference = ReferenceAnswers.of(
        [row("p", "r", reward=1.0, latent_distance=2.0), row("p", "s", reward=2.0, latent_distance=4.0)]
    )
    assert reference.gain(row("p", "a", reward=4.0)) == 2.5
    assert reference.gain(row("other", "a", reward=4.0)) is None
    assert reference.below(3.0) == "farther out than 1 of 2 reference responses"
    assert reference.below(2.0) == "farther out than 0 of 2 reference responses"
    assert reference.below(None) == ReferenceAnswers.of([]).below(1.0) == ""


def test_turns_are_the_same_however_they_are_spaced() -> None:
    turns = [{"role": "user", "content": "Hi [1]"}]
    reference = ReferenceAnswers.of([row(json.dumps(turns, indent=1), "r")])
    assert len(reference.to(json.dumps(turns))) == 1
    assert len(reference.to("Hi [1]")) == 0


def test_outlying_completions_beside_reference_responses(hacked_run: Path, read_page: Callable[..., Any]) -> None:
    text = examples.examples(read_run(hacked_run))
    assert re.findall(r"data-moment=\"moment-(\d+)\"", text) == ["1", "20", "40", "60", "80", "100", "120"]
    assert "step 60 · first alarm" in text
    last = text.split("id=moment-120>")[1]
    rows = read_columns(hacked_run / "rollouts" / "step-000120.parquet")
    expected = sorted(rows, key=lambda each: -each["latent_distance"])
    first = expected[0]
    page = read_page(last.removesuffix("</div>")).text
    assert page.index(first["completion"]) < min(page.index(each) for each in prompts_after(expected))
    numbers = "\n".join(
        f"{first[key]:.3f}" for key in ("reward", "reward_quality", "latent_distance", "kl", "uncertainty")
    )
    for number in numbers.split():
        assert number in page
    reference = read_columns(hacked_run / "reference" / "responses.parquet")
    beside = [each for each in reference if each["prompt"] == first["prompt"]]
    assert [each["completion"] in last for each in beside] == [True, True, False, False]
    assert "(2 of its 4 responses)" in page


def prompts_after(rows: list[dict[str, Any]]) -> list[str]:
    """The most outlying completions of the second and the third prompt."""
    best: dict[str, str] = {}
    for each in rows:
        best.setdefault(each["prompt"], each["completion"])
    return list(best.values())[1:3]


def test_hostile_texts(tmp_path: Path, read_page: Callable[..., Any]) -> None:
    turns = json.dumps([{"role": EVIL, "content": EVIL}])
    numbers = {"reward": 1.0, f"reward_{EVIL}": 1.0}
    written(tmp_path / "rollouts" / "step-000001.parquet", row(EVIL, EVIL, **numbers), row(turns, EVIL, **numbers))
    written(tmp_path / "reference" / "responses.parquet", row(EVIL, EVIL))
    text = examples.examples(read_run(tmp_path))
    assert "<script" not in text
    assert (
        read_page(text).text.count(EVIL) == 8
    )  # 2 prompts, a role, 2 completions, a reference, 2 names of a component


def test_without_reference_and_without_rollouts(tmp_path: Path) -> None:
    assert "no rollouts" in examples.examples(read_run(tmp_path))
    written(tmp_path / "rollouts" / "step-000001.parquet", row("p", "a", reward=1.0))
    assert "None are stored." in examples.examples(read_run(tmp_path))
    written(tmp_path / "reference" / "responses.parquet", row("q", "b", latent_distance=None))
    assert "It was not asked this." in examples.examples(read_run(tmp_path))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    written(tmp_path / "rollouts" / "step-000001.parquet", row("p", "a", reward=1.0))
    (tmp_path / "rollouts" / "step-000002.parquet").write_bytes(b"PAR1 and then nothing")
    text = examples.examples(read_run(tmp_path))
    assert "step-000002.parquet is left out" in text
    assert "1 of 2 steps with rollouts are shown." in text
    (tmp_path / "rollouts" / "step-000001.parquet").unlink()
    assert "hold no completions" in examples.examples(read_run(tmp_path))


def test_few_files_are_opened(make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, steps=30, alarm=None, rollouts_every=1)
    opened = []

    def read(path: Path, columns: Any = None) -> list[dict[str, Any]]:
        opened.append(path.name)
        return read_columns(path, columns)

    monkeypatch.setattr(examples, "read_columns", read)
    text = examples.examples(read_run(run))
    assert len(opened) == 1 + examples.STEPS
    assert "6 of 30 steps with rollouts are shown." in text
