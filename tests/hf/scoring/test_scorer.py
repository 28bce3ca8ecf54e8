from functools import partial

import pytest
import torch

from rewarden import shaping
from rewarden.hf.scoring.scorer import CompletionScore, Scorer
from rewarden.hf.tokens import Limits, tokenise
from rewarden.hf.training.fit import save
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck

PROMPTS = ["What is the weather in Rome?", "hi", "Tell me a long story about a lighthouse.", "hi"]
COMPLETIONS = [
    ["Sunny.", "It rains all day and all night.", "No idea"],
    ["hello"],
    ["Once upon a time.", ""],
    ["good day", "hello", "hi hi hi hi hi hi hi hi hi hi hi"],
]


@pytest.fixture
def scorer(build, tokenizer):
    def make(method=None, *, layout="auto", **options):
        options = {"limits": Limits(max_length=100)} | options
        return Scorer(build("llama", method, layout=layout), tokenizer, **options)

    return make


def rewards(scores) -> list[float]:
    return [score.reward for group in scores for score in group]


def directly(scorer) -> list[float]:
    """Each completion on its own through the model."""
    found = []
    for prompt, completions in zip(PROMPTS, COMPLETIONS, strict=True):
        for completion in completions:
            (group,) = tokenise(scorer.tokenizer, [(prompt, [completion])], scorer.limits, where=[""])
            scorer.model.use_layout("padded")
            with torch.no_grad():
                found.append(scorer.model(torch.tensor(group.sequences[0][None]).long()).reward.item())
    return found


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("budget", [1, 120, 16384])
def test_equals_the_model_and_keeps_the_order(scorer, layout, budget):
    made = scorer(layout=layout, batch_tokens=budget)
    found = made(PROMPTS, COMPLETIONS)
    assert [len(group) for group in found] == [3, 1, 2, 3]
    assert rewards(found) == pytest.approx(directly(made), rel=1e-5, abs=1e-5)
    assert len(set(rewards(found))) >= 8


def test_the_same_text_scores_alike(scorer):
    found = scorer()(["hi", "hi"], [["hello", "no", "hello"], ["hello"]])
    assert found[0][0] == found[0][2]
    assert found[0][0].reward == pytest.approx(found[1][0].reward, abs=1e-5)
    assert found[0][0].reward != pytest.approx(found[0][1].reward, abs=1e-4)


def test_progress_counts_completions(scorer):
    ticks = []
    scorer(batch_tokens=60)(PROMPTS, COMPLETIONS, progress=ticks.append)
    assert sum(ticks) == 9
    assert len(ticks) > 1


def test_uncertainty_is_the_method_s(scorer):
    made = scorer(InfoBottleneck(latent_size=4))
    assert all(score.uncertainty > 0 for group in made(PROMPTS, COMPLETIONS) for score in group)
    assert scorer()(["hi"], [["hello"]])[0][0].uncertainty is None
    alone = [made([prompt], [[one]])[0][0] for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True) for one in group]
    together = [score.uncertainty for group in made(PROMPTS, COMPLETIONS) for score in group]
    assert together == pytest.approx([score.uncertainty for score in alone], rel=1e-4)
    assert len({round(value, 4) for value in together}) > 3


def test_members_are_the_method_s(scorer):
    made = scorer(Ensemble(BradleyTerry(), size=3))
    for score in (score for group in made(PROMPTS, COMPLETIONS) for score in group):
        assert score.reward == pytest.approx(sum(score.members) / 3, abs=1e-5)
        assert len(set(score.members)) == 3
    assert scorer()(["hi"], [["hello"]])[0][0].members is None


def test_shaping_is_applied(scorer):
    method = Ensemble(BradleyTerry(), size=3)
    nominal, worst, mixed = (
        rewards(scorer(method, shaping=chosen)(PROMPTS, COMPLETIONS))
        for chosen in (shaping.nominal, shaping.worst, partial(shaping.mix, nominal_weight=0.25))
    )
    assert all(low < mean for low, mean in zip(worst, nominal, strict=True))
    expected = [0.25 * mean + 0.75 * low for low, mean in zip(worst, nominal, strict=True)]
    assert mixed == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="needs a method with members"):
        scorer(shaping=shaping.worst)(PROMPTS, COMPLETIONS)


def test_lengths_and_cuts(scorer):
    made = scorer(limits=Limits(max_length=100, max_completion_length=6))
    ((short, long),) = made(["hi"], [["yes", "x" * 50]])
    assert (short.length, short.is_truncated) == (5, False)  # three letters, <end> and the new line
    assert (long.length, long.is_truncated) == (6, True)


def test_turns_score_like_plain_text(scorer):
    made = scorer()
    turns = made([[{"role": "user", "content": "hi"}]], [[[{"role": "assistant", "content": "hello"}]]])
    assert turns == made(["hi"], [["hello"]])


@pytest.mark.parametrize(
    ("prompts", "completions"), [(["hi"], []), (["hi"], [["a"], ["b"]]), (["hi", "ho"], [["a"], []])]
)
def test_mismatched_lengths_are_refused(scorer, prompts, completions):
    with pytest.raises(ValueError, match=f"got {len(prompts)} prompts and {len(completions)} lists"):
        scorer()(prompts, completions)


def test_nothing_to_score(scorer):
    assert scorer()([], []) == []


def test_a_scorer_does_not_build_a_graph(scorer):
    made = scorer()
    (group,) = tokenise(made.tokenizer, [("hi", ["a", "b"])], made.limits, where=[""])
    (output,) = made.outputs([group])
    assert output.reward.shape == (2,)
    assert not output.reward.requires_grad


def test_load_gives_the_same_scores(build, tokenizer, tmp_path):
    model = build("llama", InfoBottleneck(latent_size=4))
    limits = Limits(max_length=40, max_completion_length=12, over_long="drop", raw=True)
    save(model, tokenizer, limits, {}, tmp_path)
    loaded = Scorer.load(tmp_path)
    assert loaded.limits == Limits(max_length=40, max_completion_length=12, over_long="truncate", raw=True)
    assert not loaded.model.training
    found = loaded(PROMPTS, COMPLETIONS)
    expected = Scorer(model, tokenizer, loaded.limits)(PROMPTS, COMPLETIONS)
    assert found == expected
    assert isinstance(found[0][0], CompletionScore)
    assert found[0][1].is_truncated


def test_load_may_override_raw_and_layout(build, tokenizer, tmp_path):
    save(build("llama"), tokenizer, Limits(), {}, tmp_path)
    plain, raw = (Scorer.load(tmp_path, raw=raw, layout="padded") for raw in (None, True))
    assert plain.model.layout == "padded"
    assert (plain.limits.raw, raw.limits.raw) == (False, True)
    assert plain(["hi"], [["hello"]])[0][0].length == 7
    assert raw(["hi"], [["hello"]])[0][0].length == 6


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a trained reward model \(no config.json\)"):
        Scorer.load(tmp_path)


def test_a_language_model_is_refused(backbones):
    with pytest.raises(ValueError, match="holds a llama model, not a reward model"):
        Scorer.load(backbones["llama"])


def test_a_scorer_is_shown_in_a_line(build, tokenizer):
    scorer = Scorer(build("llama", layout="tree"), tokenizer, Limits(max_length=99))
    assert repr(scorer) == "Scorer(BradleyTerry(), backbone=llama, device=cpu, layout=tree, max_length=99)"
