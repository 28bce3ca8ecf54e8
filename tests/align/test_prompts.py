import gzip
import json
from collections import Counter

import pytest
from tokenizers import processors

from rewarden.align.prompts import (
    EncodedPrompts,
    Prompt,
    encode_prompts,
    load_prompts,
    prompts_of_step,
    split_held_out,
)
from rewarden.files import DataError
from rewarden.hf.tokens import Limits, tokenise


@pytest.fixture
def write(tmp_path):
    """write(row, ...): a JSON Lines file."""

    def to_file(*rows, name="prompts.jsonl"):
        opener = gzip.open if name.endswith(".gz") else open
        with opener(tmp_path / name, "wt", encoding="utf-8") as file:
            file.writelines("\n" if row is None else json.dumps(row) + "\n" for row in rows)
        return tmp_path / name

    return to_file


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def prompt(text, row: int = 1) -> Prompt:
    return Prompt(text, row, None, {})


def test_texts_and_turns_with_their_rows_and_other_columns(write):
    turns = [{"role": "system", "content": "Be brief."}, user("Why?")]
    path = write({"prompt": "Hi", "answer": 4}, None, {"prompt": turns, "hint": "x", "kind": "why"})
    found = load_prompts(path, class_column=None)
    assert found.prompts == [
        Prompt("Hi", 1, None, {"answer": 4, "hint": None, "kind": None}),
        Prompt(turns, 3, None, {"answer": None, "hint": "x", "kind": "why"}),  # line 2 is blank
    ]
    assert found.duplicates == 0


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_a_file_of_pairs_serves(write, name):
    pair = {"prompt": [user("Hi")], "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}
    (found,) = load_prompts(write(pair, name=name), class_column=None).prompts
    assert found.text == [user("Hi")]
    assert found.extra == {"chosen": pair["chosen"], "rejected": "b"}


def test_repeated_prompts_are_kept_once_and_counted(write):
    rows = [
        ("Hi", "a", 1),
        ("Ho", "a", 2),
        ("Hi", "a", 3),
        ("Hi", "b", 4),
        ([user("Hi")], "a", 5),
        ("hi", "a", 6),
        ("Ho", "a", 7),
    ]
    path = write(*({"prompt": text, "kind": kind, "answer": answer} for text, kind, answer in rows))
    found = load_prompts(path, class_column="kind")
    assert [(one.text, one.prompt_class, one.extra["answer"]) for one in found.prompts] == [
        ("Hi", "a", 1),
        ("Ho", "a", 2),
        ("Hi", "b", 4),
        ([user("Hi")], "a", 5),
        ("hi", "a", 6),
    ]
    assert found.duplicates == 2
    assert load_prompts(path, class_column=None).duplicates == 3


def test_whole_numbers_are_classes(write):
    assert load_prompts(write({"prompt": "Hi", "kind": 0}), class_column="kind").prompts[0].prompt_class == "0"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "Hi"},
            r'prompts.jsonl, row 2: no column "prompt" among \[\'question\'\]; expected "prompt".*Rename',
        ),
        ({"chosen": "a", "rejected": "b"}, r"row 2: no column .* Move what both conversations begin with"),
        ({"prompt": 3}, r'row 2: "prompt" is of type int \(\'3\'\); expected text or a list of messages'),
        ({"prompt": None}, r'row 2: "prompt" is null'),
        ({"prompt": " "}, r'row 2: "prompt" is empty'),
        ({"prompt": []}, r'row 2: "prompt" is an empty list'),
        (
            {"prompt": [{"role": "assistant", "content": "a"}]},
            r'row 2: the prompt ends with a turn of role "assistant"',
        ),
        ({"prompt": [{"role": "user"}]}, r"row 2: prompt\[0\] has content null"),
    ],
)
def test_a_row_without_a_usable_prompt_is_refused(write, row, message):
    with pytest.raises(DataError, match=message):
        load_prompts(write({"prompt": "fine"}, row), class_column=None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi"}, r'row 1: no column "kind" among \[\'prompt\'\]; expected the class of the prompt'),
        ({"prompt": "Hi", "kind": None}, r'row 1: "kind" is None'),
        ({"prompt": "Hi", "kind": ""}, r'row 1: "kind" is \'\''),
        ({"prompt": "Hi", "kind": True}, r'row 1: "kind" is True'),
        ({"prompt": "Hi", "kind": 0.5}, r'row 1: "kind" is 0.5'),
    ],
)
def test_a_row_without_a_class_is_refused(write, row, message):
    with pytest.raises(DataError, match=message):
        load_prompts(write(row), class_column="kind")


def test_held_out_prompts_leave_the_rest():
    prompts = [prompt(str(number), number) for number in range(20)]
    rest, aside = split_held_out(prompts, 5, seed=3)
    assert (len(rest), len(aside)) == (15, 5)
    assert sorted(rest + aside, key=lambda one: one.row) == prompts
    assert [one.row for one in rest] == sorted(one.row for one in rest)
    assert split_held_out(prompts, 5, seed=3) == (rest, aside)
    assert split_held_out(prompts, 5, seed=4)[1] != aside
    assert {one.row for one in aside} < {one.row for one in split_held_out(prompts, 9, seed=3)[1]}
    assert split_held_out(prompts, 0, seed=3) == (prompts, [])


