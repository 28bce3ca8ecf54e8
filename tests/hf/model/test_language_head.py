import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, DistilBertConfig, Gemma2Config, Gemma2ForCausalLM, TrainingArguments

from rewarden.core import PairInfo, select
from rewarden.data import Pair
from rewarden.hf.batches import make_batch
from rewarden.hf.model.backbone import build_model, reheaded
from rewarden.hf.model.language_head import load_language_model, token_output
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.scoring.scorer import Scorer
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save
from rewarden.hf.training.pairs import PairDataset, training_pairs
from rewarden.hf.training.trainer import RewardTrainer
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.generalizable import GeneralizableReward

METHOD = GeneralizableReward(head_width=8, dropout=0.0)


@pytest.fixture(scope="module")
def folders(write_backbone) -> dict[tuple[str, bool], str]:
    """Folder of one language model per family, with a head of its own and with a tied one."""
    return {
        (family, tied): write_backbone(family, language_model=True, tie_word_embeddings=tied)
        for family in ("llama", "qwen3")
        for tied in (False, True)
    }


@pytest.fixture
def make_model(folders):
    """make_model(family, tied=..., method=..., ...): a fresh reward model that keeps its language-model head."""

    def make(family="llama", *, tied=False, method=METHOD, **more) -> RewardModel:
        return RewardModel.from_backbone(folders[family, tied], method, **more).eval()

    return make


@pytest.fixture
def groups(make_group):
    """Completions that start alike, completions of one token, a sequence without a prompt; windows are 16."""
    alike = make_group(20, (9, 4, 22), seed=1)
    return [
        make_group(12, (5, 8), seed=0),
        replace(alike, completion_lengths=(15, 10, 28)),  # the last six tokens of the prefix belong to completions
        make_group(3, (1, 1), seed=2),
        replace(make_group(2, (4, 1), seed=3), completion_lengths=(6, 3)),
    ]


