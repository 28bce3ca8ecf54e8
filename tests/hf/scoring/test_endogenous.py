"""EndogenousScorer against rewards recomputed from the stock model's logits, one sequence at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewarden.hf.scoring.endogenous import EndogenousScorer
from rewarden.hf.scoring.ensemble import ScorerEnsemble
from rewarden.hf.scoring.weighted_sum import Standardised
from rewarden.messages import Text

PROMPTS: list[Text] = ["a question, bc?", [{"role": "user", "content": "hi"}], "third"]
COMPLETIONS: list[list[Text]] = [
    ["an answer", "an answer that goes on", "x", "an answer"],
    [[{"role": "assistant", "content": "hello é"}], ""],
    ["one"],
]


@pytest.fixture(scope="module")
def folders(write_backbone) -> dict[str, str]:
    return {family: write_backbone(family, language_model=True) for family in ("llama", "gpt2", "gpt_neox")}


def by_hand(folder: str, prompt: str, completion: str, *, raw: bool = False) -> tuple[list[float], list[float], float]:
    """Rewards with gamma 0.93 and log-probabilities of the completion's tokens and V(s_1), from all logits of one sequence."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    opening = prompt if raw else f"<bos><user>{prompt}<end>\n<assistant>"
    whole = opening + completion + ("<eos>" if raw else "<end>\n")
    first, ids = (tokenizer(text, add_special_tokens=raw)["input_ids"] for text in (opening, whole))
    assert ids[: len(first)] == first
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    rewards, log_probs = [], []
    for t in range(len(first), len(ids)):
        q = logits[t - 1, ids[t]].item()
        value = torch.logsumexp(logits[t], 0).item() if t + 1 < len(ids) else 0.0
        rewards.append(q - 0.93 * value)
        log_probs.append(logits[t - 1].log_softmax(-1)[ids[t]].item())
    return rewards, log_probs, torch.logsumexp(logits[len(first) - 1], 0).item()


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_rewards_recomputed_from_the_stock_logits(folders, family: str, layout: str) -> None:
    scorer = EndogenousScorer.load(folders[family], layout=layout)
    if family == "llama":
        assert scorer.model.layout == ("tree" if layout == "auto" else "padded")
    scores, tokens = scorer.with_tokens(PROMPTS[:1], COMPLETIONS[:1])
    assert scores == scorer(PROMPTS[:1], COMPLETIONS[:1])
    for completion, score, token in zip(COMPLETIONS[0], scores[0], tokens[0], strict=True):
        assert isinstance(completion, str)
        rewards, log_probs, value = by_hand(folders[family], "a question, bc?", completion)
        assert token.rewards == pytest.approx(rewards, abs=1e-4)
        assert token.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert token.prompt_value == score.prompt_value == pytest.approx(value, abs=1e-4)
        assert score.reward == pytest.approx(sum(0.93**t * each for t, each in enumerate(log_probs)), abs=1e-4)
        assert score.length == len(log_probs) == len(token.tokens)
        # The discounted rewards telescope.
        assert sum(0.93**t * r for t, r in enumerate(token.rewards)) == pytest.approx(score.reward + value, abs=1e-4)
        assert "".join(token.tokens) == completion + "<end>\n"
    assert scores[0][0] == scores[0][3]  # identical completions tie exactly


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_batches_prompts_and_kinds_of_text_do_not_mix(folders, layout: str) -> None:
    seen: list[int] = []
    scorer = EndogenousScorer.load(folders["llama"], layout=layout, batch_tokens=40)
    together = scorer(PROMPTS, COMPLETIONS, progress=seen.append)
    assert sum(seen) == 7
    assert len(seen) > 1
    for prompt, completions, scores in zip(PROMPTS, COMPLETIONS, together, strict=True):
        for completion, score in zip(completions, scores, strict=True):
            ((alone,),) = scorer([prompt], [[completion]])
            assert score.reward == pytest.approx(alone.reward, abs=1e-4)
            assert score.prompt_value == pytest.approx(alone.prompt_value, abs=1e-4)
    assert together[1][0].reward == pytest.approx(scorer(["hi"], [["hello é"]])[0][0].reward, abs=1e-4)


def test_aggregations_alpha_and_gamma(folders) -> None:
    _, log_probs, value = by_hand(folders["llama"], "third", "one")
    for options, expected in {
        (("aggregation", "sum"), ("alpha", 2.0)): 2 * sum(log_probs),
        (("aggregation", "mean"),): sum(log_probs) / len(log_probs),
        (("gamma", 0.5),): sum(0.5**t * each for t, each in enumerate(log_probs)),
    }.items():
        scorer = EndogenousScorer.load(folders["llama"], **dict(options))
        ((score,),), ((token,),) = scorer.with_tokens(["third"], [["one"]])
        assert score.reward == pytest.approx(expected, abs=1e-4)
        assert score.prompt_value == pytest.approx(scorer.alpha * value, abs=1e-4)
        gamma = scorer.gamma if scorer.aggregation == "discounted" else 1.0
        total = sum(gamma**t * reward for t, reward in enumerate(token.rewards))
        wanted = scorer.alpha * (sum(gamma**t * each for t, each in enumerate(log_probs)) + value)
        assert total == pytest.approx(wanted, abs=1e-3)
    with pytest.raises(ValueError, match="got aggregation 'max'; use"):
        EndogenousScorer.load(folders["llama"], aggregation="max")
    with pytest.raises(ValueError, match=r"got gamma 1.1 and alpha 1.0; gamma is a discount"):
        EndogenousScorer.load(folders["llama"], gamma=1.1)
    with pytest.raises(ValueError, match="alpha a positive number"):
        EndogenousScorer.load(folders["llama"], alpha=0.0)


