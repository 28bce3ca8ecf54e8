import logging

import pytest

from rewarden.data import Pair
from rewarden.hf import rendering
from rewarden.hf.model.reward_model import RewardModelConfig
from rewarden.hf.rendering import check_form, limits_of, limits_of_training, record
from rewarden.hf.scoring.scorer import Scorer
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save

TURNS = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def fresh(monkeypatch, caplog):
    """Nothing has been said yet."""
    monkeypatch.setattr(rendering, "_said", set())
    caplog.set_level(logging.INFO)


def pair(prompt) -> Pair:
    answer = [{"role": "assistant", "content": "yes"}] if isinstance(prompt, list) else "yes"
    return Pair(prompt, answer, answer, "data", None, None, "row 1")


WHOLE, PLAIN, CHAT = pair(None), pair("hi"), pair(TURNS)


@pytest.mark.parametrize(
    ("pairs", "raw", "is_raw", "uses_template", "is_mixed"),
    [
        ([WHOLE], False, True, False, False),
        ([WHOLE, CHAT], False, True, True, False),
        ([WHOLE, PLAIN], False, False, True, True),
        ([PLAIN], False, False, True, False),
        ([PLAIN], True, True, False, False),
        ([CHAT], False, False, True, False),
        ([CHAT], True, True, True, False),
    ],
)
def test_what_training_records(tokenizer, pairs, raw, is_raw, uses_template, is_mixed):
    limits = limits_of_training(pairs, Limits(raw=raw), tokenizer)
    assert limits.raw is is_raw
    found = record(pairs, limits, tokenizer)
    assert (found["version"], found["uses_template"], found["is_mixed"]) == (1, uses_template, is_mixed)
    assert len(found["chat_template_sha256"]) == 64


def test_without_a_template_there_is_nothing_to_choose(tokenizer):
    tokenizer.chat_template = None
    limits = limits_of_training([WHOLE], Limits(), tokenizer)
    assert limits == Limits()
    assert record([WHOLE], limits, tokenizer) == {
        "version": 1,
        "uses_template": False,
        "is_mixed": False,
        "chat_template_sha256": None,
    }


def test_two_forms_are_said(tokenizer, caplog):
    limits_of_training([WHOLE, WHOLE, PLAIN], Limits(), tokenizer)
    assert "2 of 3 pairs are whole texts" in caplog.text and "1 have a plain prompt" in caplog.text


def config(pairs, tokenizer, **asked) -> RewardModelConfig:
    limits = limits_of_training(pairs, Limits(**asked), tokenizer)
    return RewardModelConfig(limits=vars(limits), rendering=record(pairs, limits, tokenizer))


def test_training_goes_on_as_it_began(tokenizer, caplog):
    base = config([WHOLE], tokenizer, date="1999-12-31")
    assert limits_of_training([PLAIN], Limits(), tokenizer, base).date == "1999-12-31"
    assert "took plain text without the chat template, and this training takes it through it" in caplog.text


@pytest.mark.parametrize(
    ("pairs", "raw"), [([WHOLE], True), ([PLAIN], False), ([CHAT], False), ([WHOLE, PLAIN], False)]
)
def test_a_model_is_used_as_it_was_trained(tokenizer, pairs, raw, caplog):
    found = config(pairs, tokenizer, max_length=99, over_long="drop")
    caplog.clear()
    assert limits_of(found, tokenizer) == Limits(max_length=99, raw=raw)
    assert not caplog.records


def test_what_contradicts_training_is_refused_or_said(tokenizer, caplog):
    with pytest.raises(ValueError, match="RM was trained on plain text without its chat template, and raw is False"):
        limits_of(config([WHOLE], tokenizer), tokenizer, raw=False, name="RM")
    assert limits_of(config([WHOLE, PLAIN], tokenizer), tokenizer, raw=True).raw
    caplog.clear()
    for _ in range(2):
        assert limits_of(config([PLAIN], tokenizer), tokenizer, raw=True, name="RM").raw
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == [
        "RM was trained on text that went through its chat template, and --raw leaves it out"
    ]


def test_turns_are_new_to_a_model_of_plain_text(tokenizer, caplog):
    check_form(config([PLAIN], tokenizer), tokenizer, [TURNS])
    check_form(config([WHOLE], tokenizer), tokenizer, [None, "hi"])
    caplog.clear()
    check_form(config([WHOLE], tokenizer), tokenizer, ["hi", TURNS])
    assert "1 of 2 prompts are turns" in caplog.text


def test_another_template_is_noticed(tokenizer, caplog):
    found = config([PLAIN], tokenizer)
    tokenizer.chat_template += "!"
    limits_of(found, tokenizer, name="RM")
    assert "RM has another chat template now than in training" in caplog.text


def test_older_models_keep_the_rule_of_their_day_and_say_so_once(tokenizer, caplog):
    old = {"max_length": 99, "max_completion_length": None, "over_long": "truncate", "raw": False}
    for _ in range(2):
        assert limits_of(RewardModelConfig(limits=old), tokenizer, name="RM") == Limits(max_length=99)
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == [
        "RM does not record how its texts became tokens"
    ]
    assert limits_of(RewardModelConfig(limits=old), tokenizer, raw=True).raw


def test_a_newer_record_is_refused(tokenizer):
    newer = RewardModelConfig(limits=None, rendering={"version": 2})
    with pytest.raises(ValueError, match=r"RM: .*in version 2, expected 1"):
        limits_of(newer, tokenizer, name="RM")


def test_whole_texts_are_scored_as_they_were_trained(build, tokenizer, tmp_path):
    model, limits = build("llama"), limits_of_training([WHOLE], Limits(), tokenizer)
    model.config.rendering = record([WHOLE], limits, tokenizer)
    save(model, tokenizer, limits, {}, tmp_path)
    scorer = Scorer.load(tmp_path)
    ((whole,),), ((parts,),) = scorer([None], [["hi yes"]]), scorer(["hi"], [[" yes"]])
    assert whole.reward == parts.reward
