import math

import pytest
import torch
from torch import Tensor, nn

from rewarden.core import PairInfo, RewardOutput, TokenOutput
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.generalizable import GeneralizableReward
from rewarden.methods.smoothed import Smoothed


def said(*log_probs: list[float]) -> TokenOutput:
    """What a language model says: log-probabilities per token, rows of any length."""
    width = max(map(len, log_probs))
    logit = torch.tensor([row + [0.0] * (width - len(row)) for row in log_probs])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in log_probs])
    return TokenOutput(logit + 3.0 * mask, 3.0 * mask, mask)


CHOSEN = RewardOutput(torch.tensor([1.0, 0.0]), tokens=said([-2.0, -3.0, -5.0], [-4.0]))
REJECTED = RewardOutput(torch.tensor([0.0, 0.0]), tokens=said([-20.0, -20.0], [-1.0, -1.0]))


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_the_losses_by_hand() -> None:
    # Likelihoods of chosen: -10 and -4 nats; of rejected: -40 and -2. Gaps: 1 and 0.
    preference = [softplus(-1.0), math.log(2)]
    sft, dpo = [softplus(1.0), softplus(0.4)], [softplus(-3.0), softplus(0.2)]
    for regulariser, expected in (("sft", sft), ("dpo", dpo)):
        loss = GeneralizableReward(regulariser=regulariser, weight=0.25).loss(CHOSEN, REJECTED, PairInfo())
        wanted = [0.75 * first + 0.25 * second for first, second in zip(preference, expected, strict=True)]
        assert loss.tolist() == pytest.approx(wanted, rel=1e-6)


def test_defaults_by_hand() -> None:
    loss = GeneralizableReward().loss(CHOSEN, REJECTED, PairInfo())
    assert loss[0].item() == pytest.approx(0.99 * softplus(-1.0) + 0.01 * softplus(1.0), rel=1e-6)
    double = GeneralizableReward(beta=0.2).loss(CHOSEN, REJECTED, PairInfo())
    assert double[0].item() == pytest.approx(0.99 * softplus(-1.0) + 0.01 * softplus(2.0), rel=1e-6)


def test_without_a_weight_it_is_bradley_terry() -> None:
    info = PairInfo(margin=torch.tensor([0.5, -1.0]), agreement=torch.tensor([0.9, 0.3]))
    found = GeneralizableReward(weight=0.0).loss(CHOSEN, REJECTED, info)
    assert torch.equal(found, BradleyTerry().loss(CHOSEN, REJECTED, info))


def test_labels_reach_the_preference_alone() -> None:
    method, info = GeneralizableReward(weight=0.5), PairInfo(agreement=torch.tensor([0.2, 0.7]))
    regulariser = method.loss(CHOSEN, REJECTED, PairInfo()) - 0.5 * BradleyTerry().loss(CHOSEN, REJECTED, PairInfo())
    found = method.loss(CHOSEN, REJECTED, info) - 0.5 * BradleyTerry().loss(CHOSEN, REJECTED, info)
    torch.testing.assert_close(found, regulariser)


@pytest.mark.parametrize(("regulariser", "slopes"), [("sft", (-1, 0)), ("dpo", (-1, 1))])
def test_a_likelier_chosen_completion_costs_less(regulariser: str, slopes: tuple[int, int]) -> None:
    method = GeneralizableReward(regulariser=regulariser)  # type: ignore[arg-type]
    logits = [torch.full((2, 3), -2.0, requires_grad=True) for _ in range(2)]
    mask = torch.ones(2, 3, dtype=torch.bool)
    outputs = [RewardOutput(torch.zeros(2), tokens=TokenOutput(logit, torch.zeros(2, 3), mask)) for logit in logits]
    method.loss(*outputs, PairInfo()).sum().backward()
    for logit, slope in zip(logits, slopes, strict=True):
        found = torch.zeros(2, 3) if logit.grad is None else logit.grad.sign()
        assert torch.equal(found, torch.full((2, 3), float(slope)))


def test_very_unlikely_completions_cost_their_nats() -> None:
    # -log sigmoid(b l) = -b l + log(1 + exp(b l)), and the last term vanishes.
    rare = RewardOutput(torch.zeros(1), tokens=said([-1e5]))
    other = RewardOutput(torch.zeros(1), tokens=said([-1.0]))
    loss = GeneralizableReward(weight=0.5).loss(rare, other, PairInfo())
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * 1e4, rel=1e-6)


def test_the_metric_is_nats_per_token_of_chosen() -> None:
    metrics = GeneralizableReward().metrics(CHOSEN, REJECTED, PairInfo())
    assert set(metrics) == {"chosen_log_prob"}
    assert metrics["chosen_log_prob"].item() == pytest.approx((-10 / 3 - 4) / 2)