def naive(folder: str, groups) -> tuple[list[Tensor], torch.nn.Module]:
    """Log-probabilities of the completion tokens of each sequence alone, from the stock language model in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    found = []
    for group in groups:
        for sequence, length in zip(group.sequences, group.completion_lengths, strict=True):
            ids = torch.tensor(sequence[None]).long()
            log_probs = model(ids).logits.log_softmax(-1)[0, :-1]
            realised = log_probs[torch.arange(len(log_probs)), ids[0, 1:]]
            found.append(realised[max(len(sequence) - length - 1, 0) :])
    return found, model


def tokens_of(model: RewardModel, groups, layout: str):
    model.use_layout(layout)
    return model(**make_batch(groups, layout=layout, pad_token_id=0, with_tokens=True)).tokens


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_both_layouts_give_the_stock_models_log_probabilities_and_gradients(make_model, folders, groups, family, tied):
    expected, stock = naive(folders[family, tied], groups)
    weights = [torch.linspace(-1, 2, len(row), dtype=torch.float64) for row in expected]
    sum((weight * row).sum() for weight, row in zip(weights, expected, strict=True)).backward()
    gradients = {name.removeprefix("model."): p.grad for name, p in stock.named_parameters()}
    assert torch.cat(expected).std() > 0.5  # far from uniform over the vocabulary, or a wrong mask could hide
    for layout in ("tree", "padded"):
        model = make_model(family, tied=tied).double()
        model.head.float()  # as always
        tokens = tokens_of(model, groups, layout)
        assert tokens.mask.sum(-1).tolist() == [len(row) for row in expected]
        for row, wanted in zip(tokens.log_prob(), expected, strict=True):
            assert distance(row[: len(wanted)], wanted) < 1e-6  # these families' norms compute in float32
            assert row[len(wanted) :].abs().sum() == 0
        sequences = torch.stack([row.sum() for row in expected])
        assert distance(tokens.sequence_log_prob(), sequences) < 1e-6
        sum((w * row[: len(w)]).sum() for w, row in zip(weights, tokens.log_prob(), strict=True)).backward()
        for name, parameter in model.backbone.named_parameters():
            assert distance(parameter.grad, gradients[name]) < 1e-5, (layout, name)
        assert (model.language_head is None) is tied
        if model.language_head is not None:
            assert distance(model.language_head.weight.grad, gradients["lm_head.weight"]) < 1e-5


def test_layouts_agree_in_float32(make_model, groups):
    model = make_model("qwen3")
    tree, padded = (tokens_of(model, groups, layout) for layout in ("tree", "padded"))
    assert tree.logit.dtype == torch.float32
    for name in ("logit", "log_sum_exp"):
        assert distance(getattr(tree, name), getattr(padded, name)) < 1e-5
    assert torch.equal(tree.mask, padded.mask)


def test_cut_completions_count_the_tokens_they_keep(make_model, folders, tokenizer):
    limits = Limits(max_length=30, max_completion_length=8)
    pair = Pair("a longer prompt than fits", "abcdefgh and more", "abcd", "set", None, None, "a.jsonl, row 1")
    found = training_pairs(tokenizer, [pair], limits, method=METHOD).pairs[0].group
    assert found.is_truncated == (True, True)
    assert found.completion_lengths[0] == 8
    expected, _ = naive(folders["llama", False], [found])
    for layout in ("tree", "padded"):
        tokens = tokens_of(make_model(), [found], layout)
        assert tokens.mask.sum(-1).tolist() == list(found.completion_lengths)
        for row, wanted in zip(tokens.log_prob(), expected, strict=True):
            assert distance(row[: len(wanted)].double(), wanted) < 1e-4


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_family_with_learned_positions(write_backbone, groups, layout):
    folder = write_backbone("gpt2", language_model=True)
    expected, _ = naive(folder, groups)
    model = RewardModel.from_backbone(folder, METHOD, layout=layout).eval()
    assert (model.layout, model.config.language_head) == (layout, "tied")
    for row, wanted in zip(tokens_of(model, groups, layout).log_prob(), expected, strict=True):
        assert distance(row[: len(wanted)].double(), wanted) < 1e-4


def test_tokens_only_for_those_who_ask(make_model, build, groups):
    model = make_model()
    for layout in ("tree", "padded"):
        model.use_layout(layout)
        assert model(**make_batch(groups, layout=layout, pad_token_id=0)).tokens is None
    plain = build("llama")
    with pytest.raises(ValueError, match="keeps no language-model head, because BradleyTerry does not read it; ask"):
        tokens_of(plain, groups, "tree")
    assert plain.language_head is None


def test_asking_for_tokens_does_not_change_rewards(make_model, groups):
    model = make_model()
    with_tokens, without = (
        model(**make_batch(groups, layout="tree", pad_token_id=0, with_tokens=asked)) for asked in (True, False)
    )
    assert torch.equal(with_tokens.reward, without.reward)


def test_bf16_autocast_computes_the_tokens_in_float32(make_model, groups):
    model = make_model()
    batch = make_batch(groups, layout="tree", pad_token_id=0, with_tokens=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch).tokens
        hidden = model.hidden_states(**{k: v for k, v in batch.items() if k not in ("predictors", "targets")})
    expected = token_output(hidden.float(), model.output_embedding(), batch["predictors"], batch["targets"])
    assert found.logit.dtype == found.log_sum_exp.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_gradient_checkpointing_changes_nothing(make_model, groups, tied):
    gradients = []
    for checkpointing in (False, True):
        model = make_model("qwen3", tied=tied).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        output = model(**make_batch(groups, layout="tree", pad_token_id=0, with_tokens=True))
        (output.reward.sum() + output.tokens.sequence_log_prob().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert distance(gradients[1][name], gradient) < 1e-6, name


def stored(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return list(weights.keys())


@pytest.mark.parametrize("method", [METHOD, Ensemble(METHOD, size=2)], ids=["alone", "ensemble"])
@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_load_is_bit_equal_and_tied_weights_are_stored_once(make_model, groups, tmp_path, tied, method):
    model = make_model(tied=tied, method=method, seed=3)
    model.save_pretrained(tmp_path)
    loaded = RewardModel.load(str(tmp_path))
    assert loaded.config.language_head == ("tied" if tied else "own")
    expected = {"backbone.embed_tokens.weight", "backbone.norm.weight"} | (set() if tied else {"language_head.weight"})
    assert {name for name in stored(tmp_path) if ".layers." not in name and not name.startswith("head.")} == expected
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    batch = make_batch(groups, layout="tree", pad_token_id=0, with_tokens=True)
    before, after = model(**batch), loaded(**batch)
    assert torch.equal(before.reward, after.reward)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before.tokens, after.tokens, strict=True))


def test_a_folder_from_before_the_language_head_still_loads(build, groups, tmp_path):
    model = build("llama", seed=4)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("language_head", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    batch = make_batch(groups, layout="tree", pad_token_id=0)
    assert torch.equal(RewardModel.load(str(tmp_path))(**batch).reward, model(**batch).reward)


def test_a_language_model_does_not_change_the_reward_heads_start(make_model):
    own, tied = make_model(tied=False, seed=1), make_model(tied=True, seed=1)
    assert torch.equal(own.head.score.weight, tied.head.score.weight)


def test_a_configuration_without_the_head_that_its_method_reads_is_refused(make_model):
    config = make_model().config
    config.language_head = None
    with pytest.raises(ValueError, match="GeneralizableReward reads the language-model head, and this configuration"):
        RewardModel(config)


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_a_frozen_backbone_includes_its_language_head(make_model, tied):
    model = make_model(tied=tied)
    model.freeze_backbone()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"head.{name}" for name, _ in model.head.named_parameters()}


# --- what is refused ---


def test_an_encoder_is_refused(write_backbone):
    with pytest.raises(ValueError, match="and this bert is an encoder: its tokens see later ones; give one as"):
        RewardModel.from_backbone(write_backbone("bert", language_model=True), METHOD)


def test_a_backbone_whose_head_is_not_in_the_files_is_refused(backbones):
    with pytest.raises(ValueError, match=r"the files lack 1 weight of a LlamaForCausalLM \(lm_head.weight\)"):
        RewardModel.from_backbone(backbones["llama"], METHOD)


def test_a_model_that_is_no_language_model_is_refused(tmp_path):
    DistilBertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="and a distilbert is no causal language model"):
        load_language_model(str(tmp_path))


def test_logits_that_are_more_than_a_product_are_refused(tmp_path):
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.05,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a plain output embedding, and this one has scale 1, soft cap 0.05, no bias"):
        RewardModel.from_backbone(str(tmp_path), METHOD)


# --- other heads on the same backbone ---


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_reheaded_keeps_the_language_head_for_those_who_read_it(make_model, groups, tied):
    model = make_model(tied=tied)
    fresh = reheaded(model, Ensemble(METHOD, size=2), seed=1)
    found, expected = (tokens_of(one.eval(), groups, "tree") for one in (fresh, model))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert not {p.data_ptr() for p in fresh.parameters()} & {p.data_ptr() for p in model.parameters()}
    plain = reheaded(model, BradleyTerry(), seed=1)
    assert (plain.language_head, plain.config.language_head) == (None, None)
    with pytest.raises(
        ValueError, match=r"this reward model \(BradleyTerry\) kept none; start from the language model"
    ):
        reheaded(plain, METHOD, seed=1)


def test_a_saved_model_gives_its_language_head(make_model, tokenizer, groups, tmp_path):
    model = make_model()
    save(model, tokenizer, Limits(), {}, tmp_path)
    again = build_model(str(tmp_path), METHOD, seed=9).eval()
    assert torch.equal(again.output_embedding(), model.output_embedding())


# --- in the trainer ---


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_training_reads_the_tokens_and_scoring_does_not(make_model, make_pairs, tokenizer, tmp_path, tied, layout):
    pairs, model = make_pairs(5), make_model(tied=tied, layout=layout, method=replace(METHOD, weight=0.5))
    # Before any step: what the first step must log, from each part computed by itself.
    batch = make_batch([pair.group for pair in pairs], layout=layout, pad_token_id=0, with_tokens=True)
    with torch.no_grad():
        output = model(**batch)
        chosen, rejected = select(output, slice(0, None, 2)), select(output, slice(1, None, 2))
        loss = model.method.loss(chosen, rejected, PairInfo()).mean().item()
        per_token = (chosen.tokens.sequence_log_prob() / chosen.tokens.mask.sum(-1)).mean().item()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=5,
        per_device_eval_batch_size=2,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        log_level="error",
    )
    trainer = RewardTrainer(
        model, arguments, head_lr=1e-3, train_dataset=PairDataset(pairs), eval_dataset=PairDataset(pairs)
    )
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(loss, rel=1e-4)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx(loss, rel=1e-3)
    assert entry["chosen_log_prob"] == pytest.approx(per_token, rel=1e-4)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    (group,) = Scorer(model.eval(), tokenizer, Limits()).outputs([pairs[0].group])
    assert group.tokens is None
    assert math.isfinite(group.reward.sum())
