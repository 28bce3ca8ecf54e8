"""Losses, gradients and advantages equal those of TRL's own trainers on the same tensors; without TRL these tests fail.

TRL computes its loss from its own log-probabilities (blocks of the vocabulary, temperature included). Ours come from the plain
logits of the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewarden.rl.advantages import centred, rloo, standardised
from rewarden.rl.kl import k1, k3, reweighted
from rewarden.rl.policy_loss import (
    batch_loss_terms,
    clipped_surrogate,
    is_clipped,
    mean_log_ratio,
    sequence_log_ratio,
    token_log_ratio,
)
from rewarden.rl.surrogates import cispo, sapo, vespo
from rewarden.rl.token_rewards import kl_penalised

VOCAB, PROMPT, LONGEST, GROUP, ROWS = 32, 4, 7, 3, 6
AGGREGATION: dict[str, Any] = {
    "grpo": "per-sequence",
    "bnpo": "per-token",
    "dapo": "per-token",
    "dr_grpo": "constant-length",
    "luspo": "constant-length",
    "cispo": "per-token",
    "sapo": "per-sequence",
    "vespo": "per-token",
}
"""TRL's name of each loss, and ours. LUSPO weighs a completion by its length: the constant length is 1."""
REWARDS = [0.3, -1.0, 2.5, 0.7, 0.7, 0.1]


