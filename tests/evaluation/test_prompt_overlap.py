from __future__ import annotations

from typing import Any

from rewarden.data import Pair, load_pairs
from rewarden.evaluation.prompt_overlap import (
    between,
    distinct_prompts,
    near_within,
    prompt_text,
)


def pairs(*rows: tuple[str, str, str]) -> list[Pair]:
    return load_pairs([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])


def both(first: list[Pair], second: list[Pair], near: float = 0.8) -> dict[str, Any]:
    return between(first, second, (distinct_prompts(first), distinct_prompts(second)), near=near)


LONG = "one two three four five six seven eight nine ten"


def test_distinct_prompts_ignore_case_and_punctuation() -> None:
    found = distinct_prompts(pairs(("Why?", "a", "b"), ("why", "c", "d"), ("How?", "e", "f")))
    assert [(prompt.text, prompt.pairs) for prompt in found.values()] == [("Why?", 2), ("How?", 1)]
    assert [prompt.rows for prompt in found.values()] == [[1, 2], [3]]


def test_the_prompt_of_a_conversation_is_what_the_user_says() -> None:
    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Why?")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    (pair,) = load_pairs([{"prompt": prompt, "chosen": "a", "rejected": "b"}])
    assert prompt_text(pair) == "Hello\nWhy?"
    (whole,) = load_pairs([{"chosen": "Q: A", "rejected": "Q: B"}])
    assert prompt_text(whole) == "Q: "
    (unrelated,) = load_pairs([{"chosen": "A", "rejected": "B"}])
    assert prompt_text(unrelated) == "A"


def test_near_duplicates_within_a_file() -> None:
    rows = pairs((LONG, "a", "b"), (LONG + " eleven", "a", "b"), (LONG + " eleven", "c", "d"), ("other", "a", "b"))
    found = near_within(distinct_prompts(rows), near=0.9)
    assert {key: found[key] for key in ("prompts", "pairs", "matches")} == {"prompts": 2, "pairs": 3, "matches": 1}
    assert found["examples"] == [{"similarity": 10 / 11, "first": LONG, "second": LONG + " eleven", "rows": [1, 2]}]
    assert (found["clusters"], found["largest"]) == (1, 2)
    assert found["shown"] == [{"prompts": 2, "rows": [1, 2], "text": LONG}]
    assert (found["skipped"], found["bounded"]) == (0, 0)
    assert near_within(distinct_prompts(rows), near=0.92)["matches"] == 0


def test_examples_are_the_five_most_similar_and_cut() -> None:
    base = [f"w{number}" for number in range(100)]
    rows = pairs(*[(" ".join(base[: 100 - number]), "a", "b") for number in range(5)])
    found = near_within(distinct_prompts(rows), near=0.9)
    assert found["matches"] == 10
    assert len(found["examples"]) == 5
    similarities = [example["similarity"] for example in found["examples"]]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == 99 / 100
    assert {len(example["first"]) for example in found["examples"]} == {200}


def test_between_files_by_hand() -> None:
    first = pairs(("Same?", "a", "b"), ("Same?", "c", "d"), (LONG, "a", "b"), ("alone", "x", "y"))
    second = pairs(("same", "a", "b"), ("Same?", "d", "c"), ("Same?", "a", "b"), (LONG + " eleven", "a", "b"))
    found = both(first, second)
    assert found["prompts"] == 1
    assert found["pairs"] == [2, 3]
    assert found["same_pairs"] == 1  # "same" and "Same?" are one prompt, but not the same pair
    assert found["contradictory_pairs"] == 1
    assert found["named"] == {
        "prompts": [{"rows": [[1, 2], [1, 2, 3]], "text": "Same?"}],
        "same_pairs": [{"rows": [[1], [3]]}],
        "contradictory_pairs": [{"rows": [[2], [2]]}],
    }
    near = found["near"]
    assert (near["prompts"], near["pairs"], near["matches"]) == ([1, 1], [1, 1], 1)
    assert near["examples"][0]["second"] == LONG + " eleven"
    assert near["examples"][0]["rows"] == [3, 4]


def test_shared_prompts_are_not_counted_again_as_near() -> None:
    first, second = pairs((LONG, "a", "b")), pairs((LONG.upper(), "a", "b"), (LONG + " eleven", "c", "d"))
    near = both(first, second)["near"]
    assert (near["prompts"], near["matches"]) == ([1, 1], 1)
    assert both(first, first)["near"]["matches"] == 0
