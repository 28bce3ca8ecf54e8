"""Answers on the disk: what was kept comes back, what was cut short does not, and no secret is in it."""

import logging
import math

import pytest

from rewarden.judging.answers import Answer
from rewarden.judging.kept_answers import KeptAnswers, question_key

ANSWERS = {
    "a": Answer(0, (-0.125, -math.inf), -2.5),
    "b": Answer(1),
    "c": Answer(None, (-1.0, -1.0), -9.0, True),
}


def test_answers_come_back(tmp_path) -> None:
    kept = KeptAnswers(tmp_path / "more" / "answers.jsonl")
    for key, answer in ANSWERS.items():
        assert kept.get(key) is None
        kept.add(key, answer)
    again = KeptAnswers(kept.path)  # without closing: a killed process does not
    assert {key: again.get(key) for key in ANSWERS} == ANSWERS
    assert (len(again), again.reused) == (3, 3)


def test_a_line_that_was_cut_short_is_asked_again(tmp_path, caplog) -> None:
    kept = KeptAnswers(tmp_path / "answers.jsonl")
    for key, answer in ANSWERS.items():
        kept.add(key, answer)
    kept.close()
    kept.path.write_bytes(kept.path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        again = KeptAnswers(kept.path)
    assert (again.get("b"), again.get("c")) == (ANSWERS["b"], None)
    assert "1 damaged lines are left out" in caplog.text
    again.add("c", ANSWERS["c"])
    again.close()
    assert KeptAnswers(kept.path).get("c") == ANSWERS["c"]


def test_the_key_of_a_question_says_who_is_asked_what() -> None:
    record, template = {"url": "http://h/v1", "model": "m", "extra": {}}, {"user": "{prompt}"}
    usual = question_key(record, template, "p", ("c",))
    others = [
        question_key(record | {"model": "n"}, template, "p", ("c",)),
        question_key(record | {"extra": {"seed": 1}}, template, "p", ("c",)),
        question_key(record, {"user": "Now: {prompt}"}, "p", ("c",)),
        question_key(record, template, "q", ("c",)),
        question_key(record, template, "p", ("c", "d")),
    ]
    assert usual == question_key(dict(record), dict(template), "p", ("c",))
    assert len({usual, *others}) == 6


def test_another_file_of_that_name_is_left_alone(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "mine"}\n')
    with pytest.raises(ValueError, match="holds something else than answers of a judge"):
        KeptAnswers(path)
    assert path.read_text() == '{"prompt": "mine"}\n'


def test_what_is_kept_in_words(tmp_path) -> None:
    kept = KeptAnswers(tmp_path / "answers.jsonl")
    assert kept.words() == ""
    kept.add("a", ANSWERS["a"])
    assert kept.words() == f". 1 answers are kept in {kept.path}; the same command goes on from there"


def test_a_file_that_is_removed_is_gone(tmp_path) -> None:
    kept = KeptAnswers(tmp_path / "answers.jsonl")
    kept.add("a", ANSWERS["a"])
    kept.remove()
    assert list(tmp_path.iterdir()) == []
    kept.remove()
