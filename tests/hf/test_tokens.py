import pytest

from rewarden.files import DataError
from rewarden.hf.tokens import Limits, TooLong, render, tokenise

PAD, BOS, EOS, SYSTEM, USER, ASSISTANT, END = range(7)


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


QUESTION = [turn("user", "hi")]
ANSWER = [turn("assistant", "yes")]
TEMPLATE_WITHOUT_REASONING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}<end>{% endfor %}"
)


@pytest.fixture
def plain(tokenizer):
    """The tokenizer without a chat template."""
    tokenizer.chat_template = None
    return tokenizer


def ids(tokenizer, text: str) -> list[int]:
    """One token per byte, special tokens by name; "bc" and " a" are one token."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def one(tokenizer, prompt, *completions, limits: Limits | None = None):
    (group,) = tokenise(tokenizer, [(prompt, completions)], limits or Limits(), where=["row 1"])
    return group


def lists(group) -> list[list[int]]:
    return [sequence.tolist() for sequence in group.sequences]


def test_limits_are_checked():
    with pytest.raises(ValueError, match="max_length is 7"):
        Limits(max_length=7)
    with pytest.raises(ValueError, match="max_completion_length is 3"):
        Limits(max_completion_length=3)


def test_turns_go_through_the_template(tokenizer):
    group = one(tokenizer, QUESTION, ANSWER)
    opening = [BOS, USER, *ids(tokenizer, "hi"), END, *ids(tokenizer, "\n"), ASSISTANT]
    assert lists(group) == [[*opening, *ids(tokenizer, "yes"), END, *ids(tokenizer, "\n")]]
    assert group.completion_lengths == (5,)
    assert group.is_truncated == (False,)
    assert group.num_tokens == 12


def test_plain_text_goes_through_the_template_too(tokenizer):
    assert lists(one(tokenizer, "hi", "yes")) == lists(one(tokenizer, QUESTION, ANSWER))


def test_raw_text_stays_as_it_is(tokenizer):
    group = one(tokenizer, "hi ", "yes", limits=Limits(raw=True))
    assert lists(group) == [[BOS, *ids(tokenizer, "hi yes"), EOS]]
    assert group.completion_lengths == (4,)


def test_raw_does_not_change_turns(tokenizer):
    # The template writes the beginning of the sequence; the tokenizer must not write a second one.
    assert lists(one(tokenizer, QUESTION, ANSWER, limits=Limits(raw=True))) == lists(one(tokenizer, QUESTION, ANSWER))


def test_whole_texts_have_no_template_but_a_beginning(tokenizer):
    group = one(tokenizer, None, "Q: hi A: yes", "Q: hi A: no")
    assert lists(group) == [
        [BOS, *ids(tokenizer, "Q: hi A: yes"), EOS],
        [BOS, *ids(tokenizer, "Q: hi A: no"), EOS],
    ]


def test_formats_may_be_mixed(tokenizer):
    groups = [(None, ["whole"]), ("hi", ["yes"]), (QUESTION, [ANSWER])]
    found = tokenise(tokenizer, groups, Limits(), where=["1", "2", "3"])
    expected = [one(tokenizer, prompt, *completions) for prompt, completions in groups]
    assert [lists(group) for group in found] == [lists(group) for group in expected]


def test_turns_without_a_template(plain):
    prompt = [turn("system", "Be brief."), *QUESTION]
    opening, whole = render(plain, prompt, ANSWER, raw=False)
    assert opening == "System: Be brief.\n\nUser: hi\n\nAssistant: "
    assert whole == opening + "yes\n\n<eos>"
    group = one(plain, prompt, ANSWER)
    assert lists(group) == [[BOS, *ids(plain, whole)]]
    assert group.completion_lengths == (len(ids(plain, "yes\n\n<eos>")),)


def test_text_without_a_template(plain):
    assert lists(one(plain, "hi ", "yes")) == [[BOS, *ids(plain, "hi yes"), EOS]]
    assert lists(one(plain, "hi ", "yes<eos>")) == [[BOS, *ids(plain, "hi yes"), EOS]]  # one end is enough


def test_several_turns_of_the_assistant(tokenizer):
    answer = [turn("assistant", "a"), turn("user", "b"), turn("assistant", "c")]
    assert lists(one(tokenizer, QUESTION, answer))[0].count(END) == 4


def test_prompt_is_cut_from_the_left(tokenizer):
    limits = Limits(max_length=12, raw=True)
    group = one(tokenizer, "0123456789", "xyz", "X", limits=limits)
    # 11 + 4 tokens: the longer completion keeps its 4, so the prompt keeps 8 for both, its beginning among them.
    prompt = [BOS, *ids(tokenizer, "3456789")]
    assert lists(group) == [[*prompt, *ids(tokenizer, "xyz"), EOS], [*prompt, *ids(tokenizer, "X"), EOS]]
    assert group.completion_lengths == (4, 2)
    assert group.is_truncated == (True, True)


def test_completion_is_cut_from_the_right(tokenizer):
    limits = Limits(max_length=40, max_completion_length=5)
    group = one(tokenizer, "hi", "abcdefgh", "xyz", limits=limits)
    end = [END, *ids(tokenizer, "\n")]
    first, second = lists(group)
    assert first[-5:] == [*ids(tokenizer, "abcd"), *end]  # "bc" is one token
    assert second[-5:] == [*ids(tokenizer, "xyz"), *end]
    assert group.completion_lengths == (5, 5)
    assert group.is_truncated == (True, False)
    assert first[:-5] == second[:-5] == ids(tokenizer, "<bos><user>hi<end>\n<assistant>")


def test_prompt_and_completion_are_both_cut(tokenizer):
    # Neither fits: half of the length is the completion's.
    group = one(tokenizer, "0123456789", "ABCDEFGHIJ", limits=Limits(max_length=10, raw=True))
    assert lists(group) == [[BOS, *ids(tokenizer, "6789"), *ids(tokenizer, "ABCD"), EOS]]
    assert group.completion_lengths == (5,)
    assert group.is_truncated == (True,)


def test_a_short_prompt_leaves_more_room(tokenizer):
    group = one(tokenizer, "01", "ABCDEFGHIJ", limits=Limits(max_length=10, raw=True))
    assert lists(group) == [[BOS, *ids(tokenizer, "01"), *ids(tokenizer, "ABCDEF"), EOS]]


def test_what_just_fits_is_not_cut(tokenizer):
    limits = Limits(max_length=8, max_completion_length=4, raw=True)
    group = one(tokenizer, "012", "xyz", limits=limits)
    assert (group.num_tokens, group.is_truncated) == (8, (False,))
    assert one(tokenizer, "0123", "xyz", limits=limits).is_truncated == (True,)


def test_huge_completion(tokenizer):
    group = one(tokenizer, "hi", "x" * 100_000, "y", limits=Limits(max_length=64))
    assert len(group.sequences[0]) == 64
    assert group.sequences[0][-2:].tolist() == [END, *ids(tokenizer, "\n")]
    assert group.is_truncated == (True, False)


def test_empty_completion_is_its_end(tokenizer):
    group = one(tokenizer, "hi", "", "yes")
    assert group.completion_lengths == (2, 5)
    assert lists(group)[0][-3:] == [ASSISTANT, END, *ids(tokenizer, "\n")]


def test_boundary_where_the_tokenizer_merges_across_it(tokenizer):
    group = one(tokenizer, "ab", "cd", limits=Limits(raw=True))
    assert lists(group) == [[BOS, *ids(tokenizer, "abcd"), EOS]]
    assert len(ids(tokenizer, "abcd")) == 3  # a, bc, d: the prompt's last letter went into the completion
    assert group.completion_lengths == (3,)


def test_boundary_is_the_same_for_all_completions(tokenizer):
    # Only the first merges across; the prompt they share is what both begin with.
    group = one(tokenizer, "ab", "cd", "xy", limits=Limits(raw=True))
    assert group.completion_lengths == (3, 4)


def test_a_completion_that_is_a_beginning_of_another(tokenizer):
    group = one(tokenizer, None, "a", "a b", limits=Limits())
    assert all(length >= 1 for length in group.completion_lengths)


def test_over_long_drop(tokenizer):
    groups = [("hi", ["x" * 50, "y"]), ("hi", ["x", "y"])]
    found = tokenise(tokenizer, groups, Limits(max_length=20, over_long="drop"), where=["1", "2"])
    assert found[0] is None
    assert found[1] is not None


def test_over_long_error_names_the_place(tokenizer):
    limits = Limits(max_length=20, max_completion_length=15, over_long="error")
    with pytest.raises(TooLong, match=r"a.jsonl, row 7: .* 7 \+ 52 tokens.* 20 in all and 15 for the completion"):
        tokenise(tokenizer, [("hi", ["y", "x" * 50])], limits, where=["a.jsonl, row 7"])
    one(tokenizer, "hi", "fits", limits=limits)


def test_the_tokenizer_does_not_warn_of_its_own_limit(tokenizer, caplog):
    one(tokenizer, "hi", "x" * 500)  # its model_max_length is 64
    assert not caplog.records


def test_nothing_to_tokenise(tokenizer):
    assert tokenise(tokenizer, [], Limits(), where=[]) == []


def test_distinct_sequences(tokenizer):
    group = one(tokenizer, "hi", "a", "b!", "a", "b!", "c")
    found, places = group.distinct()
    assert places == [0, 1, 0, 1, 2]
    assert [lists(found)[place] for place in places] == lists(group)
    assert len(found.sequences) == 3
    assert found.completion_lengths == (3, 4, 3)
    assert found.is_truncated == (False, False, False)
    assert found.distinct() == (found, [0, 1, 2])


def test_turns_and_plain_text_mix(tokenizer) -> None:
    turns, answer = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "yes"}]
    expected = lists(one(tokenizer, turns, answer))
    assert lists(one(tokenizer, turns, "yes")) == expected
    assert lists(one(tokenizer, "hi", answer)) == expected


def test_a_template_that_refuses_turns_names_the_row(tokenizer):
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}ok"
    groups = [(QUESTION, (ANSWER,)), ([turn("system", "be brief"), *QUESTION], (ANSWER,))]
    with pytest.raises(
        DataError, match=r"^b: the chat template refuses these turns \(no system\); expected turns that"
    ):
        tokenise(tokenizer, groups, Limits(), where=["a", "b"])


def test_fields_without_a_chat_template_are_refused(plain):
    answer = [turn("assistant", "yes") | {"reasoning_content": "why not"}]
    with pytest.raises(
        DataError, match=r"row 1: the chat template is missing, and nothing else reads reasoning_content"
    ):
        one(plain, QUESTION, answer)


def test_text_that_a_template_leaves_out_is_counted_and_said_once(tokenizer, caplog):
    thinking = [turn("assistant", "<think>why</think>yes")]
    tokenizer.chat_template = TEMPLATE_WITHOUT_REASONING
    for _ in range(2):
        group = one(tokenizer, QUESTION, ANSWER, thinking)
        assert group.loses_text == (False, True)
    assert [record.getMessage() for record in caplog.records] == [
        "the chat template leaves out text of 1 of 2 completions, such as reasoning in <think>, and no model sees it; the first "
        "is at row 1"
    ]
    assert lists(group)[0] == lists(group)[1]
    assert group.distinct()[0].loses_text == (False,)


def test_the_date_of_the_limits_is_today(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%Y') }}{% for message in messages %}{{ message.content }}{% endfor %}"
    first, second = (
        one(tokenizer, QUESTION, ANSWER, limits=Limits(date=date)) for date in ("2024-07-26", "1999-01-01")
    )
    assert lists(first) == [ids(tokenizer, "2024hiyes")]
    assert lists(second) == [ids(tokenizer, "1999hiyes")]
