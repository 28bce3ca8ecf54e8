import json
import math
import os
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from rewarden.disk.owned_folder import MARKER
from rewarden.hf.batches import make_batch
from rewarden.hf.model.adapters import Lora, add_lora
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits
from rewarden.hf.training import fit as module
from rewarden.hf.training.checkpoints import latest_checkpoint
from rewarden.hf.training.fit import Schedule, calibrate, fit, save, training_arguments, with_teacher
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck

QUICK = Schedule(max_steps=12, batch_size=4, lr=1e-3, head_lr=1e-2, precision="fp32", checkpoints=3)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def gaps(model, pairs) -> torch.Tensor:
    groups = [pair.group for pair in pairs]
    rewards = model(**make_batch(groups, layout=model.layout, pad_token_id=0)).reward.detach()
    return rewards[::2] - rewards[1::2]


def test_schedule_fills_in_the_rates():
    assert Schedule().resolved(256).lr == pytest.approx(3.125e-4)
    assert Schedule().resolved(4096).lr == pytest.approx(1.953125e-5)
    assert Schedule().resolved(256).head_lr == pytest.approx(3.125e-3)
    assert Schedule(lr=1e-3).resolved(256).head_lr == pytest.approx(1e-2)
    given = Schedule(lr=1e-3, head_lr=2e-3)
    assert given.resolved(256) == given == given.resolved(256, adapters=True)
    # Adapters learn at the rate of the head, and a rate that was given is that of both.
    lora = Schedule().resolved(4096, adapters=True)
    assert lora.lr == lora.head_lr == pytest.approx(1.953125e-4)
    assert Schedule(lr=1e-3).resolved(256, adapters=True).head_lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("schedule", "pairs", "steps"),
    [
        (Schedule(), 16, 2),
        (Schedule(), 17, 3),
        (Schedule(epochs=2), 17, 6),
        (Schedule(epochs=0.5), 17, 2),
        (Schedule(epochs=0.01), 17, 1),
        (Schedule(max_steps=5, epochs=9), 17, 5),
    ],
)
def test_steps(schedule, pairs, steps):
    assert schedule.steps(pairs) == steps


def test_steps_are_shared_by_processes_and_hold_accumulated_batches():
    assert Schedule(batch_size=4, gradient_accumulation=2).steps(17) == 3
    assert Schedule(batch_size=4).steps(17, 2) == 3
    assert Schedule(batch_size=2, gradient_accumulation=2, epochs=2).steps(17, 2) == 6
    assert Schedule(batch_size=4, max_steps=5).steps(17, 2) == 5


def test_arguments_of_the_trainer(tmp_path):
    schedule = Schedule(max_steps=100, precision="fp32", report_to=()).resolved(100)
    arguments = training_arguments(schedule, 10, has_evaluation=True, work=tmp_path)
    assert (arguments.max_steps, arguments.warmup_steps, arguments.eval_steps, arguments.save_steps) == (100, 5, 20, 20)
    assert arguments.learning_rate == pytest.approx(8e-4)
    assert arguments.report_to == []
    assert not arguments.bf16
    assert training_arguments(replace(schedule, precision="bf16"), 10, has_evaluation=False, work=tmp_path).bf16


