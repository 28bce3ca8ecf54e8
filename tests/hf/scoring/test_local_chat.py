import math

import pytest
import torch
from tokenizers.normalizers import Replace
from transformers import AutoModelForCausalLM

from rewarden.hf.scoring.local_chat import LocalChat
from rewarden.judging.answers import Question
from rewarden.judging.templates import PAIRWISE, POINTWISE, VERIFIER, Template

YES_NO = Template("verifier", "be fair", "Q {prompt} A {completion} good?", ("Yes", "No"))
RATING = Template("pointwise", "", "{prompt} {completion} 1 to 12?", ("1", "2", "10", "12"))
PAIR = Template("pairwise", "s", "{prompt} {first} or {second}?", ("A", "B", "Tie"))
GROUPS = [
    [
        Question("What is it?", ("a cat",)),
        Question("What is it?", ("a dog and a cat",)),
        Question("What is it?", ("",)),
    ],
    [],
    [Question("hi", ("ho",))],
]


@pytest.fixture(scope="module")
def folder(write_backbone) -> str:
    return write_backbone("llama", language_model=True)


@pytest.fixture
def chat(folder):
    """chat(...): the judge over a random model; fields are replaced."""
    return lambda layout="auto", **more: LocalChat.load(folder, layout=layout, **more)


