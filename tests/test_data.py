import dataclasses
import json
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rewarden.data import Pair, load_candidates, load_gold, load_pairs, pair_key, prompt_key, shared_prompts
from rewarden.files import DataError, content_hash, read_rows


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def bot(content: str) -> dict:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "42"}
TEXTS = {"prompt": "Q", "chosen": "A", "rejected": "B"}
CHAT = {"prompt": [user("Q")], "chosen": [bot("A")], "rejected": [bot("B")]}


def one(row: dict) -> Pair:
    (pair,) = load_pairs([row])
    return pair


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize(
    "row",
    [
        CHAT,
        {"prompt": "Q", "chosen": [bot("A")], "rejected": [bot("B")]},
        {"prompt": "Q", "chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]},
        {"prompt": "Q", "chosen": [bot("A")], "rejected": "B"},
        {"prompt": [user("Q")], "chosen": "A", "rejected": "B"},
        {"prompt": [user("Q")], "chosen": [user("Q"), bot("A")], "rejected": [bot("B")]},
        {"prompt": None, "chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]},
        {"chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]},
        {"prompt": [user("Q") | {"name": None}], "chosen": [bot("A")], "rejected": [bot("B") | {"tool_calls": None}]},
    ],
)
def test_every_chat_format_gives_the_same_pair(row):
    assert one(row) == Pair([user("Q")], [bot("A")], [bot("B")], "data", None, None, "data, row 1")


def test_plain_text_stays_plain():
    assert one(TEXTS) == Pair("Q", "A", "B", "data", None, None, "data, row 1")
    assert one({"chosen": "Q A", "rejected": "Q B"}) == Pair(None, "Q A", "Q B", "data", None, None, "data, row 1")


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [
        ([SYSTEM, user("1"), bot("2"), user("3"), bot("4")], [SYSTEM, user("1"), bot("2"), user("3"), bot("5")], 4),
        ([user("1"), bot("2"), user("3"), bot("4")], [user("1"), bot("5")], 1),
        ([user("1"), bot("2")], [user("1"), bot("2"), user("3"), bot("4")], 1),  # all but the last of the shorter
        ([user("1"), bot("2")], [user("1"), bot("2")], 1),
        ([user("1"), bot("2"), TOOL, bot("4")], [user("1"), bot("2"), TOOL, bot("5")], 3),
    ],
)
def test_prompt_of_two_conversations_is_what_both_begin_with(chosen, rejected, shared):
    pair = one({"chosen": chosen, "rejected": rejected})
    assert (pair.prompt, pair.chosen, pair.rejected) == (chosen[:shared], chosen[shared:], rejected[shared:])


def test_completions_may_have_several_turns():
    turns = [bot("look up"), TOOL, bot("42")]
    assert one(CHAT | {"chosen": turns}).chosen == turns


def test_ties_are_kept_and_marked():
    pairs = load_pairs([TEXTS, TEXTS | {"rejected": "A"}, CHAT | {"chosen": "B"}])
    assert [pair.is_tie for pair in pairs] == [False, True, True]


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3.0), np.int64(3)])
def test_numbers(value):
    margin = one(TEXTS | {"margin": value}).margin
    assert margin == 3.0
    assert type(margin) is float


def test_margin_agreement_and_other_columns():
    pair = one(TEXTS | {"margin": -2, "agreement": 0.67, "id": 7, "score": math.nan, "chosen_model": None})
    assert (pair.margin, pair.agreement) == (-2.0, 0.67)
    assert [one(TEXTS | {"agreement": edge}).agreement for edge in (0, 1)] == [0.0, 1.0]
    pair = one(TEXTS | {"margin": None, "agreement": None})
    assert (pair.margin, pair.agreement) == (None, None)


def test_source_and_place(tmp_path):
    path = tmp_path / "hh.test.jsonl"
    rows = [TEXTS | {"source": source} for source in ("harmless", "", None, 3)] + [TEXTS]
    path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    pairs = load_pairs(path)
    assert [pair.source for pair in pairs] == ["harmless"] + ["hh.test"] * 4
    assert [pair.where for pair in pairs] == [f"{path}, row {number}" for number in (1, 3, 5, 7, 9)]


