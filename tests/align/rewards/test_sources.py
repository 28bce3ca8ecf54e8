import json

import pytest
import torch
from torch.utils._pytree import tree_map

from rewarden import shaping
from rewarden.align.rewards.functions import RewardError
from rewarden.align.rewards.sources import (
    EndogenousSource,
    EnsembleSource,
    FunctionSource,
    ModelSource,
    RewardSource,
    load_source,
)
from rewarden.core import RewardOutput
from rewarden.hf.batches import make_batch
from rewarden.hf.scoring.endogenous import EndogenousScorer
from rewarden.hf.scoring.ensemble import ScorerEnsemble
from rewarden.hf.scoring.scorer import Scorer
from rewarden.hf.tokens import Limits, tokenise
from rewarden.hf.training.fit import save
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck

PROMPTS = ["What is the weather in Rome?", [{"role": "user", "content": "hi"}], "Tell me a story.", "hi"]
COMPLETIONS = [
    ["Sunny.", "It rains all day and all night.", "Sunny.", "No idea"],
    ["hello"],
    ["Once upon a time.", ""],
    ["good day", "hello", "hi hi hi hi hi hi hi hi hi hi hi"],
]
FLAT = [(prompt, one) for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True) for one in group]
EXTRAS = [{}] * 4


@pytest.fixture
def scorer(build, tokenizer):
    def make(method=None, *, layout="auto", family="llama", seed=0, **options):
        options = {"limits": Limits(max_length=100)} | options
        return Scorer(build(family, method, layout=layout, seed=seed), tokenizer, **options)

    return make


def directly(made: Scorer) -> tuple[torch.Tensor, RewardOutput]:
    """Embeddings and outputs of the completions, each on its own through the model."""
    hidden, outputs = [], []
    made.model.use_layout("padded")
    for prompt, completion in FLAT:
        (group,) = tokenise(made.tokenizer, [(prompt, [completion])], made.limits, where=[""])
        batch = make_batch([group], layout="padded", pad_token_id=0)
        with torch.no_grad():
            hidden.append(made.model.encode(**batch))
            outputs.append(made.model(**batch))
    return torch.cat(hidden), tree_map(lambda *leaves: None if leaves[0] is None else torch.cat(leaves), *outputs)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("budget", [1, 120, 16384])
@pytest.mark.parametrize("method", [InfoBottleneck(latent_size=4), BayesianEnsemble(size=3)], ids=["inform", "brme"])
def test_a_model_says_what_it_says_alone(scorer, layout, budget, method):
    made = scorer(method, layout=layout, batch_tokens=budget)
    found = ModelSource(made)(PROMPTS, COMPLETIONS, EXTRAS)
    scores = [score.reward for group in made(PROMPTS, COMPLETIONS) for score in group]
    assert found.output.reward.tolist() == pytest.approx(scores, rel=1e-5, abs=1e-5)
    torch.testing.assert_close((found.embedding, found.output), directly(made), rtol=1e-4, atol=1e-4)
    assert len({round(value, 3) for value in found.output.reward.tolist()}) >= 7
    assert (found.output.latent is None, found.output.members is None) == (
        isinstance(method, BayesianEnsemble),
        isinstance(method, InfoBottleneck),
    )


def test_the_embedding_is_what_the_head_read(scorer):
    made = scorer(InfoBottleneck(latent_size=4))
    found = ModelSource(made)(PROMPTS, COMPLETIONS, EXTRAS)
    assert found.embedding.shape == (10, 32)
    with torch.no_grad():
        again = made.model.head_output(found.embedding)
    for name in ("reward", "uncertainty", "latent"):
        assert torch.allclose(getattr(again, name), getattr(found.output, name), rtol=1e-5, atol=1e-6)


def test_embeddings_can_be_trained_on(scorer):
    made = scorer(InfoBottleneck(latent_size=4))
    found = ModelSource(made)(PROMPTS, COMPLETIONS, EXTRAS)
    assert not any(each.requires_grad for each in (found.embedding, found.output.reward, found.output.latent))
    made.model.head_output(found.embedding).reward.sum().backward()  # embeddings of inference mode would refuse
    assert made.model.head.encode.weight.grad.abs().sum() > 0


def test_a_head_that_changes_takes_effect(scorer):
    source = ModelSource(scorer())
    before = source(PROMPTS, COMPLETIONS, EXTRAS)
    with torch.no_grad():
        source.scorer.model.head.score.weight.mul_(-2)
    after = source(PROMPTS, COMPLETIONS, EXTRAS)
    assert torch.equal(after.embedding, before.embedding)
    assert after.output.reward.tolist() == pytest.approx((-2 * before.output.reward).tolist(), rel=1e-5)


