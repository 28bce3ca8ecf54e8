import math
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.nn import functional
from transformers import EvalPrediction, TrainingArguments

from rewarden.hf.batches import make_batch
from rewarden.hf.training.pairs import LengthGroups, PairCollator, PairDataset
from rewarden.hf.training.trainer import RewardTrainer, pair_metrics
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck


@pytest.fixture
def train(tmp_path):
    """train(model, pairs, head_lr=..., evaluation=..., **arguments): the trainer, after training."""

    def run(model, pairs, *, head_lr=1e-3, evaluation=None, **arguments):
        options = {
            "output_dir": str(tmp_path / "work"),
            "remove_unused_columns": False,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "learning_rate": 1e-4,
            "log_level": "error",
        }
        trainer = RewardTrainer(
            model,
            TrainingArguments(**options | arguments),
            head_lr=head_lr,
            train_dataset=PairDataset(pairs),
            eval_dataset=None if evaluation is None else PairDataset(evaluation),
        )
        trainer.train()
        return trainer

    return run


def gaps(model, pairs) -> torch.Tensor:
    batch = make_batch([pair.group for pair in pairs], layout=model.layout, pad_token_id=0)
    rewards = model(**batch).reward
    return rewards[::2] - rewards[1::2]


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_equals_a_loop_written_by_hand(build, make_pairs, train):
    pairs, steps = make_pairs(20), 8  # 5 batches an epoch
    model = build("llama", seed=3)
    trainer = train(
        model,
        pairs,
        per_device_train_batch_size=4,
        max_steps=steps,
        head_lr=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch",
        seed=7,
    )
    expected = build("llama", seed=3).train()
    # As the Trainer does it: no decay for norms, which have one dimension here.
    rest = [p for n, p in expected.named_parameters() if not n.startswith("head.")]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": 0.1, "lr": 1e-4},
            {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0, "lr": 1e-4},
            {"params": list(expected.head.parameters()), "weight_decay": 0.1, "lr": 3e-3},
        ]
    )
    peaks = [group["lr"] for group in optimiser.param_groups]
    sampler, order = LengthGroups(PairDataset(pairs).lengths(), batch_size=4, seed=7), []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        order += list(sampler)
    found = []
    for step in range(steps):
        rate = step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (steps - 2)))
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = rate * peak
        loss = -functional.logsigmoid(gaps(expected, [pairs[i] for i in order[4 * step : 4 * step + 4]])).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimiser.step()
        found.append(loss.item())
    assert losses(trainer) == pytest.approx(found, abs=2e-4)  # the log is rounded to four digits
    for (name, mine), theirs in zip(expected.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_accumulated_gradient_is_that_of_the_full_batch(build, make_pairs, train, layout):
    # SGD with a rate of one: the change of the weights is the gradient. 4 + 4 + 3 pairs against 11.
    pairs, moved = make_pairs(11), []
    for size, accumulate in ((4, 3), (11, 1)):
        model = build("llama", layout=layout)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(
            model,
            pairs,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            head_lr=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
        )
        moved.append(torch.cat([(before[name] - p.detach()).flatten() for name, p in model.named_parameters()]))
    model = build("llama", layout=layout).train()
    (-functional.logsigmoid(gaps(model, pairs)).mean()).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    for found in moved:
        assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_evaluation_is_the_mean_over_pairs(build, make_pairs, train, layout):
    held_out = make_pairs(13, seed=5)  # batches of 4, 4, 4, 1
    model = build("llama", layout=layout)
    trainer = train(model, make_pairs(8), evaluation=held_out, max_steps=3, per_device_eval_batch_size=4, head_lr=1e-2)
    found = trainer.evaluate()
    expected = gaps(model.eval(), held_out).detach().double()
    nll = -functional.logsigmoid(expected)
    assert nll.std() > 0.01
    assert found["eval_loss"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert found["eval_nll"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert found["eval_accuracy"] == pytest.approx((expected > 0).double().mean().item())
    logged = trainer.state.log_history[-1]
    assert logged["eval_gap"] == pytest.approx(expected.mean().item(), rel=1e-4)


def test_pair_metrics_by_hand():
    # Gaps 2, 0 and -1: one of three is right, and a tie is not.
    found = pair_metrics(EvalPrediction(np.array([[3.0, 1.0], [1.0, 1.0], [0.0, 1.0]]), np.zeros(3)))
    assert found["accuracy"] == pytest.approx(1 / 3)
    expected = (math.log1p(math.exp(-2)) + math.log(2) + math.log1p(math.exp(1))) / 3
    assert found["nll"] == pytest.approx(expected)


def test_training_metrics_are_averaged_over_pairs(build, make_pairs, train):
    # One epoch with nothing learnt: logged once, over an uneven last batch.
    pairs = make_pairs(11)
    model = build("llama", Ensemble(InfoBottleneck(latent_size=4), size=2))
    trainer = train(
        model,
        pairs,
        per_device_train_batch_size=4,
        max_steps=3,
        logging_steps=3,
        learning_rate=0.0,
        head_lr=0.0,
    )
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    output = model.eval()(**make_batch([pair.group for pair in pairs], layout="tree", pad_token_id=0))
    assert entry["spread"] >= 0
    kept = [(0.5 * (d.detail.log_variance.exp() + d.detail.mean**2 - 1 - d.detail.log_variance)) for d in output.detail]
    expected = torch.stack([kl.sum(-1).mean() for kl in kept]).mean().item()
    assert entry["latent_kl"] == pytest.approx(expected, rel=1e-4)  # no noise in it
    assert {"accuracy", "gap", "grad_norm", "learning_rate"} <= entry.keys()


def test_head_has_its_own_rate_and_norms_do_not_decay(build, make_pairs, train):
    trainer = train(build("llama"), make_pairs(4), max_steps=1, head_lr=0.5, weight_decay=0.25)
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0, 0.25]
    assert [group["initial_lr"] for group in groups] == [1e-4, 1e-4, 0.5]
    assert [p is q for p, q in zip(groups[2]["params"], trainer.model.head.parameters(), strict=True)] == [True]
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))
    assert all(p.dim() == 1 for p in groups[1]["params"])


