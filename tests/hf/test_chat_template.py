import datetime
import logging
from pathlib import Path

import pytest
import trl

from rewarden.hf.chat_template import DATE, TemplateRefusal, loses_text, reads, render_turns
from rewarden.messages import Turns

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
USER = {"role": "user", "content": "What is 6 x 7?"}
CALL = {"type": "function", "function": {"name": "times", "arguments": {"a": 6, "b": 7}}}
TOOL = {
    "type": "function",
    "function": {"name": "times", "description": "multiplies", "parameters": {"type": "object"}},
}


def says(content: str, **fields) -> dict:
    return {"role": "assistant", "content": content, **fields}


def with_template(tokenizer, name: str):
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text() if "{" not in name else name
    return tokenizer


@pytest.mark.parametrize(
    "name", ["qwen3", "llama3_2", "gemma", "deepseek_r1_distill", "glm4moe", "gptoss", "cohere", "phi3"]
)
@pytest.mark.parametrize(
    "turns",
    [
        [USER, says("42")],
        [USER, says("<think>\n6 x 7\n</think>\n\n42"), USER, says("42 again", reasoning_content="as before")],
        [USER, says("42", thinking="6 x 7")],
    ],
)
def test_texts_are_those_of_the_library(tokenizer, name, turns):
    with_template(tokenizer, name)
    today = datetime.date.today().isoformat()
    fields = {field for turn in turns for field in turn} - {"role", "content"}
    if not fields <= reads(tokenizer.chat_template).fields:
        with pytest.raises(TemplateRefusal, match="does not read"):  # where the library drops the reasoning
            render_turns(tokenizer, turns)
        return
    for asked, opens in ((turns, False), (turns[:-1], True)):
        expected = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=opens)
        assert render_turns(tokenizer, asked, opens_answer=opens, date=today) == expected


def test_tools_and_calls_are_given_to_templates_that_read_them(tokenizer):
    with_template(tokenizer, "qwen3")
    turns = [USER, says("", tool_calls=[CALL]), {"role": "tool", "content": "42"}, says("It is 42.")]
    expected = tokenizer.apply_chat_template(turns, tools=[TOOL], tokenize=False)
    assert render_turns(tokenizer, Turns(turns, tools=[TOOL])) == expected
    assert '"name": "times"' in expected and "multiplies" in expected


def test_settings_are_given_too(tokenizer):
    with_template(tokenizer, "qwen3")
    usual = render_turns(tokenizer, [USER], opens_answer=True)
    quick = render_turns(tokenizer, Turns([USER], settings={"enable_thinking": False}), opens_answer=True)
    assert quick == usual + "<think>\n\n</think>\n\n"
    assert render_turns(tokenizer, [USER], opens_answer=True, enable_thinking=False) == quick


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([USER, says("42", reasoning_content="because")], '"reasoning_content" of these messages'),
        ([USER, says("", tool_calls=[CALL])], '"tool_calls" of these messages'),
        ([{**USER, "name": "Ann"}, says("42")], '"name" of these messages'),
        (Turns([USER, says("42")], tools=[TOOL]), 'the "tools" of this row'),
        (Turns([USER, says("42")], settings={"enable_thinking": True}), '"enable_thinking" of "chat_template_kwargs"'),
    ],
)
def test_what_a_template_does_not_read_is_refused_by_name(tokenizer, turns, words):
    with pytest.raises(TemplateRefusal, match=f"does not read {words}, which would be lost; "):
        render_turns(tokenizer, turns)


def test_a_template_that_writes_whole_messages_reads_all_of_them(tokenizer):
    with_template(tokenizer, "{% for message in messages %}{{ message|tojson }}{% endfor %}")
    assert '"name": "Ann"' in render_turns(tokenizer, [{**USER, "name": "Ann"}, says("42")])


def test_other_fields_are_left_out_and_said_once(tokenizer, caplog):
    plain = render_turns(tokenizer, [USER, says("42")])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert render_turns(tokenizer, [USER, says("42", identity=17)]) == plain
    assert [record.getMessage() for record in caplog.records] == [
        'messages have a field "identity", which the chat template does not read; it is left out'
    ]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no ' ~ messages[0].role ~ ' turns') }}", r"refuses these turns \(no user turns\); check"),
        ("{{ raise_exception('\x1b[31mred') }}", r"refuses these turns \(\\x1b\[31mred\)"),
        ("{{ 1 / 0 }}", r"fails on these turns \(ZeroDivisionError: division by zero\)"),
        ("{{ messages[7].content.x }}", r"fails on these turns \(UndefinedError: "),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", r"fails on these turns \(RecursionError: "),
        ("{% if %}", r"cannot be read \(line 1: Expected an expression"),
        ("{{ 'x' * 10**10 }}", r"goes beyond its limits \(it makes a text of more than 10,000,000 characters\)"),
    ],
)
def test_refusals_have_the_template_s_own_words(tokenizer, template, words):
    with_template(tokenizer, template)
    with pytest.raises(TemplateRefusal, match=words):
        render_turns(tokenizer, [USER])


def test_today_is_always_the_same_day(tokenizer):
    with_template(tokenizer, "{{ strftime_now('%d %b %Y') }}")
    assert render_turns(tokenizer, [USER]) == "26 Jul 2024"
    assert DATE == "2024-07-26"
    assert render_turns(tokenizer, [USER], date="2025-12-31") == "31 Dec 2025"


def test_what_a_template_mentions():
    found = reads("{% for m in messages %}{{ m.role }}{{ m['thinking'] }}{{ tools }}{% endfor %}{{ enable_thinking }}")
    assert {"role", "thinking", "reasoning_content"} <= found.fields
    assert "content" not in found.fields
    assert found.variables == {"messages", "tools", "enable_thinking"}


def test_lost_text_is_noticed_and_white_space_is_none():
    assert not loses_text([says(" 6 x 7\n= 42 ")], "<a> 6 x 7\n= 42</a>")
    assert not loses_text([says("<think>\n6\n</think>\n\n\n42")], "<think>\n6\n</think>\n42")
    assert loses_text([says("<think>6</think>42")], "<a>42</a>")
    assert loses_text([says("42", reasoning_content="6 x 7")], "<a>42</a>")
    assert loses_text([says("first"), USER, says("last")], "last")
