"""One update of the policy against the formulas, written out row by row on the stock model."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from rewarden.align.policy import Policy, ReferencePolicy
from rewarden.align.update import Learner, Passes, Table, Targets, Updater, join_states
from rewarden.methods.policy_feedback import PolicyStates
from rewarden.rl.algorithms import ALGORITHMS, Algorithm, changed

from .test_policy import SIZES
from .update_formulas import (
    COUNT,
    GROUPS,
    LENGTHS,
    LONGEST,
    MASK,
    ROWS,
    TEMPERATURE,
    Counting,
    OneOfTwo,
    Recorder,
    Step,
    assert_gradients,
    assert_numbers,
    expected,
)

SHAPE = Table(*MASK.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    path = str(tmp_path_factory.mktemp("llama"))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder) -> dict[str, Policy]:
    found = {}
    for layout in ("tree", "padded"):
        found[layout] = Policy.load(folder, layout=layout, has_values=True)
        nn.init.normal_(found[layout].value_head.weight, generator=torch.Generator().manual_seed(1))
    return found


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def step(loaded, folder) -> Step:
    """Ratios well on both sides of the clip range, advantages and returns at random."""
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stock.value_head = copy.deepcopy(loaded["tree"].value_head)
    draw = torch.Generator().manual_seed(5)
    rows = [torch.randn(MASK.shape, generator=draw) for _ in range(6)]
    found = Step(copy.deepcopy(loaded["tree"]), stock, None, None)
    with torch.no_grad():
        log_probs, values = map(table, found.log_probs_and_values())
    passes = Passes(MASK, log_probs + 0.3 * rows[0], log_probs + 0.5 * rows[1], values + 0.3 * rows[2])
    found.passes = Passes(MASK, *(each.masked_fill(~MASK, 0) for each in passes[1:]))
    found.targets = Targets(rows[3].masked_fill(~MASK, 0), values + rows[4], COUNT)
    return found


def table(rows: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def of(algorithm: Algorithm, step: Step, **more: object) -> Targets:
    """Advantages per token where values are learned, else per completion; returns likewise."""
    per_token = algorithm.has_values
    advantage = step.targets.advantage if per_token else step.targets.advantage[:, 0]
    return step.targets._replace(advantage=advantage, returns=step.targets.returns if per_token else None, **more)


def updater(algorithm: Algorithm, *, kl_weight: float = 0.0, **more: object) -> Updater:
    settings = {"temperature": TEMPERATURE, "longest": LONGEST, "max_grad_norm": 1e9}
    return Updater(changed(algorithm, kl_weight=kl_weight), **settings | more)


def run(accelerator, step: Step, update: Updater, targets: Targets, *, groups=GROUPS, passes=None, **more):
    """One update that leaves the weights alone: what it says, and the gradients of every optimiser step."""
    optimizer = Recorder(step.policy)
    plan = update.plan(step.policy, groups, 1, pad=0)
    found = update(Learner(accelerator, step.policy, optimizer), plan, passes or step.passes, targets, 1, **more)
    return found, [{name.removeprefix("language_model."): g for name, g in each.items()} for each in optimizer.seen]


RLOO, GRPO, DR_GRPO, PPO, REMAX = (ALGORITHMS[name] for name in ("rloo", "grpo", "dr-grpo", "ppo", "remax"))
CASES = {
    "rloo": (RLOO, 0.0),
    "rloo, charged in the reward": (RLOO, 0.3),
    "rloo, charged in the loss": (changed(RLOO, kl_in="loss", kl_estimator="k2"), 0.3),
    "grpo": (GRPO, 0.3),
    "grpo without a charge": (GRPO, 0.0),
    "grpo per token, clip-higher": (changed(GRPO, aggregation="per-token", clip_low=0.1, clip_high=0.4), 0.3),
    "grpo as cispo": (changed(GRPO, surrogate="cispo", clip_high=0.1, aggregation="per-token"), 0.3),
    "dr-grpo as sapo": (changed(DR_GRPO, surrogate="sapo"), 0.0),
    "ppo as vespo": (changed(PPO, surrogate="vespo"), 0.0),
    "dr-grpo": (DR_GRPO, 0.3),
    "ppo": (PPO, 0.3),
    "ppo, charged in the loss": (changed(PPO, kl_in="loss", kl_estimator="k1", value_clip=0.1, value_weight=0.7), 0.3),
    "remax": (REMAX, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_the_formulas(case: str, accelerator, step) -> None:
    algorithm, kl_weight = CASES[case]
    targets = of(algorithm, step)
    numbers, gradients = expected(step, algorithm, targets, kl_weight=kl_weight)
    assert (0 < numbers["clipped"] < 0.7) == (algorithm.surrogate == "clipped") and numbers["grad_norm"] > 0.01
    assert (numbers["value_loss"] > 0) == algorithm.has_values
    for batch_tokens in (24, 10_000):
        update = updater(algorithm, kl_weight=kl_weight, batch_tokens=batch_tokens)
        assert (len(update.plan(step.policy, GROUPS, 1, pad=0)[0]) > 1) == (batch_tokens == 24)
        found, seen = run(accelerator, step, update, targets)
        assert len(seen) == 1
        assert_numbers(found, numbers)
        assert_gradients(seen[0], gradients)


def test_a_charge_in_the_reward_is_not_in_the_loss_too(accelerator, step) -> None:
    for algorithm in (RLOO, PPO):
        free, charged = (expected(step, algorithm, of(algorithm, step), kl_weight=each)[0] for each in (0.0, 5.0))
        assert free == charged
        assert_numbers(run(accelerator, step, updater(algorithm, kl_weight=5.0), of(algorithm, step))[0], free)


@pytest.mark.parametrize("algorithm", [RLOO, GRPO, PPO], ids=["rloo", "grpo", "ppo"])
def test_the_padded_layout_and_another_order_of_the_prompts_change_nothing(
    algorithm, accelerator, step, loaded
) -> None:
    targets = of(algorithm, step)
    numbers, gradients = expected(step, algorithm, targets, kl_weight=0.3)
    order = [2, 0, 3, 1]
    rows = torch.cat([torch.arange(3 * place, 3 * place + 3) for place in order])
    moved = Targets(*(None if each is None else each[rows] for each in targets))
    passes = Passes(*(each[rows] for each in step.passes))
    groups = [GROUPS[place] for place in order]
    step.policy = copy.deepcopy(loaded["padded"])
    found, seen = run(
        accelerator, step, updater(algorithm, kl_weight=0.3, batch_tokens=40), moved, groups=groups, passes=passes
    )
    assert_numbers(found, numbers)
    assert_gradients(seen[0], gradients)


# --- Completions that are left out ---


@pytest.mark.parametrize("case", ["rloo, charged in the loss", "grpo", "grpo per token, clip-higher", "dr-grpo", "ppo"])
def test_completions_that_are_left_out_leave_the_tokens_and_stay_in_the_sequences(case: str, accelerator, step) -> None:
    """TRL's convention. Their ratios may be anything, even infinite, where exp would spoil the gradient."""
    algorithm, kl_weight = CASES[case]
    counts = COUNT.clone()
    counts[[1, 3, 11]] = False
    targets = of(algorithm, step, counts=counts)
    numbers, gradients = expected(step, algorithm, targets, kl_weight=kl_weight)
    for row in (1, 3, 11):
        step.passes.old_log_probs[row] -= 200
        step.passes.ref_log_probs[row] += 200
        targets.advantage[row] = -1
    for batch_tokens in (24, 10_000):
        update = updater(algorithm, kl_weight=kl_weight, batch_tokens=batch_tokens)
        found, seen = run(accelerator, step, update, targets)
        assert_numbers(found, numbers)
        assert_gradients(seen[0], gradients)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_step_whose_completions_are_all_left_out_changes_nothing(algorithm, accelerator, step) -> None:
    found, seen = run(
        accelerator, step, updater(algorithm, kl_weight=0.3), of(algorithm, step, counts=torch.zeros_like(COUNT))
    )
    assert (found.loss, found.clipped, found.grad_norm) == (0, 0, 0)
    assert not any(each.any() for each in seen[0].values())


