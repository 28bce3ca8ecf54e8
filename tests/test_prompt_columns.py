import pytest

from rewarden.data import load_candidates, load_pairs
from rewarden.files import DataError
from rewarden.messages import Turns

TOOL = {"type": "function", "function": {"name": "f"}}
ROW = {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Eight."}
USER, SYSTEM = {"role": "user", "content": "Name a prime."}, {"role": "system", "content": "Be brief."}


def read(**columns):
    (pair,) = load_pairs([ROW | columns])
    return pair


def test_a_system_column_is_the_first_turn():
    pair = read(system="Be brief.")
    assert pair.prompt == [SYSTEM, USER]
    assert (pair.chosen, pair.rejected) == (
        [{"role": "assistant", "content": "Seven."}],
        [{"role": "assistant", "content": "Eight."}],
    )
    assert read(system="Be brief.", prompt=[SYSTEM, USER]).prompt == [SYSTEM, USER]


@pytest.mark.parametrize("tools", [[TOOL], '[{"type": "function", "function": {"name": "f"}}]'])
def test_tools_and_settings_go_with_the_prompt(tools):
    prompt = read(tools=tools, chat_template_kwargs={"enable_thinking": False, "other": None}).prompt
    assert isinstance(prompt, Turns)
    assert (prompt, prompt.tools, prompt.settings) == ([USER], [TOOL], {"enable_thinking": False})


@pytest.mark.parametrize("empty", [None, "", [], {}, float("nan")])
def test_empty_columns_say_nothing(empty):
    names = ("system", "tools", "images", "chat_template_kwargs", "input")
    assert read(**dict.fromkeys(names, empty)) == read()


def test_rows_to_score_have_them_too():
    (one,) = load_candidates([{"prompt": "Name a prime.", "completions": ["Seven."], "system": "Be brief."}])
    assert one.prompt == [SYSTEM, USER]
    assert one.completions == [[{"role": "assistant", "content": "Seven."}]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"images": ["a.png"]}, 'there is a column "images"; expected text alone'),
        ({"audio": b"x"}, 'there is a column "audio"; expected text alone'),
        ({"input": "below 5"}, "\"input\" is 'below 5', which the prompt does not have"),
        ({"system": 3}, '"system" is of type int'),
        (
            {"system": "Be long.", "prompt": [SYSTEM, USER]},
            'the prompt has a system turn and the column "system" has another',
        ),
        ({"tools": "f"}, '"tools" is of type str'),
        ({"tools": [1]}, '"tools" is of type list'),
        ({"chat_template_kwargs": [1]}, '"chat_template_kwargs" is of type list'),
        ({"chat_template_kwargs": {"messages": []}}, '"chat_template_kwargs" has "messages"'),
        ({"prompt": None, "system": "Be brief."}, 'there is a column "system" but no "prompt"'),
        ({"prompt": None, "images": ["a.png"]}, 'there is a column "images"'),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(columns, message):
    with pytest.raises(DataError, match=f"^data, row 1: {message}"):
        read(**columns)


def test_an_input_that_the_prompt_has_is_fine():
    assert read(input="a prime") == read()
