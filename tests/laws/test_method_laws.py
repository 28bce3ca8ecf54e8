"""What every method must obey, whatever it computes: one table of methods, the same tests for each."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rewarden.core import Method, PairInfo, RewardOutput, TokenOutput, select
from rewarden.methods import METHODS, from_dict, to_dict
from rewarden.methods.bayesian_ensemble import BayesianEnsemble, BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.generalizable import GeneralizableReward
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.methods.length_disentangled import LengthDisentangled
from rewarden.methods.smoothed import Smoothed
from rewarden.methods.wrapper import Wrapper

HIDDEN, PAIRS = 10, 6

TABLE: dict[str, Method] = {
    "bradley-terry": BradleyTerry(),
    "info-bottleneck": InfoBottleneck(latent_size=4),
    "info-bottleneck-averages": InfoBottleneck(latent_size=4, kl_weight=1.0, kl="averages"),
    "info-bottleneck-mlp": InfoBottleneck(latent_size=4, decoder="mlp"),
    "bayesian-ensemble": BayesianEnsemble(size=3, target_scale=8.0),
    "bayesian-ensemble-nll": BayesianEnsembleNLL(size=3, sigma_floor=0.2),
    "length-disentangled": LengthDisentangled(),
    "length-disentangled-lightly": LengthDisentangled(length_weight=0.1, orthogonality_weight=0.2),
    "generalizable-reward": GeneralizableReward(head_width=64),
    "generalizable-reward-dpo": GeneralizableReward(regulariser="dpo", weight=0.1, head_width=0),
    "ensemble": Ensemble(),
    "worst-of-info-bottlenecks": Ensemble(InfoBottleneck(latent_size=4), size=2, reward="worst"),
    "ensemble-of-bayesian-ensembles": Ensemble(BayesianEnsembleNLL(size=2), size=2),
    "ensemble-of-ensembles": Ensemble(Ensemble(BradleyTerry(), size=2, reward="worst"), size=3),
    "ensemble-of-length-disentangled": Ensemble(LengthDisentangled(), size=2),
    "ensemble-of-generalizable-rewards": Ensemble(GeneralizableReward(head_width=64), size=2),
    "centered": Centered(),
    "centered-info-bottleneck": Centered(InfoBottleneck(latent_size=4)),
    "centered-bayesian-ensemble": Centered(BayesianEnsembleNLL(size=2)),
    "centered-length-disentangled": Centered(LengthDisentangled()),
    "centered-ensemble": Centered(Ensemble(BradleyTerry(), size=2, reward="worst")),
    "smoothed": Smoothed(),
    "smoothed-info-bottleneck": Smoothed(InfoBottleneck(latent_size=4), smoothing=0.2),
    "smoothed-length-disentangled": Smoothed(LengthDisentangled()),
    "smoothed-generalizable-reward": Smoothed(GeneralizableReward(head_width=64)),
    "smoothed-twice": Smoothed(Smoothed(smoothing=0.05), smoothing=0.05),
    "smoothed-ensemble": Smoothed(Ensemble(size=2)),
    "ensemble-of-centered-and-smoothed": Ensemble(Centered(Smoothed(BradleyTerry())), size=2),
}
"""Every method with its options, and wrappers around some of them."""


def parts(method: Method) -> set[type[Method]]:
    """The classes that a method is made of."""
    return {type(method)} | (parts(method.member) if isinstance(method, Wrapper) else set())


SAMPLERS: set[type[Method]] = {InfoBottleneck, BayesianEnsemble, BayesianEnsembleNLL, GeneralizableReward}

SAMPLES = {name for name in TABLE if parts(TABLE[name]) & SAMPLERS}
"""Methods that draw noise while training."""

OF_THE_BATCH = {name for name in TABLE if LengthDisentangled in parts(TABLE[name])}
"""Methods with a term that is a statistic of the batch. Two laws hold for them only when all completions are equally long."""

every_method = pytest.mark.parametrize("name", TABLE)


def hidden(seed: int = 0, rows: int = PAIRS) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


def make_head(method: Method, *, training: bool = False) -> nn.Module:
    """A fresh head; for methods that read a language model, its output has tokens, as the model's has."""
    torch.manual_seed(0)
    head = method.head(HIDDEN).train(training)
    if method.uses_language_model:
        head.register_forward_hook(lambda _, inputs, output: output._replace(tokens=said_of(inputs[0].detach())))
    return head


def said_of(states: Tensor) -> TokenOutput:
    """Four tokens per completion that a language model finds more or less likely."""
    logit = states[:, :4]
    return TokenOutput(logit, states.logsumexp(-1, keepdim=True).expand_as(logit), torch.ones_like(logit).bool())