def test_checkpointing_is_asked_for_under_the_name_that_there_is(tmp_path, recwarn):
    schedule = Schedule(gradient_checkpointing=True, gradient_accumulation=3, report_to=()).resolved(100)
    arguments = training_arguments(schedule, 10, has_evaluation=False, work=tmp_path)
    names = {field.name for field in fields(arguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    assert getattr(arguments, name) is True
    assert getattr(arguments, f"{name}_kwargs") == {"use_reentrant": False}
    assert arguments.gradient_accumulation_steps == 3
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]


def test_adapters_train_under_checkpointing_and_the_base_stays(build, make_pairs, tmp_path):
    found = []
    for number, on in enumerate((False, True)):
        model = build("llama")
        add_lora(model, Lora(rank=2))
        before = weights(model)
        fit(model, make_pairs(8), [], replace(QUICK, gradient_checkpointing=on), work=tmp_path / str(number))
        found.append(weights(model))
        moved = {name for name in before if not torch.equal(before[name], found[-1][name])}
        assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
        assert any("lora_A" in name for name in moved)
        assert "head.score.weight" in moved
    assert same(*found)


def test_checkpoints_leave_out_what_does_not_train(build, make_pairs, tmp_path, monkeypatch):
    model = build("llama")
    add_lora(model, Lora(rank=2))
    monkeypatch.setattr(module.Progress, "on_step_end", lambda self, *args, **more: stop_at(7, self, *args, **more))
    with pytest.raises(KeyboardInterrupt):
        fit(model, make_pairs(8), [], QUICK, work=tmp_path)
    kept = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert set(kept) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_model_computes_after_training_what_it_computes_when_loaded_again(build, make_pairs, tmp_path):
    model, pairs = build("llama"), make_pairs(8)
    forward = model.forward
    fit(model, pairs, [], replace(QUICK, precision="bf16", max_steps=2), work=tmp_path)
    assert model.forward == forward  # and not the Trainer's, which would go on computing in bf16
    twin = build("llama")
    twin.load_state_dict(model.state_dict())
    assert torch.equal(gaps(model, pairs), gaps(twin, pairs))


def test_a_run_killed_after_its_last_step_learns_nothing_more(build, make_pairs, tmp_path):
    pairs, turned = make_pairs(20), make_pairs(6, seed=3)
    for name, evaluation in (("plain", []), ("best", turned)):
        work, first, again = tmp_path / name, build("llama"), build("llama")
        schedule = replace(QUICK, max_steps=8)  # in the middle of an epoch
        log = fit(first, pairs, evaluation, schedule, work=work)
        assert fit(again, pairs, evaluation, schedule, work=work, resume=True) == log
        assert same(weights(first), weights(again))
        assert not again.training


def test_methods_that_read_the_language_head_are_not_sharded(build, make_pairs, tmp_path, monkeypatch):
    model = build("llama")
    monkeypatch.setattr(module, "_trainer", lambda *_: SimpleNamespace(is_fsdp_enabled=True))
    model.method = SimpleNamespace(uses_language_model=True)
    with pytest.raises(ValueError, match="which FSDP has sharded; train it with DDP"):
        fit(model, make_pairs(4), [], QUICK, work=tmp_path)


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"seed": 5}, {"lr": 5e-3}])
def test_a_run_is_not_continued_with_other_settings(build, make_pairs, tmp_path, change):
    fit(build("llama"), make_pairs(8), [], replace(QUICK, max_steps=4), work=tmp_path)
    (name,) = change
    with pytest.raises(ValueError, match=f"holds a run with other settings: {name} was"):
        fit(build("llama"), make_pairs(8), [], replace(QUICK, max_steps=4, **change), work=tmp_path, resume=True)
    with pytest.raises(ValueError, match="pairs was"):
        fit(build("llama"), make_pairs(8, seed=1), [], replace(QUICK, max_steps=4), work=tmp_path, resume=True)


def test_learns_and_tells(build, make_pairs, tmp_path, capsys):
    pairs, model = make_pairs(20), build("llama")
    before = (gaps(model, pairs) > 0).float().mean()
    log = fit(model, pairs, [], replace(QUICK, max_steps=20), work=tmp_path, label="first")
    assert (gaps(model, pairs) > 0).float().mean() == 1 > before
    assert not model.training
    found = [entry["loss"] for entry in log]
    assert len(found) == 20
    assert found[-1] < 0.5 * found[0]
    out, err = capsys.readouterr()
    assert "first: 100%" in err
    assert not out