# --- Minibatches and epochs ---


def test_every_completion_is_used_once_an_epoch(accelerator, step) -> None:
    update = updater(RLOO, epochs=3, minibatches=2, batch_tokens=24, seed=1)
    plan = update.plan(step.policy, GROUPS, 7, pad=0)
    rows = {id(micro.batch): micro.rows.tolist() for micros in plan for micro in micros}
    assert [sum(len(micro.rows) for micro in micros) for micros in plan] == [6, 6]
    counting, optimizer = Counting(step.policy), Recorder(step.policy)
    before = step.passes.old_log_probs.clone()
    update(Learner(accelerator, counting, optimizer), plan, step.passes, of(RLOO, step), 7)
    assert torch.equal(step.passes.old_log_probs, before)
    assert len(optimizer.seen) == update.updates == 6
    seen = [rows[each] for each in counting.seen]
    epochs = [seen[at : at + len(rows)] for at in range(0, len(seen), len(rows))]
    assert len(epochs) == 3
    assert all(sorted(row for micro in each for row in micro) == list(range(ROWS)) for each in epochs)


def test_which_prompts_share_a_minibatch_comes_from_the_seed_and_the_step(step) -> None:
    def parts(seed: int, at: int) -> list[set[int]]:
        plan = updater(RLOO, minibatches=2, seed=seed).plan(step.policy, GROUPS, at, pad=0)
        return [{int(row) // 3 for micro in micros for row in micro.rows} for micros in plan]

    assert parts(0, 1) == parts(0, 1)
    assert len({str(parts(0, at)) for at in range(12)}) > 1
    assert len({str(parts(seed, 1)) for seed in range(12)}) > 1
    uneven = updater(RLOO, minibatches=3).plan(step.policy, GROUPS, 1, pad=0)
    assert sorted(sum(len(micro.rows) for micro in micros) for micros in uneven) == [3, 3, 6]
    with pytest.raises(ValueError, match=r"5 minibatches of 4 prompts.*take fewer"):
        updater(RLOO, minibatches=5).plan(step.policy, GROUPS, 1, pad=0)


@pytest.mark.parametrize("case", ["rloo", "grpo per token, clip-higher", "ppo"])
def test_every_minibatch_is_a_batch_of_its_own(case: str, accelerator, step) -> None:
    algorithm, kl_weight = CASES[case]
    targets = of(algorithm, step)
    update = updater(algorithm, kl_weight=kl_weight, minibatches=2)
    plan = update.plan(step.policy, GROUPS, 1, pad=0)
    numbers, gradients = [], []
    for micros in plan:
        rows = torch.cat([micro.rows for micro in micros]).tolist()
        for found, each in zip(
            (numbers, gradients), expected(step, algorithm, targets, kl_weight=kl_weight, rows=rows), strict=True
        ):
            found.append(each)
    found, seen = run(accelerator, step, update, targets)
    assert_numbers(found, {name: (numbers[0][name] + numbers[1][name]) / 2 for name in numbers[0]})
    first = seen[0]["lm_head.weight"]
    order = [0, 1] if (first - gradients[0]["lm_head.weight"]).norm() < 1e-3 * first.norm() else [1, 0]
    for each, place in zip(seen, order, strict=True):
        assert_gradients(each, gradients[place])


def test_old_probabilities_stay_while_the_policy_moves(accelerator, step) -> None:
    """Two epochs by hand: the second one's ratios compare the moved policy with what wrote the completions."""
    targets, rate = of(GRPO, step), 0.5
    first, gradients = expected(step, GRPO, targets, kl_weight=0.3)
    with torch.no_grad():
        for name, each in step.stock.named_parameters():
            each -= rate * gradients[name] if name in gradients else 0
    second, _ = expected(step, GRPO, targets, kl_weight=0.3)
    assert abs(second["loss"] - first["loss"]) > 0.01
    update = updater(GRPO, kl_weight=0.3, epochs=2)
    optimizer = torch.optim.SGD(step.policy.parameters(), lr=rate)
    plan = update.plan(step.policy, GROUPS, 1, pad=0)
    found = update(Learner(accelerator, step.policy, optimizer), plan, step.passes, targets, 1)
    numbers = {name: (first[name] + second[name]) / 2 for name in first}
    assert {name: getattr(found, name) for name in numbers} == pytest.approx(numbers, rel=1e-3)


# --- The passes before the update ---


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_passes_before_the_update_are_those_of_the_stock_model(layout: str, step, loaded) -> None:
    policy = loaded[layout]
    update = updater(PPO, minibatches=2, batch_tokens=24)
    plan = update.plan(policy, GROUPS, 1, pad=0)
    with torch.no_grad():
        log_probs, values = map(table, step.log_probs_and_values())
    old, value, states = update.old(policy, plan, SHAPE)
    torch.testing.assert_close(old, log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(value, values, atol=1e-4, rtol=1e-4)
    assert torch.equal(update.reference(ReferencePolicy(policy), plan, SHAPE), old)  # a divergence of exactly 0
    assert states.hidden.dtype == torch.bfloat16 and not states.hidden.requires_grad
    row = 0
    for each in GROUPS:
        for sequence in each.sequences:
            with torch.no_grad():
                hidden = step.stock.base_model(input_ids=torch.tensor(sequence[None]).long()).last_hidden_state[0]
            places = states.places[row]
            assert (places >= 0).sum() == len(sequence) and (places[len(sequence) :] == -1).all()
            torch.testing.assert_close(
                states.hidden[places[: len(sequence)]].float(), hidden, atol=1e-3, rtol=1e-2
            )  # half a step of bfloat16 is 0.4 %
            row += 1


def test_without_a_value_head_there_are_no_values(folder, accelerator, step) -> None:
    policy = Policy.load(folder, layout="tree")
    update = updater(GRPO)
    _, value, _ = update.old(policy, update.plan(policy, GROUPS, 1, pad=0), SHAPE)
    assert value is None
    step.policy = policy
    numbers, _ = expected(step, GRPO, of(GRPO, step))
    found, _ = run(accelerator, step, update, of(GRPO, step), passes=step.passes._replace(value=None))
    assert_numbers(found, numbers)


@pytest.mark.parametrize("algorithm", [RLOO, GRPO], ids=["rloo", "grpo"])
def test_the_first_look_stands_in_for_the_pass_before(algorithm, accelerator, step) -> None:
    update = updater(algorithm, kl_weight=0.3, batch_tokens=24)
    old, _, _ = update.old(step.policy, update.plan(step.policy, GROUPS, 1, pad=0), SHAPE)
    slow, with_pass = run(
        accelerator, step, update, of(algorithm, step), passes=step.passes._replace(old_log_probs=old)
    )
    first = step.passes._replace(old_log_probs=None)
    fast, without = run(accelerator, step, update, of(algorithm, step), passes=first)
    assert torch.equal(fast.log_probs, old) and slow.log_probs is None
    assert (fast.loss, fast.clipped, fast.grad_norm) == (slow.loss, slow.clipped, slow.grad_norm)
    assert fast.clipped == 0 and fast.grad_norm > 0.01
    assert all(torch.equal(without[0][name], each) for name, each in with_pass[0].items())
    for more in ({"epochs": 2}, {"minibatches": 2}):
        with pytest.raises(ValueError, match="2 updates a step need the old log-probabilities"):
            run(accelerator, step, updater(algorithm, **more), of(algorithm, step), passes=first)


def test_states_are_kept_of_the_last_epoch_when_asked_for(accelerator, step) -> None:
    update = updater(RLOO, epochs=2, minibatches=2, batch_tokens=24)
    plan = update.plan(step.policy, GROUPS, 1, pad=0)
    found, _ = run(accelerator, step, update, of(RLOO, step), keep_states=True)
    _, _, expected_states = update.old(step.policy, plan, SHAPE)  # the recorder has not moved the weights
    assert found.states.places.shape == expected_states.places.shape == (ROWS, 9)
    assert len(found.states.hidden) == len(expected_states.hidden)
    for mine, theirs in zip(found.states.places, expected_states.places, strict=True):
        assert torch.equal(mine >= 0, theirs >= 0)
        assert torch.equal(found.states.hidden[mine[mine >= 0]], expected_states.hidden[theirs[theirs >= 0]])
    assert run(accelerator, step, update, of(RLOO, step))[0].states is None


def test_states_are_joined_in_the_order_of_the_step() -> None:
    one = PolicyStates(torch.tensor([[10.0], [11.0], [12.0]]), torch.tensor([[0, 1, -1], [0, 1, 2]]))
    two = PolicyStates(torch.tensor([[20.0], [21.0]], requires_grad=True), torch.tensor([[1, 0]]))
    found = join_states([(torch.tensor([2, 0]), one), (torch.tensor([1]), two)])
    assert found.places.tolist() == [[0, 1, 2], [4, 3, -1], [0, 1, -1]]
    assert found.hidden.tolist() == [[10], [11], [12], [20], [21]]
    assert found.hidden.dtype == torch.bfloat16 and not found.hidden.requires_grad


# --- The optimiser step ---


def test_gradients_are_shortened_and_reported_as_they_were(accelerator, step) -> None:
    numbers, gradients = expected(step, GRPO, of(GRPO, step))
    found, seen = run(accelerator, step, updater(GRPO, max_grad_norm=0.01), of(GRPO, step))
    assert found.grad_norm == pytest.approx(numbers["grad_norm"], rel=1e-4)
    factor = 0.01 / numbers["grad_norm"]
    assert_gradients(seen[0], {name: factor * each for name, each in gradients.items()})


def test_what_is_not_finite_raises_and_leaves_the_weights(accelerator, step) -> None:
    targets = of(RLOO, step)
    targets.advantage[4] = float("nan")
    before = copy.deepcopy(step.policy.state_dict())
    optimizer = torch.optim.AdamW(step.policy.parameters(), lr=0.1)
    update = updater(RLOO, max_grad_norm=1.0)
    plan = update.plan(step.policy, GROUPS, 1, pad=0)
    with pytest.raises(ValueError, match=r"the gradient has length nan and the loss is nan.*--reward-clip"):
        update(Learner(accelerator, step.policy, optimizer), plan, step.passes, targets, 1)
    assert all(torch.equal(each, before[name]) for name, each in step.policy.state_dict().items())
    assert all(each.grad is None for each in step.policy.parameters())
    update(
        Learner(accelerator, step.policy, optimizer),
        plan,
        step.passes,
        of(RLOO, step)._replace(advantage=torch.ones(ROWS)),
        1,
    )
    assert all(each.isfinite().all() for each in step.policy.parameters())


@pytest.mark.parametrize("case", ["rloo", "grpo", "dr-grpo", "ppo"])
def test_losses_of_two_processes_add_up_and_their_gradients_are_averaged(case: str, step) -> None:
    algorithm, kl_weight = CASES[case]
    targets = of(algorithm, step)
    numbers, gradients = expected(step, algorithm, targets, kl_weight=kl_weight)
    parts = []
    for start, stop in ((0, 3), (3, ROWS)):
        process = OneOfTwo([ROWS, sum(LENGTHS)])
        mine = Targets(*(None if each is None else each[start:stop] for each in targets))
        passes = Passes(*(each[start:stop] for each in step.passes))
        groups = GROUPS[start // 3 : stop // 3]
        parts.append(run(process, step, updater(algorithm, kl_weight=kl_weight), mine, groups=groups, passes=passes))
        assert process.mine.tolist() == [stop - start, sum(LENGTHS[start:stop])]
    for name in ("loss", "policy_loss", "value_loss", "clipped"):
        assert sum(getattr(found, name) for found, _ in parts) == pytest.approx(numbers[name], rel=1e-4, abs=1e-6)
    (_, [first]), (_, [second]) = parts
    assert_gradients({name: (first[name] + second[name]) / 2 for name in first}, gradients)


def test_in_bfloat16_the_body_is_rounded_alike_in_all_passes(accelerator, step) -> None:
    update = updater(PPO, dtype=torch.bfloat16)
    plan = update.plan(step.policy, GROUPS, 1, pad=0)
    old, value, _ = update.old(step.policy, plan, SHAPE)
    exact, _, _ = replace(update, dtype=torch.float32).old(step.policy, plan, SHAPE)
    assert 1e-4 < (old - exact).abs().mean() < 0.5
    assert torch.equal(update.reference(ReferencePolicy(step.policy), plan, SHAPE), old)
    targets = of(PPO, step)
    found, seen = run(accelerator, step, update, targets, passes=step.passes._replace(old_log_probs=old, value=value))
    assert found.clipped == 0  # the update's own pass rounds as the pass before did
    assert found.grad_norm > 0
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in seen[0].values())


def test_the_divergence_is_of_real_tokens_and_unknown_before_a_first_look() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, 9.0]])
    passes = Passes(torch.tensor([[True, True, False]]), log_probs, log_probs - 0.5, None)
    assert passes.kl.tolist() == [1.0]
    assert passes._replace(old_log_probs=None).kl is None
