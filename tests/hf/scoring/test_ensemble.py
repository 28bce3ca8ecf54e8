import json
import statistics
from functools import partial

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rewarden import shaping
from rewarden.hf.scoring.ensemble import ScorerEnsemble, combined
from rewarden.hf.scoring.scorer import CompletionScore, Scorer
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck

PROMPTS = ["What is the weather in Rome?", "hi", "Tell me a long story about a lighthouse."]
COMPLETIONS = [["Sunny.", "It rains all day and all night.", "Sunny."], ["hello"], ["Once upon a time.", "", "abc abc"]]


@pytest.fixture
def halves():
    """A tokenizer without merges and template, and with other ids than the usual one has."""
    symbols = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)]
    fast = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in symbols[:2]])
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<end>")


@pytest.fixture
def scorers(build, tokenizer, halves) -> tuple[Scorer, ...]:
    """A decoder, an encoder and an InfoRM decoder with another tokenizer and tighter limits."""
    wide = Limits(max_length=100)
    return (
        Scorer(build("llama", seed=1), tokenizer, wide),
        Scorer(build("bert", seed=2), tokenizer, wide, batch_tokens=60),
        Scorer(build("qwen3", InfoBottleneck(latent_size=4), seed=3), halves, Limits(max_length=24)),
    )


@pytest.fixture
def alone(scorers) -> list[list[CompletionScore]]:
    """What each model says by itself, over all completions."""
    return [[score for group in scorer(PROMPTS, COMPLETIONS) for score in group] for scorer in scorers]


def flat(scores) -> list[CompletionScore]:
    return [score for group in scores for score in group]


def test_members_are_what_each_model_says_alone(scorers, alone):
    found = ScorerEnsemble(scorers)(PROMPTS, COMPLETIONS)
    assert [len(group) for group in found] == [3, 1, 3]
    for score, *each in zip(flat(found), *alone, strict=True):
        assert score.members == tuple(one.reward for one in each)
        assert score.reward == pytest.approx(statistics.fmean(score.members), rel=1e-14)
        assert score.uncertainty == pytest.approx(statistics.stdev(score.members), rel=1e-12)
        assert score.length == each[0].length
        assert score.is_truncated == any(one.is_truncated for one in each)
    assert len({score.members for score in flat(found)}) == 6  # "Sunny." twice


def test_tokenizers_and_limits_stay_each_model_s_own(scorers, alone):
    found = flat(ScorerEnsemble(scorers)(PROMPTS, COMPLETIONS))
    assert alone[0][0].length != alone[2][0].length
    assert not any(score.is_truncated for score in alone[0])
    assert {score.is_truncated for score in found} == {True, False}
    reordered = flat(ScorerEnsemble(scorers[::-1])(PROMPTS, COMPLETIONS))
    assert [score.length for score in reordered] == [score.length for score in alone[2]]
    assert [score.members for score in reordered] == [score.members[::-1] for score in found]


@pytest.mark.parametrize(
    ("chosen", "by_hand"),
    [
        (shaping.nominal, statistics.fmean),
        (shaping.mean, statistics.fmean),
        (shaping.worst, min),
        (partial(shaping.uwo, penalty=0.5), lambda r: statistics.fmean(r) - 0.5 * statistics.pvariance(r)),
        (
            partial(shaping.uwo, penalty=0.5, variance="unbiased"),
            lambda r: statistics.fmean(r) - 0.5 * statistics.variance(r),
        ),
        (partial(shaping.lcb, penalty=2.0), lambda r: statistics.fmean(r) - 2 * statistics.pstdev(r)),
        (partial(shaping.mix, nominal_weight=0.25), lambda r: 0.25 * statistics.fmean(r) + 0.75 * min(r)),
    ],
)
def test_shapings(scorers, alone, chosen, by_hand):
    found = flat(ScorerEnsemble(scorers, chosen)(PROMPTS, COMPLETIONS))
    expected = [by_hand([one.reward for one in each]) for each in zip(*alone, strict=True)]
    assert [score.reward for score in found] == pytest.approx(expected, rel=1e-12)
    assert len({score.reward for score in found}) == 6


def test_identical_completions_tie_exactly_under_every_shaping(scorers):
    many = [["same", *(f"other {number}" for number in range(9)), "same"] for _ in range(3)]
    for chosen in (shaping.mean, shaping.worst, shaping.uwo, shaping.lcb):
        for group in ScorerEnsemble(scorers, chosen)(["a", "b", "c"], many):
            assert group[0] == group[-1]


def test_standardised_members_are_in_each_model_s_own_units(scorers, alone):
    scales = [(2.0, 0.5), (-1.0, 4.0), (0.0, 1.0)]
    for scorer, (mean, std) in zip(scorers, scales, strict=True):
        scorer.model.config.reward_mean, scorer.model.config.reward_std = mean, std
    found = flat(ScorerEnsemble(scorers, standardise=True)(PROMPTS, COMPLETIONS))
    for score, *each in zip(found, *alone, strict=True):
        expected = [(one.reward - mean) / std for one, (mean, std) in zip(each, scales, strict=True)]
        assert score.members == pytest.approx(expected, rel=1e-14)
        assert score.reward == pytest.approx(statistics.fmean(expected), rel=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(None, None), (0.0, None), (0.0, 0.0)])
