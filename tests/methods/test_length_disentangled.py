import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rewarden.assets import DATA
from rewarden.core import PairInfo, RewardOutput
from rewarden.data import load_pairs
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.length_disentangled import LengthDisentangled, LengthHeads, LengthPart


def output(quality: list[float], length: list[float], overlap: float = 0.0) -> RewardOutput:
    return RewardOutput(
        torch.tensor(quality), detail=LengthPart(torch.tensor(length), torch.full((len(quality),), overlap))
    )


def lengths(chosen: list[int], rejected: list[int]) -> PairInfo:
    return PairInfo(chosen_length=torch.tensor(chosen), rejected_length=torch.tensor(rejected))


# --- The head ---


def test_the_reward_is_the_quality_head_alone() -> None:
    head = LengthDisentangled().head(4)
    with torch.no_grad():
        head.direction.copy_(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 6.0, 8.0, 0.0]]))
        head.scale.copy_(torch.tensor([0.5, 2.0]))
    found = head(torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 0.0, 0.0]]))
    # sqrt(4) = 2 times scale times the unit vectors (0.6, 0.8, 0, 0) and (0, 0.6, 0.8, 0)
    assert found.reward.tolist() == pytest.approx([1.0 * 2.2, 1.0 * -0.6])
    assert found.detail.reward.tolist() == pytest.approx([4.0 * 3.6, 0.0])
    assert found.detail.overlap.tolist() == pytest.approx([0.48, 0.48])  # 0.8 x 0.6
    assert (found.uncertainty, found.latent, found.members) == (None, None, None)


def test_only_the_directions_of_the_weights_count_and_opposite_ones_overlap_fully() -> None:
    torch.manual_seed(0)
    head, hidden = LengthHeads(6), torch.randn(3, 6)
    before = head(hidden)
    with torch.no_grad():
        head.direction.mul_(torch.tensor([[7.0], [0.01]]))
    after = head(hidden)
    torch.testing.assert_close(after.reward, before.reward)
    torch.testing.assert_close(after.detail, before.detail)
    with torch.no_grad():
        head.direction[1] = -3 * head.direction[0]
    assert head(hidden).detail.overlap.tolist() == pytest.approx([1.0] * 3)


def test_the_scale_is_the_root_mean_square_of_the_effective_weights() -> None:
    torch.manual_seed(0)
    head = LengthHeads(64)
    weights = torch.stack([head(torch.eye(64)).reward, head(torch.eye(64)).detail.reward])
    torch.testing.assert_close(weights.square().mean(-1).sqrt(), head.scale)


@pytest.mark.parametrize("hidden_size", [64, 1024])
def test_training_starts_near_zero_rewards_with_nearly_orthogonal_heads(hidden_size: int) -> None:
    torch.manual_seed(0)
    found = LengthDisentangled().head(hidden_size)(torch.randn(500, hidden_size))
    for rewards in (found.reward, found.detail.reward):
        assert rewards.std().item() == pytest.approx(0.1, rel=0.15)
    assert found.detail.overlap.max() < 5 / math.sqrt(hidden_size)


# --- The loss ---

CHOSEN, REJECTED = output([2.0, 0.0], [1.0, 0.5], overlap=0.25), output([1.0, -1.0], [0.0, 1.5], overlap=0.25)
INFO = lengths([10, 20], [30, 40])


def test_the_loss_by_hand() -> None:
    # Quality 2, 0, 1, -1 against 10, 20, 30, 40: rho = -40 / sqrt(5 x 500) = -0.8.
    # Length rewards 1, 0.5, 0, 1.5: centred 0.25, -0.25, -0.75, 0.75; rho = 5 / sqrt(1.25 x 500) = 0.2.
    # Gaps of the sum: 1 + 1 = 2 and 1 - 1 = 0.
    preference = [math.log(1 + math.exp(-2)), math.log(2)]
    loss = LengthDisentangled().loss(CHOSEN, REJECTED, INFO)
    assert loss.tolist() == pytest.approx([value + (0.8 - 0.2) + 0.25 for value in preference], abs=1e-6)
    weighed = LengthDisentangled(length_weight=0.5, orthogonality_weight=2.0).loss(CHOSEN, REJECTED, INFO)
    assert weighed.tolist() == pytest.approx([value + 0.5 * 0.6 + 2.0 * 0.25 for value in preference], abs=1e-6)