def make_info(method: Method, *, equally_long: bool = False) -> PairInfo:
    """Certain labels; for methods with a teacher that is a target far above what an untrained head gives."""
    lengths = torch.randint(1, 50, (2, PAIRS), generator=torch.Generator().manual_seed(3))
    if equally_long:
        lengths = torch.full_like(lengths, 7)
    return PairInfo(
        agreement=torch.ones(PAIRS) if method.needs_teacher else None,
        chosen_length=lengths[0],
        rejected_length=lengths[1],
    )


def pick(info: PairInfo, index: Tensor) -> PairInfo:
    return PairInfo(*(None if column is None else column[index] for column in info))


def raised(output: RewardOutput, by: float) -> RewardOutput:
    """The output of the same head with its reward, and all that the reward is read from, raised."""

    def detail(value: Any) -> Any:
        if isinstance(value, RewardOutput):
            return raised(value, by)
        if hasattr(value, "sample"):
            return value._replace(mean=value.mean + by, sample=value.sample + by)
        return tuple(map(detail, value)) if type(value) is tuple else value

    members = None if output.members is None else output.members + by
    return output._replace(reward=output.reward + by, members=members, detail=detail(output.detail))


def tensors(output: RewardOutput) -> list[Tensor]:
    """What the head gave; the tokens are not its."""
    return [leaf for leaf in tree_leaves(output._replace(tokens=None)) if isinstance(leaf, Tensor)]


def test_every_method_is_in_the_table_and_every_wrapper_inside_another_one() -> None:
    assert {type(method) for method in TABLE.values()} == set(METHODS.values())
    wrapped = set().union(*(parts(method.member) for method in TABLE.values() if isinstance(method, Wrapper)))
    assert wrapped >= {method for method in METHODS.values() if issubclass(method, Wrapper)}


@every_method
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_the_head_returns_float32_rows(name: str, training: bool) -> None:
    for rows in (1, PAIRS):
        output = make_head(TABLE[name], training=training)(hidden(rows=rows))
        assert output.reward.shape == (rows,)
        assert all(tensor.dtype == torch.float32 and len(tensor) == rows for tensor in tensors(output))
        assert all(torch.isfinite(tensor).all() for tensor in tensors(output))
        if output.uncertainty is not None:
            assert output.uncertainty.shape == (rows,)
            assert (output.uncertainty >= 0).all()
        assert output.latent is None or output.latent.ndim == 2
        if output.members is not None:
            assert output.members.ndim == 2
            assert (output.members.amin(-1) <= output.reward + 1e-6).all()
            assert (output.members.amax(-1) >= output.reward - 1e-6).all()


@every_method
@pytest.mark.parametrize(("chosen", "rejected"), [(0.0, 0.0), (1e4, -1e4), (-1e4, 1e4), (1e4, 1e4)])
def test_the_loss_is_one_finite_number_per_pair(name: str, chosen: float, rejected: float) -> None:
    method = TABLE[name]
    head = make_head(method, training=True)
    pair = raised(head(hidden(1)), chosen), raised(head(hidden(2)), rejected)
    loss = method.loss(*pair, make_info(method))
    assert loss.shape == (PAIRS,)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in head.parameters())


@every_method
def test_a_higher_chosen_and_a_lower_rejected_reward_cost_less(name: str) -> None:
    """It holds near zero, where pairs start: a smoothed label has had enough at a finite gap, a centred pair costs by its sum."""
    method, info = TABLE[name], make_info(TABLE[name], equally_long=True)
    head = make_head(method)
    chosen, rejected = head(0.3 * hidden(1)), head(0.3 * hidden(2))  # rewards well inside the targets
    before = method.loss(chosen, rejected, info)
    assert (method.loss(raised(chosen, 0.5), rejected, info) < before).all()
    assert (method.loss(chosen, raised(rejected, -0.5), info) < before).all()
    assert (method.loss(raised(chosen, -0.5), rejected, info) > before).all()


@every_method
def test_rows_do_not_influence_each_other(name: str) -> None:
    head = make_head(TABLE[name])
    batch, changed = hidden(), hidden()
    changed[0] = 100.0
    whole, other = head(batch), head(changed)
    for row in range(PAIRS):
        alone = head(batch[row : row + 1])
        for together, single in zip(tensors(select(whole, slice(row, row + 1))), tensors(alone), strict=True):
            torch.testing.assert_close(together, single)
    assert not torch.equal(whole.reward[0], other.reward[0])
    for before, after in zip(tensors(whole), tensors(other), strict=True):
        torch.testing.assert_close(before[1:], after[1:])
        of_the_head = torch.equal(before, before[:1].expand_as(before))  # such as the overlap of two weight vectors
        assert torch.equal(before[0], after[0]) == of_the_head


