from __future__ import annotations

from rewarden.data import Pair, load_pairs, pair_key
from rewarden.evaluation.faulty_rows import REASONS, FaultyRows, clean


def pairs(*rows: tuple[str, str, str]) -> list[Pair]:
    return load_pairs([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])


MIXED = pairs(
    ("p", "a", "b"),  # row 1: both ways with 3
    ("p", "t", "t"),  # a tie, twice
    ("p", "b", "a"),
    ("p", "t", "t"),
    ("q", "a", "b"),  # equal to 6 and 8
    ("q", "a", "b"),
    ("Q", "a", "b"),  # another spelling is another pair
    ("q", "a", "b"),
    ("p", "a", "b"),  # repeats row 1
)


def test_faulty_rows_by_hand() -> None:
    found = FaultyRows.of(MIXED)
    assert found.ties == [1, 3]
    assert found.equal == [[0, 8], [1, 3], [4, 5, 7]]
    assert found.both_ways == [([0, 8], [2])]
    assert found.repeats == [3, 5, 7, 8]
    assert found.contradictory == [0, 2, 8]
    assert found.named(MIXED) == {
        "ties": {"count": 2, "rows": [2, 4]},
        "repeats": {
            "groups": 3,
            "shown": [
                {"count": 2, "rows": [1, 9], "prompt": "p"},
                {"count": 2, "rows": [2, 4], "prompt": "p"},
                {"count": 3, "rows": [5, 6, 8], "prompt": "q"},
            ],
        },
        "both_ways": {
            "groups": 1,
            "shown": [{"one": {"count": 2, "rows": [1, 9]}, "other": {"count": 1, "rows": [3]}, "prompt": "p"}],
        },
    }


def test_no_more_than_twenty_are_named_and_all_are_counted() -> None:
    many = pairs(*[("p", "t", "t")] * 50, *[(f"q{number // 2}", "a", "b") for number in range(60)])
    named = FaultyRows.of(many).named(many)
    assert (named["ties"]["count"], len(named["ties"]["rows"])) == (50, 20)
    assert (named["repeats"]["groups"], len(named["repeats"]["shown"])) == (31, 20)
    assert (named["repeats"]["shown"][0]["count"], len(named["repeats"]["shown"][0]["rows"])) == (50, 20)


def test_a_clean_file_has_the_first_of_equal_pairs_and_neither_of_opposite_ones() -> None:
    kept, left_out = clean(MIXED, FaultyRows.of(MIXED))
    assert kept == [4, 6]
    assert left_out == {"ties": 2, "both_ways": 3, "repeats": 2, "prompt_elsewhere": 0, "similar_elsewhere": 0}
    assert list(left_out) == list(REASONS)
    assert sum(left_out.values()) + len(kept) == len(MIXED)
    again = [MIXED[place] for place in kept]
    assert clean(again, FaultyRows.of(again))[0] == [0, 1]


def test_prompts_of_other_files_are_left_out() -> None:
    own = pairs(("one", "a", "b"), ("Two?", "a", "b"), ("three", "a", "b"), ("two", "t", "t"))
    two, three = pair_key(own[1]), pair_key(own[2])
    kept, left_out = clean(own, FaultyRows.of(own), elsewhere=[two], similar=[three, two])
    assert kept == [0]
    assert left_out == {"ties": 1, "both_ways": 0, "repeats": 0, "prompt_elsewhere": 1, "similar_elsewhere": 1}