def test_identical_completions_are_scored_once_and_tie(scorer, monkeypatch):
    source, widths = ModelSource(scorer(layout="padded")), []
    inner = source.scorer.model.encode
    monkeypatch.setattr(
        source.scorer.model, "encode", lambda **batch: widths.append(len(batch["input_ids"])) or inner(**batch)
    )
    found = source(PROMPTS, COMPLETIONS, EXTRAS)
    assert sum(widths) == 9  # of 10: "Sunny." stands twice
    assert found.output.reward[0] == found.output.reward[2]
    assert torch.equal(found.embedding[0], found.embedding[2])
    assert found.output.reward[0] != found.output.reward[1]


def test_the_scorer_s_shaping_is_left_out(scorer):
    plain, careful = (
        scorer(Ensemble(BradleyTerry(), size=3), shaping=each) for each in (shaping.nominal, shaping.worst)
    )
    first, second = (ModelSource(each)(PROMPTS, COMPLETIONS, EXTRAS).output for each in (plain, careful))
    assert torch.equal(first.reward, second.reward)
    assert torch.equal(first.members, second.members)


def test_everything_is_float32_on_the_cpu(scorer):
    made = scorer(InfoBottleneck(latent_size=4))
    made.model.backbone.to(torch.bfloat16)
    found = ModelSource(made)(PROMPTS, COMPLETIONS, EXTRAS)
    tensors = [found.embedding, found.output.reward, found.output.uncertainty, found.output.latent]
    assert {(each.dtype, each.device.type) for each in tensors} == {(torch.float32, "cpu")}


def test_what_a_model_saw_in_part_is_counted(scorer):
    assert ModelSource(scorer())(PROMPTS, COMPLETIONS, EXTRAS).cut == 0
    source = ModelSource(scorer(limits=Limits(max_length=100, max_completion_length=20)))
    assert source(PROMPTS, COMPLETIONS, EXTRAS).cut == 2  # 31 and 32 letters; the others end within 20 tokens


@pytest.mark.parametrize(
    ("method", "has"),
    [(BradleyTerry(), False), (InfoBottleneck(latent_size=4), True), (BayesianEnsemble(size=3), False)],
    ids=["standard", "inform", "brme"],
)
def test_who_has_latents(scorer, method, has):
    source = ModelSource(scorer(method))
    source.scorer.model.train()
    state = torch.random.get_rng_state()
    assert source.has_latents is has
    assert torch.equal(torch.random.get_rng_state(), state)
    source.scorer.model.eval()
    assert (source(PROMPTS, COMPLETIONS, EXTRAS).output.latent is not None) is has


def test_members_of_an_ensemble_are_its_models(scorer):
    parts = (scorer(seed=1), scorer(InfoBottleneck(latent_size=4), seed=2), scorer(family="bert", seed=3))
    source: RewardSource = EnsembleSource(ScorerEnsemble(parts))
    found = source(PROMPTS, COMPLETIONS, EXTRAS)
    alone = torch.stack([ModelSource(each)(PROMPTS, COMPLETIONS, EXTRAS).output.reward for each in parts], dim=-1)
    assert torch.allclose(found.output.members, alone, atol=1e-5)
    assert torch.allclose(found.output.reward, alone.mean(-1), atol=1e-5)
    assert torch.allclose(found.output.uncertainty, alone.std(-1), atol=1e-5)
    assert (found.embedding, found.output.latent, source.has_latents) == (None, None, False)
    assert found.output.members.dtype == torch.float32
    assert source.record["method"] == "ScorerEnsemble"


def test_an_ensemble_is_shaped_later(scorer):
    with pytest.raises(ValueError, match="with a shaping of its own, expected the nominal one; shape what the policy"):
        EnsembleSource(ScorerEnsemble((scorer(), scorer()), shaping.worst))


def test_an_endogenous_source_says_what_its_scorer_says(write_backbone):
    made = EndogenousScorer.load(write_backbone("llama", language_model=True))
    source: RewardSource = EndogenousSource(made)
    found = source(PROMPTS, COMPLETIONS, EXTRAS)
    expected = [score.reward for group in made(PROMPTS, COMPLETIONS) for score in group]
    assert found.output.reward.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.output._replace(reward=None) == RewardOutput(None)
    assert (found.embedding, found.cut, source.has_latents) == (None, 0, False)
    assert source.record["method"] == "EndogenousReward"