@every_method
def test_pairs_do_not_influence_each_other(name: str) -> None:
    method = TABLE[name]
    head = make_head(method)
    chosen, rejected = head(hidden(1)), head(hidden(2))
    index = torch.tensor([4, 1])
    for equally_long in (True, False):
        info = make_info(method, equally_long=equally_long)
        whole = method.loss(chosen, rejected, info)[index]
        part = method.loss(select(chosen, index), select(rejected, index), pick(info, index))
        independent = equally_long or name not in OF_THE_BATCH
        assert torch.allclose(whole, part, rtol=1e-5, atol=1e-6) == independent


@pytest.mark.parametrize("name", sorted(OF_THE_BATCH))
def test_what_belongs_to_the_batch_is_added_to_every_pair_alike(name: str) -> None:
    method = TABLE[name]
    head = make_head(method)
    pair = head(hidden(1)), head(hidden(2))
    added = method.loss(*pair, make_info(method)) - method.loss(*pair, make_info(method, equally_long=True))
    assert added.abs().min() > 0.01
    torch.testing.assert_close(added, added[:1].expand(PAIRS))


@every_method
def test_a_method_survives_json(name: str) -> None:
    method = TABLE[name]
    assert from_dict(json.loads(json.dumps(to_dict(method)))) == method


@every_method
def test_inference_is_deterministic_and_training_samples_where_it_should(name: str) -> None:
    method = TABLE[name]
    head, info = make_head(method), make_info(method)
    losses = [method.loss(head(hidden(1)), head(hidden(2)), info) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(tensors(head(hidden())), tensors(head(hidden())), strict=True))
    assert torch.equal(*losses)
    head.train()
    noisy = [tensors(head(hidden())) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*noisy, strict=True)) != (name in SAMPLES)


@every_method
def test_a_saved_head_gives_the_same_rewards(name: str) -> None:
    head = make_head(TABLE[name])
    torch.manual_seed(1)
    other = TABLE[name].head(HIDDEN).eval()
    assert not torch.equal(other(hidden()).reward, head(hidden()).reward)
    other.load_state_dict(head.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(tensors(head(hidden())), tensors(other(hidden())), strict=True))


@every_method
def test_the_gradient_reaches_every_parameter_and_the_backbone(name: str) -> None:
    method = TABLE[name]
    head = make_head(method, training=True)
    states = hidden(1).requires_grad_(), hidden(2).requires_grad_()
    method.loss(head(states[0]), head(states[1]), make_info(method)).mean().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert all(state.grad is not None and (state.grad.abs().sum(-1) > 0).all() for state in states)


@every_method
def test_select_picks_rows_of_nested_outputs(name: str) -> None:
    output = make_head(TABLE[name])(hidden())
    picked = select(output, torch.tensor([5, 0, 5]))
    assert type(picked.detail) is type(output.detail)
    for before, after in zip(tensors(output), tensors(picked), strict=True):
        assert torch.equal(after, before[[5, 0, 5]])


@every_method
def test_metrics_are_finite_scalars_without_gradient(name: str) -> None:
    method = TABLE[name]
    head = make_head(method, training=True)
    for value in method.metrics(head(hidden(1)), head(hidden(2)), make_info(method)).values():
        assert value.shape == ()
        assert torch.isfinite(value)
        assert not value.requires_grad


@every_method
def test_only_methods_with_a_teacher_ask_for_agreement(name: str) -> None:
    method = TABLE[name]
    output, info = make_head(method)(hidden()), make_info(method)._replace(agreement=None)
    if method.needs_teacher:
        with pytest.raises(AssertionError, match="agreement"):
            method.loss(output, output, info)
    else:
        assert method.loss(output, output, info).shape == (PAIRS,)


@every_method
@pytest.mark.parametrize("column", ["margin", "agreement"])
def test_a_column_that_a_method_uses_changes_its_loss(name: str, column: str) -> None:
    method = TABLE[name]
    head = make_head(method)
    pair, info = (head(hidden(1)), head(hidden(2))), make_info(method)
    changed = info._replace(**{column: torch.full((PAIRS,), 0.25)})
    differs = not torch.equal(method.loss(*pair, info), method.loss(*pair, changed))
    assert differs == (column in method.uses or (column == "agreement" and method.needs_teacher))