def test_parquet_gives_the_pairs_of_the_rows(tmp_path):
    rows = [CHAT | {"margin": 1.0, "source": "x"}, CHAT | {"margin": None, "source": "y"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    moved = [dataclasses.replace(pair, where="") for pair in load_pairs(tmp_path / "pairs.parquet")]
    assert moved == [dataclasses.replace(pair, where="") for pair in load_pairs(rows)]


def test_rows_are_left_as_they_were():
    row = {"prompt": "Q", "chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]}
    before = json.dumps(row)
    one(row)
    assert json.dumps(row) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"response_chosen": "A", "rejected": "B"},
            r"""no column "chosen" among \['response_chosen', 'rejected'\]; expected "chosen" and "rejected", and """
            r"""perhaps "prompt"\. Rename "response_chosen" to "chosen" if""",
        ),
        ({"chosen": "A", "Rejected": "B"}, 'no column "rejected" .*Rename "Rejected" to "rejected"'),
        ({"chosen": "A"}, 'no column "rejected" .*Add or rename to "rejected"'),
        ({"chosen": "A", "rejected": "B", "question": "Q"}, 'a column "question" but no "prompt"; .*Rename it'),
        ({"chosen": "A", "rejected": "B", "prompts": "Q"}, 'a column "prompts" but no "prompt"'),
        (TEXTS | {"chosen": 3}, r"""row 2: "chosen" is of type int \('3'\); expected text or a list of messages"""),
        (TEXTS | {"rejected": None}, '"rejected" is null; expected text'),
        (TEXTS | {"prompt": {"role": "user"}}, '"prompt" is of type dict'),
        (TEXTS | {"chosen": []}, '"chosen" is an empty list'),
        (TEXTS | {"rejected": ["A", "B"]}, r'"rejected" is a list of 2 texts.*Write one row for each pair'),
        (TEXTS | {"chosen": [["A"], "B"]}, r"chosen\[0\] is of type list \(\"\['A'\]\"\); expected a message"),
        (TEXTS | {"chosen": float("nan")}, r'"chosen" is NaN, which pandas writes where a value is missing'),
        (TEXTS | {"chosen": ""}, r'"chosen" is empty; expected some text\. Remove the row'),
        (TEXTS | {"rejected": " \n"}, '"rejected" is empty'),
        (CHAT | {"rejected": [bot("\t")]}, '"rejected" is empty'),
        (TEXTS | {"prompt": ""}, r'"prompt" is empty or ends in an empty turn; .*leave out the column "prompt"'),
        (CHAT | {"prompt": [user("Q"), bot("A"), user(" ")]}, '"prompt" is empty or ends'),
        (CHAT | {"prompt": []}, '"prompt" is an empty list'),
        (CHAT | {"prompt": [user("Q"), bot("A")]}, 'ends with a turn of role "assistant"; expected a user or tool'),
        (CHAT | {"prompt": [SYSTEM]}, 'ends with a turn of role "system"'),
        (CHAT | {"chosen": [bot("A"), user("Q")]}, r'"chosen" has turns \[.*\] after the prompt; expected to begin'),
        (CHAT | {"chosen": [user("Other"), bot("A")]}, r"""turns \['user', 'assistant'\] after the prompt"""),
        (CHAT | {"chosen": [user("Q")]}, r'"chosen" has turns \[\] after the prompt'),
        (
            CHAT | {"chosen": [{"role": "human", "content": "A"}]},
            r"chosen\[0\] has role 'human'; expected one of system",
        ),
        (CHAT | {"chosen": [{"from": "gpt", "value": "A"}]}, r'chosen\[0\] has role None.*Rename "from" to "role"'),
        (CHAT | {"chosen": [{"role": [], "content": "A"}]}, r"chosen\[0\] has role \[\]"),
        (CHAT | {"prompt": [SYSTEM, user(None)]}, r"prompt\[1\] has content null; expected text"),
        (CHAT | {"prompt": [user([])]}, r"prompt\[0\] has content an empty list; expected text"),
        (CHAT | {"prompt": [user(["Q", {"type": "image"}])]}, r'prompt\[0\].content\[1\] is a part of type "image"'),
        (CHAT | {"chosen": [bot("A") | {"tool_calls": "f(1)"}]}, r"chosen\[0\].tool_calls is of type str"),
        (CHAT | {"chosen": [bot("A") | {"reasoning_content": 3}]}, r"chosen\[0\].reasoning_content is of type int"),
        (TEXTS | {"chosen": "ab\ud83d"}, "chosen has half a surrogate pair at character 3"),
        (TEXTS | {"margin": math.nan}, r'"margin" is nan; expected a finite number\. Correct'),
        (TEXTS | {"margin": math.inf}, '"margin" is inf'),
        (TEXTS | {"margin": 10**400}, '"margin" is of type int'),
        (TEXTS | {"margin": True}, r"""\"margin" is of type bool \('True'\)"""),
        (TEXTS | {"margin": "1"}, '"margin" is of type str'),
        (TEXTS | {"agreement": 1.01}, r'"agreement" is 1.01; expected a probability in \[0, 1\]'),
        (TEXTS | {"agreement": -0.1}, '"agreement" is -0.1'),
        (TEXTS | {"agreement": False}, '"agreement" is of type bool'),
        ({"chosen": "A", "rejected": [user("Q"), bot("A")]}, "one of chosen and rejected is text, the other a list"),
        (without(CHAT, "prompt"), "share no leading turn; .*Add the column"),
        (
            {
                "chosen": [user("1"), bot("2"), user("3"), bot("4")],
                "rejected": [user("1"), bot("2"), user("5"), bot("6")],
            },
            'ends with a turn of role "assistant"',
        ),
        ({"chosen": [user("1"), bot("2")], "rejected": [user("1"), user("3")]}, r'"rejected" has turns \[.user.\]'),
    ],
)
def test_faulty_pairs(row, message):
    with pytest.raises(DataError, match=message) as caught:
        load_pairs([TEXTS, row])
    assert str(caught.value).startswith("data, row 2: ")


