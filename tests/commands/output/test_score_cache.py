from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rewarden.commands.options.scoring import ScoringOptions
from rewarden.commands.output.score_cache import ScoreCache, identity
from rewarden.hf.scoring.scorer import CompletionScore


@dataclass
class Counting:
    """Scores completions by their length, and counts what it was asked."""

    asked: int = 0
    record: dict = field(default_factory=lambda: {"method": "Counting"})

    def __call__(self, _prompts, completions, *, progress=None):
        self.asked += 1
        if progress is not None:
            progress(sum(map(len, completions)))
        return [
            [CompletionScore(len(c) / 3, 0.1 * len(c), len(c) > 3, len(c), (0.1, 0.2)) for c in group]
            for group in completions
        ]


PROMPTS, COMPLETIONS = ["p", "q"], [["a", "bbb"], ["cccc"]]


def test_kept_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    inner = Counting()
    first = ScoreCache(inner, tmp_path / "new", "id", reuse=True)
    scores = first(PROMPTS, COMPLETIONS)
    ticks: list[int] = []
    assert first(PROMPTS, COMPLETIONS, progress=ticks.append) == scores
    assert inner.asked == 1
    assert ticks == [3]
    assert scores[0][1] == CompletionScore(1.0, 0.1 * 3, False, 3, (0.1, 0.2))
    assert isinstance(first(PROMPTS, COMPLETIONS)[0][0], CompletionScore)
    assert first.record == {"method": "Counting"}


def test_other_texts_other_models_and_fresh_runs_are_scored(tmp_path: Path) -> None:
    inner = Counting()
    kept = ScoreCache(inner, tmp_path, "id", reuse=True)
    kept(PROMPTS, COMPLETIONS)
    kept(["p", "other"], COMPLETIONS)
    kept(PROMPTS, [["a"], ["bbb", "cccc"]])  # the same texts, grouped otherwise
    replace(kept, identity="another")(PROMPTS, COMPLETIONS)
    replace(kept, reuse=False)(PROMPTS, COMPLETIONS)
    assert inner.asked == 5
    assert len(list(tmp_path.iterdir())) == 4


def test_scores_without_members(tmp_path: Path) -> None:
    class Plain(Counting):
        def __call__(self, _prompts, completions, **_):
            return [[CompletionScore(1.0)] for _ in completions]

    kept = ScoreCache(Plain(), tmp_path, "id", reuse=True)
    assert kept(["p"], [["a"]]) == kept(["p"], [["a"]]) == [[CompletionScore(1.0, None, False, 0, None)]]


def test_an_interrupted_call_leaves_nothing(tmp_path: Path) -> None:
    class Failing(Counting):
        def __call__(self, _prompts, _completions, **_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ScoreCache(Failing(), tmp_path, "id", reuse=True)(PROMPTS, COMPLETIONS)
    assert list(tmp_path.iterdir()) == []


def test_identity_depends_on_weights_and_options_and_not_on_the_log(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "training.json"):
        (tmp_path / name).write_text(name)
    options = ScoringOptions()
    before = identity([tmp_path], options)
    (tmp_path / "training.json").write_text("another log")
    assert identity([tmp_path], options) == before
    assert identity([tmp_path], replace(options, shaping="worst")) != before
    (tmp_path / "model.safetensors").write_text("other weights")
    assert identity([tmp_path], options) != before


@pytest.mark.parametrize(
    "harm",
    [
        "",
        lambda text: text[: len(text) // 2],
        "[]",
        "{}",
        "null",
        lambda text: text.replace('"reward"', '"reword"'),
        lambda text: text.replace("0.3333333333333333", '"much"'),
        lambda text: text.replace("0.3333333333333333", "null"),
        "[[], []]",
        "[" * 100_000,
        "\udcff",
    ],
)
def test_damaged_scores_are_computed_again_and_that_is_said(tmp_path: Path, capsys, harm) -> None:
    inner = Counting()
    kept = ScoreCache(inner, tmp_path, "id", reuse=True)
    scores = kept(PROMPTS, COMPLETIONS)
    (path,) = tmp_path.iterdir()
    path.write_text(harm if isinstance(harm, str) else harm(path.read_text()), errors="surrogateescape")
    assert kept(PROMPTS, COMPLETIONS) == scores
    assert inner.asked == 2
    assert f"{path}: the scores that were kept here are damaged" in capsys.readouterr().err
    assert kept(PROMPTS, COMPLETIONS) == scores  # and kept anew
    assert inner.asked == 2


def test_what_is_no_text_is_damage_too(tmp_path: Path) -> None:
    inner = Counting()
    ScoreCache(inner, tmp_path, "id", reuse=True)(PROMPTS, COMPLETIONS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"\xff\xfe")
    ScoreCache(inner, tmp_path, "id", reuse=True)(PROMPTS, COMPLETIONS)
    assert inner.asked == 2


def test_a_marker_is_no_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("w")
    before = identity([tmp_path], ScoringOptions())
    (tmp_path / ".rewarden.json").write_text("{}")
    assert identity([tmp_path], ScoringOptions()) == before