def test_only_what_learns_is_optimised(build, make_pairs, train):
    model = build("llama")
    model.backbone.requires_grad_(False)
    before = {name: p.clone() for name, p in model.backbone.named_parameters()}
    trainer = train(model, make_pairs(8), max_steps=3, head_lr=1e-2)
    assert len(trainer.optimizer.param_groups) == 1
    assert all(torch.equal(before[name], p) for name, p in model.backbone.named_parameters())


def test_row_numbers_are_for_training_alone(build, make_pairs, train, monkeypatch):
    seen = {True: [], False: []}
    model = build("llama")
    loss = BradleyTerry.loss

    def spy(self, chosen, rejected, info):
        seen[model.training].append(info.row)
        return loss(self, chosen, rejected, info)

    monkeypatch.setattr(BradleyTerry, "loss", spy)
    trainer = train(model, make_pairs(4), evaluation=make_pairs(4, seed=1), max_steps=1, per_device_train_batch_size=4)
    trainer.evaluate()
    assert sorted(seen[True][0].tolist()) == [0, 1, 2, 3]
    assert seen[False] == [None]


def test_margin_reaches_the_loss(build, make_pairs, train):
    first = [losses(train(build("llama"), make_pairs(4, margin=margin), max_steps=1))[0] for margin in (0.0, 5.0)]
    assert first[0] == pytest.approx(math.log(2), abs=0.2)
    assert first[1] == pytest.approx(5, abs=0.5)


def test_bf16_autocast_is_used(build, make_pairs, train):
    model, dtypes = build("llama"), set()
    layer = model.backbone.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
    trainer = train(model, make_pairs(8), max_steps=2, bf16=True)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(math.isfinite(loss) for loss in losses(trainer))


def test_gradient_checkpointing_changes_nothing(build, make_pairs, train):
    names = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    found = [losses(train(build("qwen3"), make_pairs(8), max_steps=4, **{name: on})) for on in (False, True)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "argument", [{"remove_unused_columns": True}, {"accelerator_config": {"dispatch_batches": True}}]
)
def test_arguments_that_would_break_pairs_are_refused(build, make_pairs, train, argument):
    with pytest.raises(ValueError, match="remove_unused_columns and dispatch_batches must both be False"):
        train(build("llama"), make_pairs(4), max_steps=1, **argument)


def test_collator_has_the_layout_of_the_model(build, make_pairs, train):
    for layout in ("tree", "padded"):
        trainer = train(build("llama", layout=layout), make_pairs(4), max_steps=1)
        assert trainer.data_collator == PairCollator(layout, 0)


@pytest.mark.parametrize("pairs", [16, 17, 21, 3])
def test_two_processes_see_the_batches_of_one_with_twice_the_size(pairs):
    """accelerate deals the order out; what it fills up the end with must not count."""
    order = list(LengthGroups(list(range(pairs)), batch_size=8, seed=3))
    batches = torch.utils.data.BatchSampler(order, 4, drop_last=False)
    shards = [list(BatchSamplerShard(batches, num_processes=2, process_index=rank)) for rank in (0, 1)]
    seen = []
    for number, step in enumerate(zip(*shards, strict=True), start=1):
        together = []
        for rank, batch in enumerate(step):
            state = SimpleNamespace(end_of_dataloader=number == len(shards[0]))
            stub = SimpleNamespace(
                accelerator=SimpleNamespace(num_processes=2, process_index=rank, gradient_state=state)
            )
            real = RewardTrainer._real_pairs(stub, {"info": {"row": batch}}, pairs, 4)
            together += batch[:real]
        seen.append(together)
    assert seen == [order[start : start + 8] for start in range(0, pairs, 8)]


def test_fillers_count_for_nothing(build, make_pairs, train):
    pairs = make_pairs(5)
    trainer = train(build("llama"), pairs, max_steps=1, learning_rate=0.0, head_lr=0.0)
    batch = trainer.data_collator(pairs)
    expected = trainer.compute_loss(trainer.model.train(), trainer.data_collator(pairs[:3]), num_items_in_batch=3)
    trainer._sums["train"].clear()
    found = trainer.compute_loss(trainer.model, batch | {"real": 3}, num_items_in_batch=3)
    torch.testing.assert_close(found, expected)
    assert trainer._sums["train"]["pairs"] == 3
    nothing = trainer.compute_loss(trainer.model, batch | {"real": 0}, num_items_in_batch=3)
    nothing.backward()  # a process without pairs still takes part
    assert nothing == 0
    assert all(p.grad is not None and not p.grad.any() for p in trainer.model.parameters())
    assert trainer._sums["train"]["pairs"] == 3


def test_metrics_are_those_of_all_processes(build, make_pairs, train, monkeypatch):
    trainer = train(build("llama"), make_pairs(4), max_steps=1)
    other = {"pairs": 1.0, "accuracy": 1.0, "only_there": 5.0}
    monkeypatch.setattr("rewarden.hf.training.trainer.gather_object", lambda own: [*own, other])
    trainer.accelerator = SimpleNamespace(num_processes=2)
    found = trainer._over_processes({"pairs": torch.tensor(3.0), "accuracy": torch.tensor(1.0)})
    assert found == {"pairs": 4.0, "accuracy": 2.0, "only_there": 5.0}