def test_seed_decides_everything(build, make_pairs, tmp_path):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # what happened before does not matter
        model = build("llama", InfoBottleneck(latent_size=4))
        fit(model, make_pairs(20), [], replace(QUICK, seed=seed), work=tmp_path / str(number))
        found.append(weights(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def stop_at(step: int, callback, args, state, control, **_):
    if state.global_step == step:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("method", "number", "killed", "held_out"),
    [
        (BradleyTerry(), 20, 7, 0),  # resumed at 4 in the first epoch of 5 steps
        (BradleyTerry(), 18, 10, 0),  # resumed at 8 in the second, whose last batch is incomplete
        (BradleyTerry(), 16, 6, 0),  # resumed at 4, the very end of an epoch
        (BradleyTerry(), 20, 9, 6),  # evaluated in between, and the best checkpoint kept
        (InfoBottleneck(latent_size=4), 20, 7, 0),
        (InfoBottleneck(latent_size=4), 20, 10, 0),
        (InfoBottleneck(latent_size=4), 16, 6, 6),
    ],
    ids=str,
)
def test_resumed_equals_uninterrupted(build, make_pairs, tmp_path, monkeypatch, method, number, killed, held_out):
    pairs, evaluation = make_pairs(number), make_pairs(held_out, seed=3)
    straight = build("llama", method)
    log = fit(straight, pairs, evaluation, QUICK, work=tmp_path / "straight")

    with monkeypatch.context() as patch:
        patch.setattr(module.Progress, "on_step_end", lambda self, *args, **more: stop_at(killed, self, *args, **more))
        with pytest.raises(KeyboardInterrupt):
            fit(build("llama", method), pairs, evaluation, QUICK, work=tmp_path / "killed")
    assert latest_checkpoint(tmp_path / "killed").endswith(f"checkpoint-{killed // 4 * 4}")
    torch.manual_seed(99)
    resumed = build("llama", method)
    steps = []
    monkeypatch.setattr(module.Progress, "on_step_end", lambda *found, **_: steps.append(found[2].global_step))
    resumed_log = fit(resumed, pairs, evaluation, QUICK, work=tmp_path / "killed", resume=True)
    assert steps == list(range(killed // 4 * 4 + 1, 13))  # else the same seed would give the same weights anyway
    assert same(weights(straight), weights(resumed))
    ends = [[entry for entry in entries if entry["step"] == 12 and "loss" in entry] for entries in (log, resumed_log)]
    assert ends[0][0]["loss"] == ends[1][0]["loss"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("held_out", [0, 6])
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    build, make_pairs, tmp_path, monkeypatch, caplog, name, held_out
):
    pairs, evaluation, straight = make_pairs(20), make_pairs(held_out, seed=3), build("llama")
    fit(straight, pairs, evaluation, QUICK, work=tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(module.Progress, "on_step_end", lambda self, *args, **more: stop_at(10, self, *args, **more))
        with pytest.raises(KeyboardInterrupt):
            fit(build("llama"), pairs, evaluation, QUICK, work=tmp_path / "killed")
    path = tmp_path / "killed" / "checkpoint-8" / name
    path.write_bytes(path.read_bytes()[:-20])
    resumed = build("llama")
    with caplog.at_level("INFO", "rewarden"):
        fit(resumed, pairs, evaluation, QUICK, work=tmp_path / "killed", resume=True)
    assert f"checkpoint-8 is not whole ({name} has" in caplog.text
    assert same(weights(straight), weights(resumed))


def test_a_folder_with_another_name_keeps_its_best_checkpoint(build, make_pairs, tmp_path, monkeypatch):
    pairs = make_pairs(16)
    # The first evaluation is the best: it is what remains at the end.
    turned = [replace(pair, group=replace(pair.group, sequences=pair.group.sequences[::-1])) for pair in pairs]
    straight, resumed = build("llama"), build("llama")
    fit(straight, pairs, turned, QUICK, work=tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(module.Progress, "on_step_end", lambda self, *args, **more: stop_at(10, self, *args, **more))
        with pytest.raises(KeyboardInterrupt):
            fit(build("llama"), pairs, turned, QUICK, work=tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    fit(resumed, pairs, turned, QUICK, work=tmp_path / "after", resume=True)
    assert same(weights(straight), weights(resumed))


def test_resume_without_a_checkpoint_starts_from_nothing(build, make_pairs, tmp_path):
    fresh, resumed = build("llama"), build("llama")
    fit(fresh, make_pairs(8), [], replace(QUICK, max_steps=3), work=tmp_path / "a")
    fit(resumed, make_pairs(8), [], replace(QUICK, max_steps=3), work=tmp_path / "b", resume=True)
    assert same(weights(fresh), weights(resumed))


def test_best_checkpoint_is_what_remains(build, make_pairs, tmp_path):
    # Evaluated on its own pairs with the labels turned round, it gets worse and worse: the first evaluation is the best.
    pairs = make_pairs(16)
    turned = [replace(pair, group=replace(pair.group, sequences=pair.group.sequences[::-1])) for pair in pairs]
    model = build("llama")
    log = fit(model, pairs, turned, QUICK, work=tmp_path)
    nlls = {entry["step"]: entry["eval_nll"] for entry in log if "eval_nll" in entry}
    assert sorted(nlls) == [4, 8, 12]
    assert min(nlls, key=nlls.get) == 4
    found = -functional.logsigmoid(gaps(model, turned).double()).mean().item()
    assert found == pytest.approx(nlls[4], rel=1e-5)
    assert found < nlls[12] - 0.01


@pytest.mark.parametrize("margin", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops(build, make_pairs, tmp_path, margin):
    pairs = make_pairs(8, margin=margin)
    with pytest.raises(ValueError, match=r"the training loss is (nan|inf) at step 1; lower --lr, or check margins"):
        fit(build("llama"), pairs, [], QUICK, work=tmp_path)


def test_freezing_leaves_the_backbone_as_it_was(build, make_pairs, tmp_path):
    model = build("llama", layout="tree")
    before = weights(model)
    fit(model, make_pairs(8), [], replace(QUICK, freeze_backbone=True, max_steps=3), work=tmp_path)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["head.score.weight"]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_layouts_train_alike(build, make_pairs, tmp_path, family):
    logs = {}
    for layout in ("tree", "padded"):
        model = build(family, layout=layout)
        assert model.layout == layout
        schedule = replace(QUICK, max_steps=50, lr=1e-4)
        logs[layout] = fit(model, make_pairs(20), [], schedule, work=tmp_path / layout)
    tree, padded = ([entry["loss"] for entry in logs[layout]] for layout in ("tree", "padded"))
    assert len(tree) == 50
    assert tree == pytest.approx(padded, abs=1e-4)
    assert tree[-1] != pytest.approx(tree[0], abs=1e-2)


@pytest.mark.parametrize("family", ["bert", "gpt2", "gpt_neox", "mistral"])
def test_every_family_trains(build, make_pairs, tmp_path, family):
    model = build(family)
    log = fit(model, make_pairs(8), make_pairs(3, seed=1), replace(QUICK, max_steps=2), work=tmp_path)
    assert all(math.isfinite(entry["loss"]) for entry in log if "loss" in entry)


def test_calibration_by_hand(build, make_pairs, tokenizer):
    model, pairs = build("llama"), make_pairs(5)
    calibrate(model, pairs, tokenizer)
    rewards = [
        model(torch.tensor(sequence[None]).long(), None, None, forest).reward.item()
        for sequence, forest in _alone(pairs)
    ]
    mean = sum(rewards) / 10
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / 9)
    assert model.config.reward_mean == pytest.approx(mean, rel=1e-4, abs=1e-7)
    assert model.config.reward_std == pytest.approx(std, rel=1e-4)
    # At most two pairs: every third of five, the first and the fourth.
    calibrate(model, pairs, tokenizer, most=2)
    assert model.config.reward_mean == pytest.approx(sum(rewards[i] for i in (0, 1, 6, 7)) / 4, rel=1e-4, abs=1e-7)


def _alone(pairs):
    from rewarden.tree.layout import Forest, Tree

    for pair in pairs:
        for sequence in pair.group.sequences:
            yield sequence, Forest((Tree(0, (len(sequence),)),))


def test_agreement_of_the_teacher(build, make_pairs, tokenizer):
    teacher, pairs = build("llama", seed=2), make_pairs(6)
    found = with_teacher(teacher, pairs, tokenizer)
    expected = [1 / (1 + math.exp(-gap)) for gap in gaps(teacher, pairs).tolist()]
    assert [pair.agreement for pair in found] == pytest.approx(expected, rel=1e-5)
    assert [replace(pair, agreement=None) for pair in found] == pairs
    assert len(set(expected)) == 6


def test_second_stage_after_scoring(build, make_pairs, tokenizer, tmp_path):
    # The teacher scores in inference mode; nothing that it caches may break the training that follows.
    pairs = with_teacher(build("qwen3"), make_pairs(8), tokenizer)
    model = build("qwen3", BayesianEnsembleNLL(size=2))
    log = fit(model, pairs, [], replace(QUICK, max_steps=3), work=tmp_path)
    assert math.isfinite(log[-1]["loss"])


NESTED = Ensemble(InfoBottleneck(latent_size=4, decoder="mlp"), size=2)


@pytest.mark.parametrize("method", [BradleyTerry(), NESTED], ids=["plain", "nested"])
def test_saved_folder_reloads_bit_equal(build, make_pairs, tokenizer, tmp_path, method):
    model, pairs = build("llama", method), make_pairs(8)
    fit(model, pairs, [], replace(QUICK, max_steps=2), work=tmp_path / "work")
    calibrate(model, pairs, tokenizer)
    limits = Limits(max_length=50, max_completion_length=20, raw=True)
    save(model, tokenizer, limits, {"steps": 2}, tmp_path / "out")
    loaded = RewardModel.load(str(tmp_path / "out"))
    assert same(weights(model), weights(loaded))
    assert torch.equal(gaps(model, pairs), gaps(loaded, pairs))
    assert Limits(**loaded.config.limits) == limits
    assert loaded.config.reward_mean == model.config.reward_mean
    assert loaded.config.reward_std == model.config.reward_std > 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth")) or name == ".saving"]
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == {"steps": 2}


@pytest.mark.parametrize("replaces", [False, True])
def test_a_save_that_fails_leaves_no_configuration(build, tokenizer, tmp_path, monkeypatch, replaces):
    model, done, move = build("llama"), [], os.replace
    if replaces:
        save(model, tokenizer, Limits(), {}, tmp_path / "out")

    def fails(source, target):
        is_model = target.parent == tmp_path / "out" and target.name != MARKER
        if is_model and len(done) == 2:
            raise OSError("killed")
        if is_model:
            done.append(target)
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="killed"):
            save(model, tokenizer, Limits(), {}, tmp_path / "out")
    assert len(done) == 2
    assert not (tmp_path / "out" / "config.json").exists()
    save(model, tokenizer, Limits(), {}, tmp_path / "out")  # and it can be tried again
    assert same(weights(RewardModel.load(str(tmp_path / "out"))), weights(model))


def test_configuration_is_moved_last(build, tokenizer, tmp_path, monkeypatch):
    moved, move = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append(target.name), move(source, target)))
    save(build("llama"), tokenizer, Limits(), {}, tmp_path)
    assert len(moved) >= 4
    assert moved[-1] == "config.json"