def test_candidates():
    rows = [
        {"prompt": "Q", "completion": "", "id": 1},
        {"prompt": "Q", "completions": ["A", ""], "completion": None},
        {"prompt": [user("Q")], "completion": [bot("")]},
        {"prompt": "Q", "completions": ["A", [user("Q"), bot("B")]]},
    ]
    items = load_candidates(rows)
    assert [item.prompt for item in items] == ["Q", "Q", [user("Q")], [user("Q")]]
    assert [item.completions for item in items] == [[""], ["A", ""], [[bot("")]], [[bot("A")], [bot("B")]]]
    assert [item.is_single for item in items] == [True, False, True, False]
    assert [item.row for item in items] == rows
    assert items[3].where == "data, row 4"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "A"}, 'no column "prompt"'),
        (
            {"prompt": "Q", "responses": ["A"]},
            r'no column "completion" .*expected "prompt", and either "completion" or',
        ),
        ({"prompt": "Q", "completion": "A", "completions": ["A"]}, "are both given; .*Keep the one to be scored"),
        ({"prompt": "Q", "completion": None}, '"completion" is null'),
        ({"prompt": "Q", "completions": None}, '"completions" is null'),
        ({"prompt": "Q", "completions": "A"}, '"completions" is of type str .*expected a list of completions'),
        ({"prompt": "Q", "completions": []}, '"completions" is an empty list'),
        ({"prompt": "Q", "completions": ["A", 3]}, r"completions\[1\]\" is of type int"),
        ({"prompt": "Q", "completions": [bot("A")]}, r'completions\[0\]" is of type dict'),
        ({"prompt": None, "completion": "A"}, '"prompt" is null'),
    ],
)
def test_faulty_candidates(row, message):
    with pytest.raises(DataError, match=f"^data, row 1: .*{message}"):
        load_candidates([row])


NESTED = {"prompt": "Q", "responses": [{"response": "A", "gold_score": 7}, {"response": "", "gold": 0.5}]}
FLAT = {"prompt": "Q", "completions": ["A", "B", "C"], "gold": [1, 2.5, 0]}


def test_gold_formats():
    samples = [
        {"i": 0, "response": "A", "gold": 0, "model": None},
        {"model": "m", "i": 1, "response": "B", "gold": -1.0},
    ]
    rows = [NESTED, FLAT, {"prompt": [user("Q")], "samples": samples}]
    nested, flat, sampled = load_gold(rows)
    assert (nested.completions, nested.gold, nested.names) == (["A", ""], [7.0, 0.5], ["0", "1"])
    assert (flat.completions, flat.gold, flat.names) == (["A", "B", "C"], [1.0, 2.5, 0.0], ["0", "1", "2"])
    assert (sampled.prompt, sampled.completions) == ([user("Q")], [[bot("A")], [bot("B")]])
    assert (sampled.gold, sampled.names, sampled.where) == ([0.0, -1.0], ["0", "m"], "data, row 3")