def test_margin_and_agreement_reach_the_preference() -> None:
    info = INFO._replace(margin=torch.tensor([1.0, 1.0]), agreement=torch.tensor([0.8, 0.8]))
    loss = LengthDisentangled(length_weight=0.0, orthogonality_weight=0.0).loss(CHOSEN, REJECTED, info)
    # Gaps of the sum less the margin, 1 and -1: -0.8 log sigmoid(g) - 0.2 log sigmoid(-g)
    assert loss.tolist() == pytest.approx([0.8 * 0.313262 + 0.2 * 1.313262, 0.8 * 1.313262 + 0.2 * 0.313262], abs=1e-6)


def test_the_mean_over_pairs_is_the_papers_loss() -> None:
    torch.manual_seed(0)
    head = LengthHeads(8)
    chosen, rejected = head(torch.randn(16, 8)), head(torch.randn(16, 8))
    info = lengths(torch.randint(5, 300, (16,)).tolist(), torch.randint(5, 300, (16,)).tolist())
    quality = torch.cat([chosen.reward, rejected.reward]).detach().double().numpy()
    length = torch.cat([chosen.detail.reward, rejected.detail.reward]).detach().double().numpy()
    tokens = torch.cat([info.chosen_length, info.rejected_length]).numpy()
    total = chosen.reward + chosen.detail.reward - rejected.reward - rejected.detail.reward
    cosine = functional.cosine_similarity(head.direction[0], head.direction[1], dim=0)
    expected = (
        functional.softplus(-total).mean().item()
        + abs(np.corrcoef(quality, tokens)[0, 1])
        - np.corrcoef(length, tokens)[0, 1]
        + cosine.abs().item()
    )
    assert LengthDisentangled().loss(chosen, rejected, info).mean().item() == pytest.approx(expected, abs=1e-5)


def test_lengths_that_do_not_vary_add_nothing() -> None:
    method = LengthDisentangled(orthogonality_weight=0.0)
    equal = method.loss(CHOSEN, REJECTED, lengths([7, 7], [7, 7]))
    without = LengthDisentangled(length_weight=0.0, orthogonality_weight=0.0).loss(CHOSEN, REJECTED, INFO)
    torch.testing.assert_close(equal, without)


def test_the_correlations_do_not_depend_on_the_unit_of_length_or_reward() -> None:
    method = LengthDisentangled(orthogonality_weight=0.0)
    base = method.loss(CHOSEN, REJECTED, INFO)
    longer = method.loss(CHOSEN, REJECTED, lengths([105, 205], [305, 405]))
    torch.testing.assert_close(longer, base)


def test_the_gradient_decorrelates_quality_and_correlates_length() -> None:
    """A small step down the batch's terms lowers |rho(quality)| and raises rho(length)."""
    torch.manual_seed(0)
    quality, length = torch.randn(2, 12, dtype=torch.float64).requires_grad_().unbind(0)
    tokens = torch.randint(5, 300, (12,))

    def found(quality: Tensor, length: Tensor) -> tuple[RewardOutput, RewardOutput, PairInfo]:
        sides = (
            RewardOutput(quality[at], detail=LengthPart(length[at], torch.zeros(6))) for at in (slice(6), slice(6, 12))
        )
        return *sides, PairInfo(chosen_length=tokens[:6], rejected_length=tokens[6:])

    method = LengthDisentangled()
    weighed, plain = (
        method.loss(*found(quality, length)),
        LengthDisentangled(length_weight=0.0).loss(*found(quality, length)),
    )
    slopes = torch.autograd.grad((weighed - plain).mean(), (quality, length))
    before = method.metrics(*found(quality, length))
    after = method.metrics(*found(quality - 0.01 * slopes[0], length - 0.01 * slopes[1]))
    assert abs(before["rho_quality"]) > 0.05
    assert abs(after["rho_quality"]) < abs(before["rho_quality"])
    assert after["rho_length"] > before["rho_length"]