def test_a_completion_without_a_predictable_token_counts_as_certain() -> None:
    empty = RewardOutput(torch.zeros(1), tokens=TokenOutput(*[torch.zeros(1, 0)] * 2, torch.zeros(1, 0).bool()))
    assert GeneralizableReward().metrics(empty, empty, PairInfo())["chosen_log_prob"].item() == 0.0
    loss = GeneralizableReward(weight=0.5).loss(empty, empty, PairInfo())
    assert loss.item() == pytest.approx(math.log(2))


def test_missing_tokens_are_explained() -> None:
    output = RewardOutput(torch.zeros(2))
    with pytest.raises(ValueError, match=r"this output has no tokens; .*make the batch with with_tokens=True"):
        GeneralizableReward().loss(output, output, PairInfo())


def make_head(**fields: float) -> nn.Module:
    torch.manual_seed(0)
    return GeneralizableReward(**fields).head(8)  # type: ignore[arg-type]


def test_the_value_head_by_hand() -> None:
    head = make_head(head_width=2, dropout=0.0)
    inner, score = head.inner[0], head.score
    with torch.no_grad():
        inner.weight.copy_(torch.eye(2, 8))
        inner.bias.copy_(torch.tensor([0.5, 0.0]))
        score.weight.copy_(torch.tensor([[2.0, 3.0]]))
    hidden = torch.zeros(2, 8)
    hidden[:, 0], hidden[:, 1] = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 4.0])
    assert head(hidden).reward.tolist() == [3.0, 12.0]  # 2 relu(1.5), 3 relu(4)


def test_the_sizes_of_the_head() -> None:
    def shapes(head: nn.Module) -> list[tuple[int, ...]]:
        return [tuple(parameter.shape) for parameter in head.parameters()]

    assert shapes(make_head()) == [(1024, 8), (1024,), (1, 1024)]
    assert shapes(make_head(head_width=0)) == [(1, 8)]


def test_a_linear_head_by_hand() -> None:
    head = make_head(head_width=0).eval()
    hidden = torch.randn(3, 8)
    torch.testing.assert_close(head(hidden).reward, hidden @ head.score.weight[0])


@pytest.mark.parametrize("width", [0, 16])
def test_dropout_acts_on_the_hidden_state_while_training(width: int) -> None:
    head, seen = make_head(head_width=width, dropout=0.5), []
    head.inner.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    hidden = torch.ones(50, 8)
    head.train()(hidden)
    head.eval()(hidden)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(seen[1], hidden)


@pytest.mark.parametrize(
    "wrap", [lambda member: Ensemble(member, size=2), Centered, lambda m: Centered(Ensemble(m, 2))]
)
def test_tokens_pass_through_wrappers(wrap) -> None:  # type: ignore[no-untyped-def]
    member = GeneralizableReward(head_width=4, dropout=0.0, weight=0.5)
    method = wrap(member)
    assert method.uses_language_model
    torch.manual_seed(0)
    head = method.head(8)
    chosen, rejected = head(torch.randn(2, 8)), head(torch.randn(2, 8))

    def loss(likelihood: Tensor) -> Tensor:
        tokens = TokenOutput(likelihood[:, None], torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool))
        return method.loss(chosen._replace(tokens=tokens), rejected._replace(tokens=tokens), PairInfo())

    # What the regulariser adds between likelihoods of -10 and -20 nats is the same inside any wrapper.
    difference = loss(torch.full((2,), -20.0)) - loss(torch.full((2,), -10.0))
    assert difference.tolist() == pytest.approx([0.5 * (softplus(2.0) - softplus(1.0))] * 2, rel=1e-4)
    metrics = method.metrics(chosen._replace(tokens=CHOSEN.tokens), rejected, PairInfo())
    assert metrics["chosen_log_prob"].item() == pytest.approx((-10 / 3 - 4) / 2)


def test_smoothed_labels_leave_the_regulariser_alone() -> None:
    smooth, plain = (Smoothed(m, smoothing=0.2) for m in (GeneralizableReward(weight=0.5), BradleyTerry()))
    found = smooth.loss(CHOSEN, REJECTED, PairInfo()) - 0.5 * plain.loss(CHOSEN, REJECTED, PairInfo())
    assert found.tolist() == pytest.approx([0.5 * softplus(1.0), 0.5 * softplus(0.4)], rel=1e-5)


def test_only_methods_that_say_so_read_the_language_model() -> None:
    assert GeneralizableReward.uses_language_model
    assert not Ensemble().uses_language_model
    assert not BradleyTerry().uses_language_model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regulariser": "kl"}, "regulariser is 'kl'; it must be 'sft' or 'dpo'"),
        ({"weight": 1.0}, r"weight is 1.0 and beta is 0.1; the first must lie in \[0, 1\)"),
        ({"weight": -0.1}, "weight is -0.1"),
        ({"weight": math.nan}, "weight is nan"),
        ({"beta": 0.0}, "beta is 0.0; .*the second above 0"),
        ({"head_width": -1}, "head_width is -1 and dropout is 0.1; the first must be at least 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_impossible_fields_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneralizableReward(**fields)