# --- A model, its trainers, and a batch ---


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    """One thread, since tensors are tiny, nothing sent (TRL reports every trainer that is built), nothing left behind."""
    from accelerate.state import AcceleratorState
    from huggingface_hub import constants

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
            patch.setattr(constants, name, True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)  # else the next user inherits "CPU, no mixed precision"
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(place)
    words = {word: at for at, word in enumerate(["<pad>", "<bos>", "<eos>", *(f"w{at}" for at in range(3, VOCAB))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(place)
    return place


def trainer_for(folder: Path, kind: str = "GRPO", *, moved: bool = True, **options: Any) -> Any:
    """TRL's trainer as its user gets it, with a policy that has left the reference behind."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaForCausalLM

    common = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": ROWS, "num_generations": GROUP,
        "max_completion_length": LONGEST, "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    made = getattr(trl, f"{kind}Trainer")(
        model=LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=getattr(trl, f"{kind}Config")(**common | options),
        reward_funcs=lambda completions, **_: REWARDS[: len(completions)],
        train_dataset=Dataset.from_dict({"prompt": ["w3 w4", "w5 w6 w7"]}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    made.current_gradient_accumulation_steps = made.args.gradient_accumulation_steps  # the training loop sets it
    if moved:
        nudge(made.model)
    made.model.train()
    return made


def nudge(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))


def log_probs(model: nn.Module, batch: dict[str, Tensor], temperature: float = 1.0) -> Tensor:
    """Log-probability of every completion token from the plain logits, divided by the temperature."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -batch["completion_ids"].shape[1] - 1 : -1]
    found = (logits / temperature).log_softmax(-1)
    return found.gather(-1, batch["completion_ids"][..., None])[..., 0]


def batch_for(model: nn.Module, *, temperature: float = 1.0, dropped: bool = False) -> dict[str, Tensor]:
    """Prompts padded on the left, completions of 1 to 7 tokens, old and reference log-probabilities some way off."""
    generator = torch.Generator().manual_seed(1)
    lengths, prompts = torch.tensor([7, 3, 1, 6, 4, 7]), torch.tensor([2, 2, 2, 4, 4, 4])
    if dropped:
        lengths[4] = 0  # what masking a truncated completion leaves of it
    batch = {
        "prompt_mask": (torch.arange(PROMPT) >= PROMPT - prompts[:, None]).long(),
        "completion_mask": (torch.arange(LONGEST) < lengths[:, None]).long(),
        "advantages": 0.4 + torch.randn(ROWS, generator=generator),
        "num_items_in_batch": lengths.sum(),
    }
    for name in ("prompt", "completion"):
        mask = batch[f"{name}_mask"]
        batch[f"{name}_ids"] = torch.randint(3, VOCAB, mask.shape, generator=generator) * mask
    with torch.no_grad():
        now = log_probs(model, batch, temperature)
    batch["old_per_token_logps"] = now + 0.3 * torch.randn(now.shape, generator=generator)
    batch["ref_per_token_logps"] = now + 0.5 * torch.randn(now.shape, generator=generator)
    batch["old_logps"] = (batch["old_per_token_logps"] * batch["completion_mask"]).sum(-1)
    return batch


def with_gradients(model: nn.Module, loss: Tensor) -> tuple[float, dict[str, Tensor]]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_equal(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    """Losses to 1e-5, and the gradient of every parameter to 1e-5 of its norm."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, wanted in theirs[1].items():
        assert wanted.norm() > 1e-4, f"{name} has no gradient to compare"
        assert (ours[1][name] - wanted).norm() <= 1e-5 * wanted.norm(), name


# --- Our side ---


def our_loss(
    model: nn.Module,
    batch: dict[str, Tensor],
    loss_type: str,
    *,
    level: str = "token",
    kl_weight: float = 0.0,
    weigh_kl: Callable[[Tensor, Tensor], Tensor] = reweighted,
    temperature: float = 1.0,
    longest: int = LONGEST,
    **clips: float,
) -> Tensor:
    """The loss of TRL's GRPO from the functions of `rewarden.rl`."""
    mask, now = batch["completion_mask"].bool(), log_probs(model, batch, temperature)
    log_ratio = token_log_ratio(now, batch.get("old_per_token_logps", now.detach()), mask)
    if level == "sequence":
        log_ratio = mean_log_ratio(log_ratio, mask)[:, None]
    advantage = batch["advantages"][:, None]
    if loss_type == "cispo":
        losses = cispo(now, log_ratio, advantage, cap=clips["clip_high"])
    elif loss_type == "sapo":
        losses = sapo(log_ratio, advantage)
    elif loss_type == "vespo":
        losses = vespo(now, sequence_log_ratio(log_ratio, mask), advantage)
    else:
        losses = clipped_surrogate(log_ratio, advantage, **clips)
    if kl_weight:
        estimate = k3(token_log_ratio(now, batch["ref_per_token_logps"], mask))
        losses = losses + kl_weight * weigh_kl(estimate, log_ratio)
    return batch_loss_terms(
        losses,
        mask,
        AGGREGATION[loss_type],
        sequences=len(mask),
        tokens=int(mask.sum()),
        longest=1 if loss_type == "luspo" else longest,
    ).sum()


# --- GRPO ---


@pytest.mark.parametrize("loss_type", [*AGGREGATION, "default"])
def test_losses_of_grpo(folder: Path, loss_type: str) -> None:
    """Off policy, clip-higher, temperature, and a KL term with TRL's own defaults for it."""
    options: dict[str, Any] = {} if loss_type == "default" else {"loss_type": loss_type}
    if loss_type == "luspo":
        options["importance_sampling_level"] = "sequence"
    trainer = trainer_for(folder, epsilon_high=0.28, beta=0.3, temperature=0.7, **options)
    batch = batch_for(trainer.model, temperature=0.7)
    theirs = with_gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    ours = our_loss(
        trainer.model,
        batch,
        "dapo" if loss_type == "default" else loss_type,
        level=options.get("importance_sampling_level", "token"),
        kl_weight=0.3,
        clip_high=0.28,
        temperature=0.7,
    )
    assert_equal(with_gradients(trainer.model, ours), theirs)


@pytest.mark.parametrize("cap", [0.9, 1.2, 5.0])
def test_the_cap_of_cispo(folder: Path, cap: float) -> None:
    trainer = trainer_for(folder, loss_type="cispo", epsilon_high=cap)
    batch = batch_for(trainer.model)
    theirs = with_gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    assert_equal(with_gradients(trainer.model, our_loss(trainer.model, batch, "cispo", clip_high=cap)), theirs)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_both_levels_of_importance_sampling(folder: Path, level: str) -> None:
    trainer = trainer_for(folder, loss_type="grpo", importance_sampling_level=level, epsilon=0.1)
    batch = batch_for(trainer.model)
    theirs = with_gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    ours = our_loss(trainer.model, batch, "grpo", level=level, clip_low=0.1, clip_high=0.1)
    assert_equal(with_gradients(trainer.model, ours), theirs)


def test_the_default_clip_and_its_fraction(folder: Path) -> None:
    trainer = trainer_for(folder)
    batch = batch_for(trainer.model)
    theirs = with_gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    assert_equal(with_gradients(trainer.model, our_loss(trainer.model, batch, "dapo")), theirs)
    mask = batch["completion_mask"].bool()
    log_ratio = token_log_ratio(log_probs(trainer.model, batch), batch["old_per_token_logps"], mask)
    clipped = is_clipped(log_ratio, batch["advantages"][:, None])[mask].float().mean().item()
    assert clipped == pytest.approx(trainer._metrics["train"]["clip_ratio/region_mean"][0])
    assert 0.1 < clipped < 0.9


def test_the_kl_term_without_its_correction(folder: Path) -> None:
    trainer = trainer_for(folder, beta=0.3, use_bias_correction_kl=False)
    batch = batch_for(trainer.model)
    theirs = with_gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    ours = our_loss(trainer.model, batch, "dapo", kl_weight=0.3, weigh_kl=lambda estimate, _: estimate)
    assert_equal(with_gradients(trainer.model, ours), theirs)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_a_masked_completion_still_counts_as_a_sequence(folder: Path, loss_type: str) -> None:
    trainer = trainer_for(folder, loss_type=loss_type)
    batch = batch_for(trainer.model, dropped=True)
    theirs = with_gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    assert_equal(with_gradients(trainer.model, our_loss(trainer.model, batch, loss_type)), theirs)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo"])
def test_losses_over_two_micro_batches(folder: Path, loss_type: str) -> None:
    """TRL's add up to our loss of the whole batch, but for bnpo, which averages the token means of the micro-batches."""
    trainer = trainer_for(folder, loss_type=loss_type, gradient_accumulation_steps=2, per_device_train_batch_size=3)
    batch = batch_for(trainer.model)
    halves = [
        {name: value if value.dim() == 0 else value[rows] for name, value in batch.items()}
        for rows in (slice(0, 3), slice(3, 6))
    ]
    theirs = with_gradients(trainer.model, sum(trainer.compute_loss(trainer.model, half) for half in halves))
    whole = with_gradients(trainer.model, our_loss(trainer.model, batch, loss_type))
    if loss_type == "bnpo":
        apart = sum(our_loss(trainer.model, half, loss_type) / 2 for half in halves)
        assert_equal(with_gradients(trainer.model, apart), theirs)
        assert whole[0] != pytest.approx(theirs[0], rel=1e-2)
    else:
        assert_equal(whole, theirs)


# --- Advantages, and everything from rewards to gradients ---


def play(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What the trainer makes of six given completions, the last of which never ended, and their rewards."""
    eos = trainer.processing_class.eos_token_id
    prompts = [[3, 4]] * GROUP + [[5, 6, 7]] * GROUP
    completions = [[9, 8, eos], [11, eos], [12, 13, 14, eos], [16, eos], [17, 18, eos], [20, 21, 22, 23]]
    texts = [" ".join(f"w{at}" for at in ids) for ids in completions]
    grpo = (prompts, completions, None, texts, None, {}, None, [])
    rloo_ = (prompts, completions, texts)
    monkeypatch.setattr(trainer, "_generate", lambda _: grpo if "GRPO" in type(trainer).__name__ else rloo_)
    return trainer._generate_and_score_completions([{"prompt": "w3"}] * ROWS)


def groups(rewards: Tensor) -> Tensor:
    return rewards.view(-1, GROUP)


@pytest.mark.parametrize(
    ("scale", "advantage"), [("default", standardised), ("group", standardised), ("none", centred)]
)
def test_a_step_of_grpo(folder: Path, monkeypatch: pytest.MonkeyPatch, scale: str, advantage) -> None:
    options = {} if scale == "default" else {"scale_rewards": scale}
    trainer = trainer_for(folder, **options)
    batch = play(trainer, monkeypatch)
    torch.testing.assert_close(groups(batch["advantages"]), advantage(groups(torch.tensor(REWARDS))), rtol=1e-5, atol=0)
    assert "old_per_token_logps" not in batch  # one update per rollout: the ratio is 1, its gradient is not 0
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    theirs = with_gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    assert_equal(with_gradients(trainer.model, our_loss(trainer.model, batch, "dapo")), theirs)


def test_masking_truncated_completions_keeps_their_rewards_in_the_baseline(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = play(trainer_for(folder, mask_truncated_completions=True), monkeypatch)
    assert batch["completion_mask"].sum(-1).tolist() == [3, 2, 4, 2, 3, 0]
    torch.testing.assert_close(groups(batch["advantages"]), standardised(groups(torch.tensor(REWARDS))))


@pytest.mark.parametrize("options", [{}, {"beta": 0.0}, {"epsilon": 0.1, "epsilon_high": 0.3}], ids=str)
def test_a_step_of_rloo(folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]) -> None:
    """Its own defaults: KL weight 0.05, k1 summed over the completion, one ratio per completion."""
    trainer = trainer_for(folder, "RLOO", **options)
    batch = play(trainer, monkeypatch)
    mask, kl_weight = batch["completion_mask"].bool(), options.get("beta", 0.05)
    with torch.no_grad():
        before = log_probs(trainer.model, batch)
        reference = log_probs(trainer.ref_model, batch) if kl_weight else before
    kl = k1(token_log_ratio(before, reference, mask))
    rewards = kl_penalised(torch.tensor(REWARDS), kl, mask, kl_weight=kl_weight)
    assert (kl.abs().sum() > 0.1) == (kl_weight > 0)
    torch.testing.assert_close(groups(batch["advantages"]), rloo(groups(rewards)), rtol=1e-5, atol=1e-5)

    drift = torch.tensor([0.95, 0.5, 1.15, 0.85, 2.0, 0.7]).log()  # ratios of a later update from the same completions
    batch["old_logps"] -= drift
    before[:, 0] -= drift
    theirs = with_gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    log_ratio = sequence_log_ratio(token_log_ratio(log_probs(trainer.model, batch), before, mask), mask)
    clips = {"clip_low": options.get("epsilon", 0.2), "clip_high": options.get("epsilon_high", 0.2)}
    losses = clipped_surrogate(log_ratio, batch["advantages"], **clips)[:, None]
    sizes = {"sequences": ROWS, "tokens": int(mask.sum()), "longest": LONGEST}
    ours = batch_loss_terms(losses, mask, "per-sequence", **sizes).sum()
    assert_equal(with_gradients(trainer.model, ours), theirs)
    assert is_clipped(log_ratio, batch["advantages"], **clips).tolist() == [False, True, False, False, True, True]
    assert trainer._metrics["train"]["clip_ratio/region_mean"][0] == pytest.approx(0.5)