def test_gold_takes_rows_of_one_split_or_all():
    rows = [FLAT | {"split": "train"}, FLAT | {"split": "test"}, FLAT]
    assert [group.where for group in load_gold(rows)] == ["data, row 2", "data, row 3"]
    assert [group.where for group in load_gold(rows, split="train")] == ["data, row 1", "data, row 3"]
    assert len(load_gold(rows, split=None)) == 3
    with pytest.raises(DataError, match=r'only ever train; expected "test" in some row.*Ask for a split'):
        load_gold(rows[:1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "answers": []}, 'no column "completions" .*expected "prompt" and "responses", or'),
        (without(FLAT, "gold"), 'no column "gold"'),
        (without(NESTED, "prompt"), 'no column "prompt"'),
        (FLAT | {"gold": [1, 2]}, '"gold" is a list of 2; expected a list of 3'),
        (FLAT | {"gold": 1}, '"gold" is of type int'),
        (FLAT | {"gold": [1, math.nan, 2]}, r'"gold\[1\]" is nan; expected a finite number'),
        (FLAT | {"gold": [1, 2, None]}, r'"gold\[2\]" is null; expected a number per completion'),
        (FLAT | {"completions": ["A"], "gold": [1]}, '"completions" is a list of 1; expected a list of at least 2'),
        (FLAT | {"completions": "AB"}, '"completions" is of type str'),
        (NESTED | {"responses": NESTED["responses"][:1]}, '"responses" is a list of 1'),
        (NESTED | {"responses": ["A", "B"]}, r'responses\[0\] is of type str .*expected \{"response"'),
        (NESTED | {"responses": [{"response": "A", "score": 1}] * 2}, r"responses\[0\] has \['response', 'score'\]"),
        (NESTED | {"responses": [{"response": None, "gold": 1}] * 2}, r'"responses\[0\]" is null'),
    ],
)
def test_faulty_gold(row, message):
    with pytest.raises(DataError, match=f"^data, row 1: .*{message}"):
        load_gold([row])


@pytest.mark.parametrize(
    ("text", "fallback", "key"),
    [
        ("  What is 2_000 + Ärger?\n", "", "whatis2000ärger"),
        ([SYSTEM, user("One."), bot("Two"), user("THREE")], "", "onethree"),
        ([SYSTEM], "", "bebrief"),
        (None, "Some Text", "sometext"),
        ("given", "unused", "given"),
        (" ?! ", "", "?!"),
        (None, "", ""),
    ],
)
def test_prompt_key(text, fallback, key):
    assert prompt_key(text, fallback) == key


def test_pair_key():
    assert pair_key(one(TEXTS)) == pair_key(one(CHAT)) == "q"
    assert pair_key(one({"chosen": "Why? Ants", "rejected": "Why? Bees"})) == "why"
    # Not "", which would put all such pairs into one cluster.
    assert pair_key(one({"chosen": "Ants", "rejected": "Bees"})) == "ants"


def test_shared_prompts_counts_distinct_evaluation_prompts():
    def pairs(*prompts: str) -> list[Pair]:
        return load_pairs([TEXTS | {"prompt": prompt} for prompt in prompts])

    assert shared_prompts(pairs("a", "b", "b"), pairs("B!", "b", "A", "c")) == 2
    assert shared_prompts(pairs("a"), pairs("b")) == 0


def test_reading_and_hashing_are_offered_here_too():
    assert [row for _, row in read_rows([TEXTS])] == [TEXTS]
    assert content_hash([TEXTS]) == content_hash([dict(reversed(TEXTS.items()))])


@pytest.mark.parametrize(
    ("load", "row", "hint"),
    [
        (load_candidates, {"prompt": "a", "response": "b"}, 'Rename "response" to "completion" if'),
        (load_candidates, {"prompt": "a", "responses": ["b"]}, 'Rename "responses" to "completions" if'),
        (load_candidates, {"question": "a", "answer": "b"}, 'Rename "question" to "prompt" if'),
        (load_candidates, {"prompt": "a", "text": "b"}, 'Add or rename to "completion"'),
        (load_pairs, {"prompt": "a", "choosen": "b", "rejected": "c"}, 'Rename "choosen" to "chosen" if'),
        (load_pairs, {"prompt": "a", "preferred": "b", "rejected": "c"}, 'Rename "preferred" to "chosen" if'),
        (load_pairs, {"prompt": "p", "response": "b", "label": True}, 'Add or rename to "chosen"'),
    ],
)
def test_a_hint_never_renames_a_column_that_is_needed_as_it_is(load, row, hint):
    with pytest.raises(DataError, match=hint):
        load([row])