def spurious(pairs: int) -> tuple[Tensor, Tensor, PairInfo]:
    """Hidden states whose first entry is length and whose second is quality; the longer of two equally good ones is chosen."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, 200, (2, pairs), generator=generator).sort(dim=0, descending=True).values
    good = torch.randn(2, pairs, generator=generator).sort(dim=0, descending=True).values
    noise = torch.randn(2, pairs, 6, generator=generator)
    hidden = torch.cat([(tokens[..., None] - 105) / 55.0, good[..., None], noise], dim=-1)
    return hidden[0], hidden[1], PairInfo(chosen_length=tokens[0], rejected_length=tokens[1])


def trained_correlation(length_weight: float) -> tuple[float, float]:
    """Correlations with length of the two heads, fitted to pairs that both length and quality explain."""
    torch.manual_seed(0)
    method = LengthDisentangled(length_weight=length_weight)
    head = method.head(8)
    chosen, rejected, info = spurious(256)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(150):
        optimiser.zero_grad()
        method.loss(head(chosen), head(rejected), info).mean().backward()
        optimiser.step()
    found = method.metrics(head(chosen), head(rejected), info)
    return found["rho_quality"].item(), found["rho_length"].item()


def test_length_leaves_the_quality_head_and_enters_the_length_head() -> None:
    """An exact construction: length is one coordinate, so a head can drop it altogether."""
    quality, length = trained_correlation(1.0)
    assert abs(quality) < 0.1
    assert length > 0.9
    unpunished, _ = trained_correlation(0.0)
    assert unpunished > 0.3


# --- The numbers of the page on small batches ---


@pytest.mark.parametrize(("pairs", "level"), [(8, 0.21), (64, 0.07)])
def test_how_large_the_correlation_of_unrelated_numbers_is(pairs: int, level: float) -> None:
    size = 2 * pairs
    assert math.sqrt(2 / (math.pi * (size - 1))) == pytest.approx(level, abs=0.005)
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal((2, 2000, size))
    drawn -= drawn.mean(-1, keepdims=True)
    rho = (drawn[0] * drawn[1]).sum(-1) / np.sqrt((drawn[0] ** 2).sum(-1) * (drawn[1] ** 2).sum(-1))
    assert np.abs(rho).mean() == pytest.approx(level, rel=0.06)  # 2,000 draws: one sd is 1.7 %


@pytest.mark.slow
def test_a_batch_keeps_about_half_of_the_spread_of_lengths() -> None:
    from rewarden.hf.model.loading import load_tokenizer
    from rewarden.hf.tokens import Limits
    from rewarden.hf.training.pairs import LengthGroups, PairDataset, training_pairs

    tokenizer = load_tokenizer("rewarden-tiny")
    found = training_pairs(
        tokenizer, load_pairs(DATA / "train.jsonl.gz"), Limits(1024, None, "truncate", False), method=BradleyTerry()
    )
    tokens = torch.tensor([pair.group.completion_lengths for pair in found.pairs]).double()
    order = list(LengthGroups(PairDataset(found.pairs).lengths(), batch_size=8, seed=0))
    within = [tokens[order[at : at + 8]].flatten().var(correction=0) for at in range(0, len(order) - 7, 8)]
    share = (torch.stack(within).mean().sqrt() / tokens.flatten().std(correction=0)).item()
    assert share == pytest.approx(0.54, abs=0.02)


# --- What is logged, what is refused ---


def test_both_correlations_and_the_overlap_are_logged() -> None:
    found = {name: value.item() for name, value in LengthDisentangled().metrics(CHOSEN, REJECTED, INFO).items()}
    assert found == {
        "rho_quality": pytest.approx(-0.8),
        "rho_length": pytest.approx(0.2),
        "overlap": pytest.approx(0.25),
    }


def test_members_of_an_ensemble_know_the_lengths_too() -> None:
    torch.manual_seed(0)
    method = Ensemble(LengthDisentangled(), size=2)
    head = method.head(8)
    found = head(torch.randn(2, 8)), head(torch.randn(2, 8))
    own = [method.member.loss(a, b, INFO) for a, b in zip(found[0].detail, found[1].detail, strict=True)]
    torch.testing.assert_close(method.loss(*found, INFO), torch.stack(own).mean(0))
    assert set(method.metrics(*found, INFO)) == {"spread", "rho_quality", "rho_length", "overlap"}


@pytest.mark.parametrize("missing", ["chosen_length", "rejected_length"])
def test_unknown_lengths_are_refused(missing: str) -> None:
    info = INFO._replace(**{missing: None})
    for call in (LengthDisentangled().loss, LengthDisentangled().metrics):
        with pytest.raises(ValueError, match=r"no chosen_length or no rejected_length.*number of tokens.*fill in both"):
            call(CHOSEN, REJECTED, info)


@pytest.mark.parametrize("fields", [{"length_weight": -1.0}, {"orthogonality_weight": float("nan")}])
def test_negative_weights_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"length_weight is .* orthogonality_weight is .*at least 0.*1 for both"):
        LengthDisentangled(**fields)