def test_a_function_is_called_with_the_rows():
    def size(prompts, completions, bonus):
        texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
        return [len(text) + extra for text, extra in zip(texts, bonus, strict=True)]

    source: RewardSource = FunctionSource(size, "f.py:size", None)
    found = source(PROMPTS, COMPLETIONS, [{"bonus": 100 * number} for number in range(4)])
    assert found.output.reward.tolist() == [6, 31, 6, 7, 105, 217, 200, 308, 305, 332]
    assert found.output.reward.dtype == torch.float32
    assert (found.embedding, source.has_latents) == (None, False)
    assert source.record == {"method": "RewardFunction", "function": "f.py:size", "timeout": None}
    json.dumps(source.record)


def test_a_failing_batch_is_named_by_its_number():
    calls = []

    def third_time(completions, **columns):
        calls.append(None)
        return [0.0] * (len(completions) - (len(calls) == 3))

    source = FunctionSource(third_time, "f.py:third_time", None)
    for _ in range(2):
        source(PROMPTS, COMPLETIONS, EXTRAS)
    with pytest.raises(
        RewardError, match=r"f.py:third_time, batch 3 of 10 completions: it returned 9 rewards, expected 10"
    ):
        source(PROMPTS, COMPLETIONS, EXTRAS)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_is_a_time(timeout):
    with pytest.raises(ValueError, match=r"the timeout is .* s, expected more than 0"):
        FunctionSource(lambda **_: [], "f", timeout)


@pytest.mark.parametrize(
    ("prompts", "completions", "extras"),
    [([], [], []), (["a"], [], [{}]), (["a"], [["b"]], []), (["a", "b"], [["c"], []], [{}, {}])],
)
def test_every_prompt_needs_completions_and_columns(scorer, prompts, completions, extras):
    expected = f"got {len(prompts)} prompts, {len(completions)} lists of completions and {len(extras)} of other columns"
    for source in (ModelSource(scorer()), FunctionSource(lambda **_: [], "f", None)):
        with pytest.raises(ValueError, match=expected):
            source(prompts, completions, extras)


def test_sources_by_the_words_of_the_command_line(scorer, tokenizer, tmp_path):
    for number in range(2):
        made = scorer(seed=number)
        made.model.config.reward_mean, made.model.config.reward_std = float(number), 2.0
        save(made.model, tokenizer, Limits(max_length=90), {}, tmp_path / f"m{number}")
    (tmp_path / "a+b").mkdir()
    for path in (tmp_path / "mine.py", tmp_path / "a+b" / "mine.py"):
        path.write_text("def f(completions):\n    return [1.0] * len(completions)\n")
    one = load_source(f"{tmp_path}/m0", layout="padded", batch_tokens=77)
    assert isinstance(one, ModelSource)
    assert (one.scorer.batch_tokens, one.scorer.model.layout, one.scorer.limits.max_length) == (77, "padded", 90)
    both = load_source(f"{tmp_path}/m0+{tmp_path}/m1", standardise=True)
    assert isinstance(both, EnsembleSource)
    assert (len(both.scorer.scorers), both.scorer.standardise) == (2, True)
    for spec in (f"{tmp_path}/mine.py:f", f"{tmp_path}/a+b/mine.py:f"):
        function = load_source(spec, timeout=5.0)
        assert isinstance(function, FunctionSource)
        assert (function.name, function.timeout) == (spec, 5.0)
        assert function(["a"], [["b", "c"]], [{}]).output.reward.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no/such/folder", r"no/such/folder is not a trained reward model \(no config.json\); give a folder"),
        ("a+", r"got reward 'a\+', expected a folder, different folders joined by \+ \(A\+B\+C\), or FILE.py:FUNCTION"),
        ("", r"got reward '', expected a folder"),
        ("a+b+a", r"expected .* different folders joined by \+ .*name every model once"),
        ("a+f.py:g", r"expected folders of trained models around every \+; f.py:g is a function, call the models from"),
        ("f.py:g", r"got reward function 'f.py:g', but there is no file f.py"),
        ("f.py", r"got reward function 'f.py', expected FILE.py:FUNCTION"),
    ],
)
def test_other_words_are_explained(spec, message):
    with pytest.raises(ValueError, match=message):
        load_source(spec)


@pytest.mark.parametrize("spec", ["a", "f.py:g", "a+f.py:g"])
def test_only_several_models_are_standardised(spec):
    with pytest.raises(ValueError, match=r"standardising is for several models, and .* is not; join folders by"):
        load_source(spec, standardise=True)
