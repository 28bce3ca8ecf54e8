import pytest
import torch
from scipy import stats
from torch import Tensor

from rewarden.monitors.p_values import chi_squared_p_values, conformal_p_values, outlier_fraction


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- P-values ---


@pytest.mark.parametrize(
    ("dimension", "critical"),
    [
        (64, (78.86, 83.68, 93.22)),
        (75, (91.06, 96.22, 106.39)),
        (128, (148.89, 155.41, 168.13)),
        (512, (553.41, 565.75, 589.37)),
    ],
)
def test_critical_values_of_chi_squared(dimension: int, critical: tuple[float, ...]) -> None:
    p_values = chi_squared_p_values(torch.tensor(critical, dtype=torch.float64).sqrt(), dimension)
    assert p_values.tolist() == pytest.approx([0.1, 0.05, 0.01], rel=2e-3)
    expected = [float(stats.chi2.ppf(1 - level, dimension)) for level in (0.1, 0.05, 0.01)]
    assert list(critical) == pytest.approx(expected, abs=6e-3)


def test_chi_squared_against_scipy() -> None:
    distances = torch.linspace(0, 40, 30, dtype=torch.float64)
    for dimension in (1, 7, 128):
        found, expected = chi_squared_p_values(distances, dimension), stats.chi2.sf(distances.numpy() ** 2, dimension)
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-12)


def test_conformal_by_hand() -> None:
    calibration = torch.tensor([3.0, 1.0, 2.0])
    found = conformal_p_values(torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0, 3.5]), calibration)
    assert found.tolist() == [1.0, 1.0, 0.75, 0.75, 0.5, 0.25]


def test_conformal_against_a_slow_twin_with_ties() -> None:
    calibration, distances = (normal(60, 1, 0)[:, 0] * 4).round(), (normal(40, 1, 1)[:, 0] * 4).round()
    expected = [(1 + sum(c >= d for c in calibration.tolist())) / 61 for d in distances.tolist()]
    assert conformal_p_values(distances, calibration).tolist() == pytest.approx(expected)


def test_conformal_p_values_of_exchangeable_rows_are_exactly_uniform() -> None:
    # Whichever of 20 distances is the new one is equally likely; over these 20 cases every p-value occurs once.
    pool = normal(20, 1, 0)[:, 0].abs()
    found = [
        conformal_p_values(pool[new : new + 1], torch.cat([pool[:new], pool[new + 1 :]])).item() for new in range(20)
    ]
    assert sorted(found) == pytest.approx([rank / 20 for rank in range(1, 21)])


def test_with_ties_conformal_p_values_are_at_least_as_large_as_uniform() -> None:
    pool = torch.tensor([0.0, 0, 1, 1, 1, 2, 3, 3, 3, 3])
    found = [
        conformal_p_values(pool[new : new + 1], torch.cat([pool[:new], pool[new + 1 :]])).item() for new in range(10)
    ]
    for level in range(1, 11):
        assert sum(p <= level / 10 + 1e-12 for p in found) <= level


def test_conformal_p_values_read_only_the_order() -> None:
    calibration, distances = normal(50, 1, 0)[:, 0].abs(), normal(30, 1, 1)[:, 0].abs()
    torch.testing.assert_close(
        conformal_p_values(distances.exp(), calibration.exp()), conformal_p_values(distances, calibration)
    )


# --- The share of outliers ---


def share_of(hits: int, rows: int) -> Tensor:
    return torch.tensor([0.001] * hits + [0.5] * (rows - hits), dtype=torch.float64)


def test_share_by_hand() -> None:
    share = outlier_fraction(torch.tensor([0.01, 0.02, 0.005, 1.0]), 0.01)
    assert (share.fraction, share.effective_rows) == (0.5, 4.0)  # alpha itself is an outlier
    assert outlier_fraction(share_of(0, 10), 0.01)[:3] == pytest.approx((0.0, 0.0, 1 - 0.025**0.1))
    assert outlier_fraction(share_of(10, 10), 0.01)[:3] == pytest.approx((1.0, 0.025**0.1, 1.0))
    with pytest.raises(ValueError, match=r"got no p-values"):
        outlier_fraction(torch.zeros(0), 0.01)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("hits", "rows"), [(0, 5), (1, 10), (7, 64), (64, 64), (30, 640)])
def test_the_interval_is_that_of_clopper_and_pearson(hits: int, rows: int, confidence: float) -> None:
    share = outlier_fraction(share_of(hits, rows), 0.01, confidence=confidence)
    expected = stats.binomtest(hits, rows).proportion_ci(confidence, method="exact")
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    alone = outlier_fraction(share_of(hits, rows), 0.01, groups=torch.arange(rows), confidence=confidence)
    assert alone == pytest.approx(share)  # one completion a prompt: nothing shared


def test_the_interval_covers_as_often_as_it_says() -> None:
    for true in (0.01, 0.03, 0.2):
        missed = sum(
            stats.binom.pmf(hits, 30, true)
            for hits in range(31)
            if not outlier_fraction(share_of(hits, 30), 0.01).low
            <= true
            <= outlier_fraction(share_of(hits, 30), 0.01).high
        )
        assert missed <= 0.05


def test_completions_of_one_prompt_count_for_less() -> None:
    # Four prompts with two completions each, both of the first outliers. Hits per prompt (2, 0, 0, 0) deviate from 1/2 by squares
    # 9/4 + 3/4 = 3: variance of the share 4/3 x 3 / 64 = 1/16, of a sample of eight 1/4 x 3/4 / 7. Their ratio is 7/3.
    prompts = torch.tensor([9, 9, 4, 4, 5, 5, 6, 6])
    share = outlier_fraction(share_of(2, 8), 0.01, groups=prompts)
    assert share.effective_rows == pytest.approx(24 / 7)
    apart = outlier_fraction(share_of(2, 8), 0.01)
    assert share.fraction == apart.fraction and share.low < apart.low and share.high > apart.high
    # Spread evenly they count in full, not for more.
    spread = outlier_fraction(share_of(2, 8), 0.01, groups=torch.tensor([1, 2, 1, 1, 1, 2, 2, 2]))
    assert spread.effective_rows == 8


def test_where_all_rows_agree_each_prompt_counts_once() -> None:
    prompts = torch.arange(40) // 8
    for hits in (0, 40):
        assert outlier_fraction(share_of(hits, 40), 0.01, groups=prompts).effective_rows == 5
    assert outlier_fraction(share_of(3, 8), 0.01, groups=torch.zeros(8, dtype=torch.int64)).effective_rows == 1