def by_hand(folder, tokenizer, opening: str, text: str) -> float:
    """Log-probability that the text follows, token by token from the model's own logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    start = tokenizer(opening, add_special_tokens=False)["input_ids"]
    ids = tokenizer(opening + text, add_special_tokens=False)["input_ids"]
    assert ids[: len(start)] == start
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(len(start), len(ids)))


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("budget", [1, 4096])
def test_the_answers_are_those_of_the_model_s_logits(chat, folder, tokenizer, layout, budget):
    found = chat(layout, batch_tokens=budget)(YES_NO, GROUPS)
    assert [len(group) for group in found] == [3, 0, 1]
    for group, answers in zip(GROUPS, found, strict=True):
        for question, answer in zip(group, answers, strict=True):
            opening = f"<bos><system>be fair<end>\n<user>Q {question.prompt} A {question.completions[0]} good?<end>\n<assistant>"
            expected = [by_hand(folder, tokenizer, opening, text) for text in ("Yes", "No")]
            assert answer.log_probs == pytest.approx(expected, abs=1e-4)
            assert answer.choice == (0 if expected[0] > expected[1] else 1)
            assert not answer.is_truncated


def test_ratings_whose_digits_are_tokens_of_their_own(chat, folder, tokenizer):
    ((answer,),) = chat()(RATING, [[Question("hi", ("ho",))]])
    opening = "<bos><user>hi ho 1 to 12?<end>\n<assistant>"
    one, two, ten, twelve = (math.exp(by_hand(folder, tokenizer, opening, text)) for text in RATING.answers)
    expected = [one - ten - twelve, two, ten, twelve]
    assert [math.exp(value) for value in answer.log_probs] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_pairs_in_the_order_shown(chat, folder, tokenizer, layout):
    questions = [Question("p", ("left", "right")), Question("p", ("right", "left"))]
    found = chat(layout)(PAIR, [questions])
    for question, answer in zip(questions, found[0], strict=True):
        first, second = question.completions
        opening = f"<bos><system>s<end>\n<user>p {first} or {second}?<end>\n<assistant>"
        expected = [by_hand(folder, tokenizer, opening, text) for text in ("A", "B", "Tie")]
        assert answer.log_probs == pytest.approx(expected, abs=1e-4)
        assert answer.choice == max(range(3), key=expected.__getitem__)


def test_only_what_is_needed_is_appended(chat):
    made = chat()
    plan = made.plan(YES_NO)
    y, e, s, n, o = (made.tokenizer.convert_tokens_to_ids(letter) for letter in "YesNo")
    assert plan.ending == ()
    assert plan.answers == ((y, e, s), (n, o))
    assert set(plan.stems) == {(y, e), (n,)}
    assert plan.depth == 3
    plan = made.plan(RATING)
    one = made.tokenizer.convert_tokens_to_ids("1")
    assert plan.stems == ((one,),)  # 2 needs no stem of its own
    assert made.plan(Template("pairwise", "", "{prompt}{first}{second}", ("A", "B"))).stems == ((),)


def test_an_answer_that_merges_with_the_end_of_the_question(chat, folder, tokenizer):
    made = chat()
    tokenizer.chat_template = TEMPLATE_ENDING_IN_B
    made = LocalChat(made.model, tokenizer)
    template = Template("verifier", "", "{prompt} {completion}", ("c", "d"))
    plan = made.plan(template)
    b, bc = tokenizer.convert_tokens_to_ids(["b", "bc"])
    assert plan.ending == (b,)
    assert plan.answers == ((bc,), (b, tokenizer.convert_tokens_to_ids("d")))
    ((answer,),) = made(template, [[Question("hi", ("ho",))]])
    expected = [by_hand(folder, tokenizer, "<user>hi ho<end>", text) for text in ("bc", "bd")]
    assert answer.log_probs == pytest.approx(expected, abs=1e-4)


TEMPLATE_ENDING_IN_B = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}b"


def test_a_template_without_system_turns(chat, tokenizer):
    made = LocalChat(chat().model, tokenizer)
    messages = YES_NO.messages("p", "c")
    plain = "<bos><system>be fair<end>\n<user>Q p A c good?<end>\n<assistant>"
    joined = "<bos><user>be fair\n\nQ p A c good?<end>\n<assistant>"
    original = tokenizer.chat_template
    assert made.opening(messages) == plain
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    silent = original.replace("<{{ message", "{% if message['role'] == 'system' %}{% continue %}{% endif %}<{{ message")
    for template in (refusing + original, silent):
        tokenizer.chat_template = template
        assert made.opening(messages) == joined
    tokenizer.chat_template = "{{ raise_exception('no turns') }}"
    with pytest.raises(ValueError, match=r"cannot put the question \(it refuses these turns \(no turns\)\)"):
        made.opening(messages)


def test_a_template_that_reasons_is_told_not_to(chat, tokenizer):
    tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}[no thoughts]{% endif %}"
    assert LocalChat(chat().model, tokenizer).opening(YES_NO.messages("p", "c")).endswith("<assistant>[no thoughts]")


def test_a_model_without_a_chat_template(chat, folder, tokenizer):
    tokenizer.chat_template = None
    made = LocalChat(chat().model, tokenizer)
    ((answer,),) = made(YES_NO, [[Question("hi", ("ho",))]])
    opening = "<bos>System: be fair\n\nUser: Q hi A ho good?\n\nAssistant: "
    expected = [by_hand(folder, tokenizer, opening, text) for text in ("Yes", "No")]
    assert answer.log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("template", [YES_NO, PAIR])
def test_long_completions_lose_their_ends(chat, template):
    made = chat(max_length=120)
    texts = ("b" * 300, "d" * 40)[: 2 if template is PAIR else 1]
    question = Question("What is it?", texts)
    plan = made.plan(template)
    ids, cut = made._shown(template, [question], plan)[0]
    assert cut
    assert len(ids) + plan.depth - 1 <= 120
    text = made.tokenizer.decode(ids)
    assert "What is it?" in text and text.endswith("?<end>\n<assistant>")
    assert "bbbb" in text
    if template is PAIR:
        assert "d" * 16 in text
    else:
        assert len(ids) + plan.depth - 1 == 120  # no more is cut than must be
    assert made(template, [[question]])[0][0].is_truncated


def test_then_the_prompt_loses_its_start(chat):
    made = chat(max_length=90)
    ((ids, cut),) = made._shown(YES_NO, [Question("x" * 300 + "end", ("y" * 300,))], made.plan(YES_NO))
    text = made.tokenizer.decode(ids)
    assert cut and len(ids) <= 88
    assert "end A " + "y" * 16 + " good?" in text
    with pytest.raises(ValueError, match=r"the template takes \d+ tokens without a prompt, and a question may have 38"):
        chat(max_length=40)(YES_NO, [[Question("x" * 300, ("y" * 300,))]])


def test_a_limit_beyond_the_model_is_the_model_s(chat):
    assert chat(max_length=10**6).max_length == 2048
    assert chat().max_length == 2048
    assert chat(max_length=99).record == {"model": chat().model.name, "max_length": 99}


def test_large_groups_are_split(chat):
    made = chat(batch_tokens=300)
    questions = [[*range(50), 60 + n] for n in range(20)]
    parts = list(made._parts(questions, made.plan(PAIR)))
    assert len(parts) == 1  # 50 shared tokens, then 2 to 3 for each
    parts = list(made._parts([[n, *range(100)] for n in range(5)], made.plan(PAIR)))
    assert [len(part.sequences) for part in parts] == [2, 1, 2]
    assert [part.sequences[0][0] for part in parts] == [0, 2, 3]


def test_progress_names_every_group_once(chat):
    for budget in (1, 4096):
        done = []
        chat(batch_tokens=budget)(YES_NO, GROUPS, progress=done.append)
        assert sorted(done) == [0, 1, 2]
    assert chat()(YES_NO, []) == []


def test_lengths_are_tokens(chat):
    assert chat().lengths(["", "abc", "bcd"]) == [0, 2, 2]  # "bc" is one token
    assert chat().lengths([]) == []


def test_the_defaults_fit_any_chat_model(chat):
    made = chat()
    for template in (VERIFIER, POINTWISE, PAIRWISE):
        texts = ("one", "two")[: 2 if template is PAIRWISE else 1]
        ((answer,),) = made(template, [[Question("p", texts)]])
        assert sum(math.exp(value) for value in answer.log_probs) <= 1 + 1e-6
        assert len(answer.log_probs) == len(template.answers)


def test_answers_that_the_tokenizer_cannot_tell_apart(chat, tokenizer):
    tokenizer.backend_tokenizer.normalizer = Replace("No", "Yes")
    with pytest.raises(ValueError, match=r"does not tell the answers \['Yes', 'No'\] apart"):
        LocalChat(chat().model, tokenizer).plan(YES_NO)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_other_families(write_backbone, tokenizer, family):
    folder = write_backbone(family, language_model=True)
    ((answer,),) = LocalChat.load(folder)(YES_NO, [[Question("hi", ("ho",))]])
    opening = "<bos><system>be fair<end>\n<user>Q hi A ho good?<end>\n<assistant>"
    expected = [by_hand(folder, tokenizer, opening, text) for text in ("Yes", "No")]
    assert answer.log_probs == pytest.approx(expected, abs=1e-4)


def test_what_is_no_language_model_is_refused(write_backbone, tmp_path):
    with pytest.raises(ValueError, match="language model"):
        LocalChat.load(write_backbone("bert", language_model=True))
    with pytest.raises(ValueError, match="there is no such folder"):
        LocalChat.load(str(tmp_path / "none"))
