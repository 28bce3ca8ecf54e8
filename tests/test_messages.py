import pytest

from rewarden.files import DataError
from rewarden.messages import checked_texts, prompt_and_completions, text_of, without_prompts


def test_a_text_is_plain_or_a_list_of_messages():
    assert text_of("hi", "row 1", "prompt") == "hi"
    turns = [{"role": "user", "content": "hi"}]
    assert text_of(turns, "row 1", "prompt") == turns
    with pytest.raises(
        DataError, match=r'row 1: "prompt" is of type int \(\'3\'\); expected text or a list of messages'
    ):
        text_of(3, "row 1", "prompt")


def test_plain_completions_of_turns_become_turns():
    prompt = [{"role": "user", "content": "hi"}]
    assert prompt_and_completions(prompt, ["yes"], "row 1", "completions") == (
        prompt,
        [[{"role": "assistant", "content": "yes"}]],
    )


LONG = "Human: Name a prime, please.\n\nAssistant:"


def test_a_repeated_prompt_is_read_once_and_said(caplog):
    rows = [
        ("row 1", LONG, (f"{LONG} Seven.", f"{LONG} Eight.")),
        ("row 2", "Hi", ("Hi there", "Ho!")),
        ("row 3", None, ("a",)),
    ]
    assert without_prompts(rows) == [[" Seven.", " Eight."], ("Hi there", "Ho!"), ("a",)]
    assert caplog.messages == [
        "1 of 3 rows repeat their prompt at the start of every completion (first row 1); it is read once, as the prompt"
    ]


def test_short_prompts_are_repeated_only_where_all_are():
    assert without_prompts([("row 1", "Hi", ("Hi there",))]) == [("Hi there",)]
    both = [("row 1", "Hi", ("Hi there",)), ("row 2", "Go", ("Go on",))]
    assert without_prompts(both) == [[" there"], [" on"]]
    assert without_prompts([("row 1", LONG, (f"{LONG} Seven.", "Eight."))]) == [(f"{LONG} Seven.", "Eight.")]


def test_a_prompt_alone_is_no_answer():
    with pytest.raises(DataError, match="row 1: a completion holds nothing but the prompt"):
        without_prompts([("row 1", LONG, (f"{LONG} Seven.", LONG))])


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        (["Q"], ["It is 4."], r"prompt 1: its completions are of type str \('It is 4.'\); expected a list of them"),
        ("Q", [["A"]], r"prompts are of type str"),
        (["Q"], "A", r"completions are of type str"),
        (["Q"], [[None]], r'prompt 1: "completions\[0\]" is null'),
        (["Q", 3], [["A"], ["B"]], r'prompt 2: "prompt" is of type int'),
        (["Q"], [[{"role": "assistant", "content": "A"}]], r"prompt 1: .*Put the message into a list"),
        (["Q"], [[[{"role": "bot", "content": "A"}]]], r"prompt 1: completions\[0\]\[0\] has role 'bot'"),
        (["Q"], [[[{"role": "assistant", "content": None}]]], r"completions\[0\]\[0\] has content null"),
        (["Q"], [[]], "got 1 prompts and 1 lists of completions; every prompt needs a list with at least one"),
        (["Q"], [], "got 1 prompts and 0 lists of completions"),
        (
            [None],
            [[[{"role": "user", "content": "A"}]]],
            "prompt 1: its prompt is null and a completion is a list of 1",
        ),
    ],
)
def test_texts_from_python_are_checked_like_those_of_files(prompts, completions, message):
    with pytest.raises(ValueError, match=message):
        checked_texts(prompts, completions)


def test_checked_texts_are_those_given():
    turns = [{"role": "user", "content": [{"type": "text", "text": "Name "}, {"type": "text", "text": "a prime."}]}]
    assert checked_texts([turns, None], [("Seven.", ""), ["whole"]]) == [
        ([{"role": "user", "content": "Name a prime."}], ["Seven.", ""]),
        (None, ["whole"]),
    ]


def test_fields_of_messages_are_kept_and_empty_ones_are_not():
    call = {"function": {"name": "f", "arguments": {"a": None}}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "name": None, "reasoning_content": "", "id": 7}
    assert text_of([turn], "row 1", "chosen") == [{"role": "assistant", "content": "", "tool_calls": [call], "id": 7}]