def test_standardising_needs_the_scale_of_every_model(scorers, mean, std):
    for scorer in scorers:
        scorer.model.config.reward_mean, scorer.model.config.reward_std = 0.0, 1.0
    scorers[1].model.config.reward_mean, scorers[1].model.config.reward_std = mean, std
    with pytest.raises(ValueError, match=f"model 2 of the ensemble has reward_mean {mean} and reward_std {std}"):
        ScorerEnsemble(scorers, standardise=True)
    ScorerEnsemble(scorers)  # raw needs none


def test_a_member_with_heads_of_its_own_enters_by_its_reward(build, tokenizer):
    heads = Scorer(build("llama", Ensemble(BradleyTerry(), size=3)), tokenizer, Limits())
    careful = Scorer(heads.model, tokenizer, Limits(), shaping.worst)
    ((found,),) = ScorerEnsemble((heads, careful))(["hi"], [["hello"]])
    ((nominal,),), ((worst,),) = heads(["hi"], [["hello"]]), careful(["hi"], [["hello"]])
    assert found.members == (nominal.reward, worst.reward)
    assert len(nominal.members) == 3
    assert worst.reward == min(nominal.members)


@pytest.mark.parametrize("budget", [1, 16384])
def test_progress_adds_up_to_the_completions(scorers, budget):
    ticks = []
    small = tuple(Scorer(one.model, one.tokenizer, one.limits, batch_tokens=budget) for one in scorers)
    ScorerEnsemble(small)(PROMPTS, COMPLETIONS, progress=ticks.append)
    assert sum(ticks) == 7
    assert all(tick > 0 for tick in ticks)


def test_the_record_names_members_and_shaping(scorers):
    record = ScorerEnsemble(scorers, partial(shaping.uwo, penalty=0.1)).record
    assert record["members"] == [scorer.record for scorer in scorers]
    assert record["members"][2]["method"] == "InfoBottleneck"
    rest = {name: value for name, value in record.items() if name != "members"}
    assert rest == {
        "method": "ScorerEnsemble",
        "standardise": False,
        "shaping": "uwo",
        "penalty": 0.1,
        "variance": "population",
    }
    assert ScorerEnsemble(scorers).record["shaping"] == "nominal"
    json.dumps(record)


def test_loaded_folders_make_the_same_ensemble(scorers, tmp_path):
    for number, scorer in enumerate(scorers):
        save(scorer.model, scorer.tokenizer, scorer.limits, {}, tmp_path / str(number))
    loaded = ScorerEnsemble(tuple(Scorer.load(tmp_path / str(number)) for number in range(3)))
    expected = flat(ScorerEnsemble(scorers)(PROMPTS, COMPLETIONS))
    for ours, theirs in zip(flat(loaded(PROMPTS, COMPLETIONS)), expected, strict=True):
        assert ours.members == pytest.approx(theirs.members, rel=1e-5, abs=1e-5)
        assert (ours.length, ours.is_truncated) == (theirs.length, theirs.is_truncated)


def test_one_model_is_no_ensemble(scorers):
    with pytest.raises(ValueError, match="got 1 scorers, expected at least 2"):
        ScorerEnsemble(scorers[:1])


def test_nothing_to_score(scorers):
    assert ScorerEnsemble(scorers)([], []) == []
    with pytest.raises(ValueError, match="got 1 prompts and 0 lists"):
        ScorerEnsemble(scorers)(["hi"], [])


def test_combined_by_hand():
    output = combined(torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64))
    assert output.reward.tolist() == pytest.approx([7 / 3, 0.0])
    assert output.uncertainty.tolist() == pytest.approx([(7 / 3) ** 0.5, 0.0])
    # The reference's example: WCO 1, UWO at 0.5 with the population's variance 1.5556, with the unbiased one 1.1667.
    assert shaping.worst(output)[0].item() == 1.0
    assert shaping.uwo(output, penalty=0.5)[0].item() == pytest.approx(14 / 9)
    assert shaping.uwo(output, penalty=0.5, variance="unbiased")[0].item() == pytest.approx(7 / 6)


def test_standardising_needs_trained_members(scorers):
    class Constant:
        record: dict = {}  # noqa: RUF012

        def __call__(self, prompts, completions, *, progress=None):  # noqa: ARG002
            return [[CompletionScore(1.0) for _ in group] for group in completions]

    mixed = ScorerEnsemble((scorers[0], Constant()))(PROMPTS, COMPLETIONS)
    assert all(score.members[1] == 1.0 for group in mixed for score in group)
    with pytest.raises(ValueError, match="member 1 is a Constant"):
        ScorerEnsemble((Constant(), scorers[0]), standardise=True)