@pytest.mark.parametrize(("number", "count"), [(3, 3), (3, 4), (3, -1), (0, 1)])
def test_some_prompts_must_be_left(number, count):
    with pytest.raises(ValueError, match=f"{count} prompts are to be held out of {number}, expected"):
        split_held_out([prompt("a")] * number, count, seed=0)


@pytest.mark.parametrize(("number", "per_step"), [(7, 3), (6, 3), (5, 1), (3, 7)])
def test_steps_run_through_whole_epochs(number, per_step):
    steps = [prompts_of_step(number, step, per_step, seed=5) for step in range(1, 4 * number + 1)]
    assert all(len(step) == per_step for step in steps)
    stream = [place for step in steps for place in step]
    epochs = [stream[start : start + number] for start in range(0, len(stream), number)]
    assert all(sorted(epoch) == list(range(number)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_is_the_same_whatever_came_before():
    forwards = [prompts_of_step(50, step, 8, seed=1) for step in range(1, 30)]
    backwards = [prompts_of_step(50, step, 8, seed=1) for step in range(29, 0, -1)]
    assert forwards == backwards[::-1]
    assert prompts_of_step(50, 1, 8, seed=2) != forwards[0]


def test_orders_favour_nobody():
    first = Counter(prompts_of_step(4, step, 4, seed=0)[0] for step in range(1, 401))
    assert min(first.values()) > 60  # 100 expected, standard deviation 9


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_steps_count_from_one(numbers):
    with pytest.raises(ValueError, match=r"expected at least 1 of each; steps count from 1"):
        prompts_of_step(*numbers, seed=0)


CONVERSATION = [{"role": "system", "content": "s"}, user("a"), {"role": "assistant", "content": "b"}, user("cd")]


@pytest.mark.parametrize("text", ["hello", CONVERSATION, [user("x bc a")]])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("has_template", [False, True])
def test_ids_are_what_stands_before_a_completion(tokenizer, text, raw, has_template):
    if not has_template:
        tokenizer.chat_template = None
    found = encode_prompts(tokenizer, [prompt(text)], max_length=500, raw=raw)
    (group,) = tokenise(tokenizer, [(text, ["zz", "yyy"])], Limits(raw=raw), where=["here"])
    before = group.sequences[0][: len(group.sequences[0]) - group.completion_lengths[0]]
    assert found == EncodedPrompts([before.tolist()], 0)


def test_ids_by_hand(tokenizer):
    letter, new_line = tokenizer.convert_tokens_to_ids(["h", "Ċ"])
    chat = encode_prompts(tokenizer, [prompt("h")], max_length=9, raw=False)
    assert chat == EncodedPrompts([[1, 4, letter, 6, new_line, 5]], 0)  # <bos><user>h<end>, new line, <assistant>
    raw = encode_prompts(tokenizer, [prompt("h"), prompt("hh")], max_length=9, raw=True)
    assert raw == EncodedPrompts([[1, letter], [1, letter, letter]], 0)


def test_long_prompts_are_cut_from_the_left_and_counted(tokenizer):
    a, b, c, d = tokenizer.convert_tokens_to_ids(["a", "d", "e", "f"])
    prompts = [prompt("adef"), prompt("def"), prompt("ef")]
    assert encode_prompts(tokenizer, prompts, max_length=3, raw=True) == EncodedPrompts(
        [[1, c, d], [1, c, d], [1, c, d]], 2
    )
    assert encode_prompts(tokenizer, prompts, max_length=4, raw=True).ids[:2] == [[1, b, c, d], [1, b, c, d]]
    assert encode_prompts(tokenizer, prompts, max_length=5, raw=True) == EncodedPrompts(
        [[1, a, b, c, d], [1, b, c, d], [1, c, d]], 0
    )


def test_an_end_that_the_tokenizer_adds_is_taken_off(tokenizer):
    plain = encode_prompts(tokenizer, [prompt("abc")], max_length=9, raw=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert tokenizer("abc")["input_ids"][-1] == 2
    assert encode_prompts(tokenizer, [prompt("abc")], max_length=9, raw=True) == plain
    assert encode_prompts(tokenizer, [prompt("abc")], max_length=len(plain.ids[0]), raw=True).truncated == 0


def test_a_refusing_template_names_the_row(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        ValueError, match=r"row 17: the policy's chat template refuses .*roles must alternate.*check their roles"
    ):
        encode_prompts(tokenizer, [prompt([user("a"), user("b")], row=17)], max_length=9, raw=False)


def test_no_tokens_at_all_are_no_prompt(tokenizer):
    with pytest.raises(ValueError, match="max_length is 0, expected at least 1 token"):
        encode_prompts(tokenizer, [prompt("a")], max_length=0, raw=False)
