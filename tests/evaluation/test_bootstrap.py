import math

import pytest
import torch
from torch import Tensor

from rewarden.evaluation import bootstrap
from rewarden.evaluation.bootstrap import (
    Interval,
    cluster_ids,
    independent_of_average,
    mean_interval,
    mean_intervals,
    off_the_edge,
    resample_sums,
    share_interval,
    slope_interval,
    statistic_intervals,
)
from rewarden.evaluation.metrics import length_slope


def clustered(clusters: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Values with mean 0 that share half of their variance within a cluster, and the cluster of each."""
    shared = torch.randn(clusters, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(clusters, rows, generator=generator, dtype=torch.float64)
    return (shared + own).flatten(), torch.arange(clusters).repeat_interleave(rows)


def replicates_by_hand(clusters: Tensor, replicates: int, seed: int) -> list[Tensor]:
    """The row numbers of each replicate, built row by row from how often each cluster was drawn."""
    member = torch.nn.functional.one_hot(clusters).double()
    counts = resample_sums(member, clusters, replicates=replicates, seed=seed) / member.sum(0)
    return [
        torch.cat([(clusters == number).nonzero().flatten() for number, times in enumerate(row) for _ in range(times)])
        for row in counts.round().long().tolist()
    ]


def percentiles(statistics: list[float]) -> list[float]:
    ordered = sorted(statistics)
    positions = [share * (len(ordered) - 1) for share in (0.025, 0.975)]
    return [
        ordered[int(at)] + (at - int(at)) * (ordered[min(int(at) + 1, len(ordered) - 1)] - ordered[int(at)])
        for at in positions
    ]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_cluster_ids_count_in_order_of_appearance() -> None:
    assert cluster_ids(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 0, 2, 1]
    assert cluster_ids([]).shape == (0,)


def test_a_replicate_draws_as_many_clusters_as_there_are() -> None:
    clusters = torch.tensor([0, 0, 0, 1, 2, 2])
    member = torch.nn.functional.one_hot(clusters).double()
    counts = resample_sums(member, clusters, replicates=5000) / torch.tensor([3.0, 1.0, 2.0])
    assert bool((counts == counts.round()).all())
    assert bool((counts.sum(1) == 3).all())
    # Multinomial: each is drawn once on average with variance 2/3, and any two have covariance -1/3.
    expected = torch.full((3, 3), -1 / 3, dtype=torch.float64).fill_diagonal_(2 / 3)
    assert torch.allclose(counts.mean(0), torch.ones(3, dtype=torch.float64), atol=0.05)
    assert torch.allclose(counts.T.cov(), expected, atol=0.05)


def test_sums_match_a_loop_over_rows(generator: torch.Generator) -> None:
    terms = torch.randn(9, 2, generator=generator)
    clusters = torch.tensor([0, 1, 2, 0, 1, 3, 3, 3, 0])
    sums = resample_sums(terms, clusters, replicates=40, seed=3)
    by_hand = torch.stack([terms.double()[rows].sum(0) for rows in replicates_by_hand(clusters, 40, 3)])
    assert sums.dtype == torch.float64
    assert torch.allclose(sums, by_hand)


def test_blocks_keep_every_replicate(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = torch.arange(4).repeat_interleave(2)
    monkeypatch.setattr(bootstrap, "_BLOCK", 12)
    sums = resample_sums(torch.ones(8, 1), clusters, replicates=100)
    assert sums.shape == (100, 1)
    assert bool((sums == 8).all())
    varied = resample_sums(torch.arange(8.0).unsqueeze(1), clusters, replicates=100)
    assert len(varied.unique()) > 5


def test_cluster_numbers_need_not_be_dense(generator: torch.Generator) -> None:
    values, clusters = clustered(6, 3, generator)
    assert mean_interval(values, clusters) == mean_interval(values, clusters * 10 - 7)


def test_seed_decides() -> None:
    values, clusters = torch.arange(30.0), torch.arange(30)
    assert mean_interval(values, clusters, seed=1) == mean_interval(values, clusters, seed=1)
    assert mean_interval(values, clusters, seed=1) != mean_interval(values, clusters, seed=2)


def test_mean_interval_matches_a_loop() -> None:
    values = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    clusters = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    interval = mean_interval(values, clusters, replicates=300, seed=5)
    means = [float(values.double()[rows].mean()) for rows in replicates_by_hand(clusters, 300, 5)]
    assert interval == pytest.approx([4 / 7, *percentiles(means)])


def test_slope_interval_matches_a_loop(generator: torch.Generator) -> None:
    gap, clusters = clustered(8, 3, generator)
    difference = torch.randint(-300, 300, (24,), generator=generator)
    interval = slope_interval(gap, difference, clusters, replicates=200, seed=2)
    slopes = [length_slope(gap[rows], difference[rows]) for rows in replicates_by_hand(clusters, 200, 2)]
    assert interval == pytest.approx([length_slope(gap, difference), *percentiles(slopes)])


def test_slope_interval_far_from_zero_does_not_cancel(generator: torch.Generator) -> None:
    gap, clusters = clustered(8, 3, generator)
    difference = torch.randint(-300, 300, (24,), generator=generator)
    here, far = slope_interval(gap, difference, clusters), slope_interval(gap + 1e6, difference, clusters)
    assert far == pytest.approx(here, rel=1e-6)


def test_slope_interval_leaves_out_replicates_without_a_slope() -> None:
    # A cluster alone has no variance, so the replicates that draw only one have no slope, up to rounding.
    clusters = torch.arange(3).repeat_interleave(3)
    gap, difference = torch.tensor([0.1, 0.7, 0.35])[clusters], torch.tensor([7, 131, 50])[clusters]
    interval = slope_interval(gap, difference, clusters, replicates=200, seed=1)
    slopes = [length_slope(gap[rows], difference[rows]) for rows in replicates_by_hand(clusters, 200, 1)]
    defined = [slope for slope in slopes if not math.isnan(slope)]
    assert len(defined) < 200
    assert interval == pytest.approx([length_slope(gap, difference), *percentiles(defined)])


def test_slope_interval_without_variance_is_undefined() -> None:
    interval = slope_interval(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5, 5, 5]), torch.arange(3))
    assert interval.to_dict() == {"value": None, "low": None, "high": None}


def test_columns_share_their_draws(generator: torch.Generator) -> None:
    values, clusters = clustered(20, 2, generator)
    plain, shifted, zero = mean_intervals(torch.stack([values, values + 1, values - values], dim=1), clusters)
    assert shifted == pytest.approx([number + 1 for number in plain])
    assert zero == (0.0, 0.0, 0.0)
    assert plain == pytest.approx(mean_interval(values, clusters))


def test_repeating_rows_within_their_cluster_adds_no_certainty(generator: torch.Generator) -> None:
    values = torch.randn(40, generator=generator, dtype=torch.float64)
    once = mean_interval(values, torch.arange(40))
    repeated, clusters = values.repeat_interleave(4), torch.arange(40).repeat_interleave(4)
    assert mean_interval(repeated, clusters) == pytest.approx(once)
    naive = mean_interval(repeated, torch.arange(160))
    # Four times the rows taken as independent halve the width.
    assert (once.high - once.low) / (naive.high - naive.low) == pytest.approx(2.0, rel=0.1)


def test_coverage_on_clustered_rows(generator: torch.Generator) -> None:
    clustered_hits, naive_hits, trials = 0, 0, 200
    for seed in range(trials):
        values, clusters = clustered(40, 6, generator)
        interval = mean_interval(values, clusters, replicates=400, seed=seed)
        naive = mean_interval(values, torch.arange(len(values)), replicates=400, seed=seed)
        clustered_hits += interval.low <= 0 <= interval.high
        naive_hits += naive.low <= 0 <= naive.high
    assert 0.90 <= clustered_hits / trials <= 0.98
    assert naive_hits / trials < 0.80


def test_one_cluster_has_a_value_and_no_bounds() -> None:
    interval = mean_interval(torch.tensor([1.0, 0.0]), torch.tensor([4, 4]))
    assert interval.to_dict() == {"value": 0.5, "low": None, "high": None}
    slope = slope_interval(torch.tensor([1.0, 0.0]), torch.tensor([0, 100]), torch.tensor([4, 4]))
    assert slope.to_dict() == pytest.approx({"value": -math.sqrt(2), "low": None, "high": None})


def test_interval_gives_none_for_what_is_not_finite() -> None:
    assert Interval(1.0, -math.inf, math.nan).to_dict() == {"value": 1.0, "low": None, "high": None}


def test_refuses_rows_without_clusters() -> None:
    with pytest.raises(ValueError, match="got 3 rows and 2 cluster numbers"):
        resample_sums(torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one"):
        mean_interval(torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def test_any_statistic_of_sums(generator: torch.Generator) -> None:
    values, clusters = clustered(12, 3, generator)
    terms = torch.stack([values, torch.ones_like(values)], dim=1)
    mean, count = statistic_intervals(
        terms,
        clusters,
        lambda sums: torch.stack([sums[:, 0] / sums[:, 1], sums[:, 1]], dim=1),
        seed=4,
    )
    assert mean == pytest.approx(mean_interval(values, clusters, seed=4))
    assert count == Interval(36.0, 36.0, 36.0)


def test_a_statistic_without_a_value_has_no_interval() -> None:
    terms = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    (found,) = statistic_intervals(terms, torch.tensor([0, 1]), lambda sums: sums[:, :1] / sums[:, 1:] * 0)
    assert all(math.isnan(number) for number in found)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval from its definition: where the distance to the share is 1.96 standard deviations."""
    z, share = 1.959964, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half


@pytest.mark.parametrize("total", [2, 15, 400])
def test_a_share_of_all_or_none_has_wilsons_interval(total: int) -> None:
    rows = torch.arange(total)
    assert share_interval(torch.ones(total), rows) == pytest.approx((1.0, *wilson(total, total)), abs=1e-6)
    assert share_interval(torch.zeros(total), rows) == pytest.approx((0.0, *wilson(0, total)), abs=1e-6)


def test_fifteen_of_fifteen_is_at_least_four_in_five() -> None:
    assert share_interval(torch.ones(15), torch.arange(15)).low == pytest.approx(0.796, abs=5e-4)


def test_pairs_of_one_prompt_count_once_at_the_edge() -> None:
    clusters = torch.arange(5).repeat_interleave(3)
    assert share_interval(torch.ones(15), clusters).low == pytest.approx(wilson(5, 5)[0], abs=1e-6)
    assert math.isnan(share_interval(torch.ones(3), torch.zeros(3)).low)  # a single prompt says nothing about others


def test_between_the_edges_a_share_is_a_mean() -> None:
    hits, rows = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.arange(4)
    assert share_interval(hits, rows) == mean_interval(hits, rows)
    assert off_the_edge(Interval(0.5, 0.5, 0.5), 9) == Interval(0.5, 0.5, 0.5)


def test_an_average_of_shares_is_as_precise_as_its_smallest_part() -> None:
    assert independent_of_average([0.25, 0.75], [10, 30]) == pytest.approx(40)
    assert independent_of_average([0.5, 0.5], [10, 1_000_000]) == pytest.approx(40, abs=0.01)
