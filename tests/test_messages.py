import pytest

from rewarden.files import DataError
from rewarden.messages import prompt_and_completions, text_of


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