def test_record(folders) -> None:
    scorer = EndogenousScorer.load(folders["llama"], system="Be brief.")
    assert json.loads(json.dumps(scorer.record)) == {
        "method": "EndogenousReward",
        "model": folders["llama"],
        "aggregation": "discounted",
        "gamma": 0.93,
        "alpha": 1.0,
        "system": "Be brief.",
    }
    assert EndogenousScorer.load(folders["llama"], aggregation="sum").record["gamma"] is None


def test_raw_text_and_models_without_a_template(folders, write_backbone) -> None:
    rewards, _, _ = by_hand(folders["llama"], "once upon", " a time", raw=True)
    ((token,),) = EndogenousScorer.load(folders["llama"], raw=True).token_rewards(["once upon"], [[" a time"]])
    assert token.rewards == pytest.approx(rewards, abs=1e-4)
    assert "".join(token.tokens) == " a time<eos>"
    bare = write_backbone("llama", language_model=True)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = None
    (Path(bare) / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(bare)
    scorer = EndogenousScorer.load(bare)
    assert scorer.token_rewards(["once upon"], [[" a time"]])[0][0].rewards == pytest.approx(rewards, abs=1e-4)
    # Turns become text with roles, a persona included.
    persona = EndogenousScorer.load(bare, system="Pirate.")
    turns = persona.token_rewards(["hi"], [["yo"]])[0][0]
    text = "System: Pirate.\n\nUser: hi\n\nAssistant: "
    assert turns.log_probs == pytest.approx(by_hand(bare, text, "yo\n\n", raw=True)[1], abs=1e-4)


def test_personas(folders) -> None:
    plain = EndogenousScorer.load(folders["llama"])
    persona = EndogenousScorer.load(folders["llama"], system="You are a pirate.")
    turns: list[Text] = [
        [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "hi"}],
        [{"role": "user", "content": "hi"}],
    ]
    with_turn, without = plain(turns, [["ahoy", "hello"]] * 2)
    for prompt in ("hi", [{"role": "user", "content": "hi"}]):
        found = persona([prompt], [["ahoy", "hello"]])[0]
        assert [s.reward for s in found] == pytest.approx([s.reward for s in with_turn], abs=1e-4)
        assert abs(found[0].reward - without[0].reward) > 1e-2
    with pytest.raises(ValueError, match="prompt 2 has a system turn of its own, and the scorer has one for all"):
        persona(["hi", turns[0]], [["a"], ["b"]])
    raw = EndogenousScorer.load(folders["llama"], system="You are a pirate.", raw=True)
    with pytest.raises(ValueError, match="prompt 1 is plain text that is used raw, which has no turns"):
        raw(["hi"], [["a"]])


def test_templates_without_system_turns_are_noticed(folders) -> None:
    skips = EndogenousScorer.load(folders["llama"], system="Pirate.")
    skips.tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with pytest.raises(ValueError, match="leaves the system turn out; put the persona into the prompts"):
        skips(["hi"], [["a"]])
    skips.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    )
    with pytest.raises(
        ValueError, match=r"refuses these turns \(System role not supported\); leave out the system turn"
    ):
        skips(["hi"], [["a"]])


def test_completions_need_something_before_them(folders) -> None:
    scorer = EndogenousScorer.load(folders["llama"], raw=True)
    with pytest.raises(ValueError, match="prompt 1: there is no prompt, so it cannot be told where"):
        scorer([None], [["whole text"]])
    assert math.isfinite(scorer([""], [["starts after <bos>"]])[0][0].reward)
    scorer.tokenizer._tokenizer.post_processor = None  # as GPT-2's and Qwen's: no token of its own at the start
    with pytest.raises(ValueError, match="prompt 1: nothing stands before the first token of the completion"):
        scorer([""], [["starts with itself"]])
    with pytest.raises(ValueError, match="got 2 prompts and 1 lists of completions"):
        scorer(["a", "b"], [["c"]])
    assert scorer([], []) == []


def test_truncation_is_said(folders) -> None:
    scorer = EndogenousScorer.load(folders["gpt2"])  # made for 256 tokens
    long, short = scorer(["hi"], [["abcdefgh" * 40, "abc"]])[0]
    assert (long.is_truncated, short.is_truncated) == (True, False)
    assert math.isfinite(long.reward)


def test_members_of_an_ensemble(folders) -> None:
    parts = [EndogenousScorer.load(folders["llama"], aggregation=name) for name in ("mean", "discounted")]
    standardised = tuple(Standardised.on(part, PROMPTS, COMPLETIONS) for part in parts)
    ensemble = ScorerEnsemble(standardised)  # type: ignore[arg-type]  # anything that scores will do
    scores = [score for group in ensemble(PROMPTS, COMPLETIONS) for score in group]
    for number in range(2):
        assert sum(score.members[number] for score in scores) == pytest.approx(0, abs=1e-6)
    assert ensemble.record["members"][0]["aggregation"] == "mean"


def test_a_scorer_is_shown_in_a_line():
    shown = "CausalModel('rewarden-tiny', backbone=llama, device=cpu, layout=tree)"
    assert (
        repr(EndogenousScorer.load("rewarden-tiny"))
        == f"EndogenousScorer({shown}, aggregation=discounted, max_length=2048)"
    )
