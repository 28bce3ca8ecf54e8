import math

import pytest
import torch
from torch import Tensor

from rewarden.monitors.cluster_separation import ClusterSeparation, change_ratio, cluster_separation, reference_eps
from rewarden.monitors.monitor import Report, Rollout, State

CROSS = torch.tensor([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])
POLICY = torch.cat([CROSS, CROSS + 5, torch.tensor([[10.0, 0.0]])])
REFERENCE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(latent: Tensor, step: int = 0) -> Rollout:
    zeros = torch.zeros(len(latent))
    return Rollout(step, zeros, zeros, zeros, latent=latent)


# --- The index ---


def test_by_hand() -> None:
    # Centroids (0, 0), (5, 5) and the noise (10, 0): 5 x 0 + 5 x |(5, 5) - (1, 0)| + 1 x |(10, 0) - (1, 0)| = 5 sqrt(41) + 9.
    found = cluster_separation(POLICY, REFERENCE)
    assert found.csi == pytest.approx(41.015621, abs=1e-5)
    assert found.csi == pytest.approx(5 * math.sqrt(41) + 9, abs=1e-5)
    assert (found.clusters, found.noise) == (2, 1)
    without = cluster_separation(POLICY, REFERENCE, noise_cluster=False)
    assert without.csi == pytest.approx(32.015621, abs=1e-5)
    assert (without.clusters, without.noise) == (2, 1)


def test_the_noise_has_one_centroid_wherever_its_rows_are() -> None:
    far = torch.tensor([[100.0, 0.0], [-100.0, 0.0]])
    assert cluster_separation(far, REFERENCE).csi == 0  # the two lie 100 away, their mean on a reference


def test_nothing_counts_when_all_is_noise_and_noise_does_not() -> None:
    assert cluster_separation(10 * REFERENCE, REFERENCE, noise_cluster=False) == (0.0, 0, 3)


def slow_labels(points: list[list[float]], eps: float, min_samples: int) -> list[int]:
    """DBSCAN as Ester et al. write it: grow a cluster from each core point that has none."""
    near = [[other for other, q in enumerate(points) if math.dist(p, q) <= eps] for p in points]
    labels, name = [-1] * len(points), 0
    for seed in range(len(points)):
        if labels[seed] >= 0 or len(near[seed]) < min_samples:
            continue
        queue = [seed]
        while queue:
            point = queue.pop()
            if labels[point] >= 0:
                continue
            labels[point] = name
            if len(near[point]) >= min_samples:
                queue += near[point]
        name += 1
    return labels


@pytest.mark.parametrize("noise_cluster", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_slow_twin(seed: int, noise_cluster: bool) -> None:
    policy = torch.cat([0.3 * normal(12, 2, seed), 0.3 * normal(12, 2, seed + 10) + 4, 3 * normal(12, 2, seed + 20)])
    reference = normal(20, 2, seed + 30)
    labels, points = slow_labels(policy.tolist(), 0.5, 4), policy.tolist()
    expected = 0.0
    for name in set(labels) - (set() if noise_cluster else {-1}):
        rows = [point for point, label in zip(points, labels, strict=True) if label == name]
        centroid = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        expected += len(rows) * min(math.dist(centroid, other) for other in reference.tolist())
    found = cluster_separation(policy, reference, min_samples=4, noise_cluster=noise_cluster)
    assert found.csi == pytest.approx(expected)
    assert (found.clusters, found.noise) == (max(labels) + 1, labels.count(-1))
    assert found.clusters >= 2 and found.noise  # or the case shows nothing


def test_moving_and_turning_the_space_changes_nothing_and_scaling_it_scales() -> None:
    policy, reference = torch.cat([0.2 * normal(20, 3, 0), 0.2 * normal(20, 3, 1) + 3]), normal(30, 3, 2)
    turn = torch.linalg.qr(normal(3, 3, 3)).Q
    base = cluster_separation(policy, reference)
    assert base.clusters >= 2
    moved = cluster_separation(policy @ turn + 7, reference @ turn + 7)
    assert moved.csi == pytest.approx(base.csi) and moved[1:] == base[1:]
    scaled = cluster_separation(1e-3 * policy, 1e-3 * reference, eps=0.5e-3)
    assert scaled.csi == pytest.approx(1e-3 * base.csi) and scaled[1:] == base[1:]


def test_twice_the_rows_is_twice_the_index() -> None:
    assert cluster_separation(torch.cat([POLICY] * 2), REFERENCE).csi == pytest.approx(2 * (5 * 41**0.5 + 9), abs=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_with_the_papers_radius_128_dimensions_are_all_noise_and_with_the_references_they_are_not(scale: float) -> None:
    policy, reference = scale * normal(64, 128, 0), scale * normal(512, 128, 1)
    found = cluster_separation(policy, reference, eps=0.5)
    assert (found.clusters, found.noise) == (0, 64)
    assert found.csi == pytest.approx(64 * float((policy.mean(0) - reference).norm(dim=-1).min()))
    found = cluster_separation(policy, reference, eps=reference_eps(reference, rows=64))
    assert found.clusters == 1 and found.noise <= 6


def test_with_the_references_radius_a_group_that_left_is_a_cluster() -> None:
    reference = normal(512, 16, 0)
    policy = torch.cat([normal(48, 16, 1), 0.3 * normal(16, 16, 2) + 5])
    found = cluster_separation(policy, reference, eps=reference_eps(reference, rows=64))
    stayed = cluster_separation(policy[:48], reference, eps=reference_eps(reference, rows=64))
    assert (found.clusters, stayed.clusters) == (2, 1)
    assert found.csi - stayed.csi > 16 * 10  # 16 rows, 5 x sqrt(16) = 20 away from the middle


# --- The radius of the reference ---


@pytest.mark.parametrize(
    ("min_samples", "quantile", "eps"),
    [(1, 1.0, None), (2, 1.0, 1.0), (3, 0.5, 1.0), (3, 1.0, 2.0), (10, 1.0, 9.0)],
)
def test_radius_by_hand(min_samples: int, quantile: float, eps: float | None) -> None:
    line = torch.arange(10.0)[:, None]  # three within 1 of each, itself included; of the two ends, within 2
    if eps is None:
        with pytest.raises(ValueError, match=r"distances between reference latents is 0.*has not collapsed"):
            reference_eps(line, min_samples=min_samples, quantile=quantile)
    else:
        assert reference_eps(line, min_samples=min_samples, quantile=quantile) == eps


def test_radius_of_batches_by_hand() -> None:
    line = torch.tensor([0.0, 1.0, 2.0, 10.0, 12.0, 14.0])[:, None]
    # In fours, {0, 1, 2, 10} and, ending at the last, {2, 10, 12, 14}: 10 has nothing nearer than 2, and 2 nothing than 10.
    nearest = {2: 8.0, 3: 2.0, 4: 8.0, 5: 2.0, 6: 2.0, 99: 2.0, None: 2.0}
    for rows, eps in nearest.items():
        assert reference_eps(line, min_samples=2, quantile=1.0, rows=rows) == eps


def test_radius_of_batches_leaves_no_reference_out() -> None:
    line = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 14.0])[:, None]  # in fours: {0, 1, 2, 3} and {2, 3, 4, 14}
    assert reference_eps(line, min_samples=2, quantile=1.0, rows=4) == 10.0


def test_radius_makes_its_quantile_of_a_batch_core_points() -> None:
    reference = normal(256, 8, 0)
    for quantile in (0.5, 0.9):
        eps = reference_eps(reference, min_samples=5, quantile=quantile, rows=64)
        crowds = reference.view(4, 64, 8)
        core = ((crowds[:, :, None] - crowds[:, None]).norm(dim=-1) <= eps).sum(-1) >= 5
        assert float(core.double().mean()) == pytest.approx(quantile, abs=1 / 256)


def test_radius_scales_and_grows_with_its_quantile_and_shrinks_with_more_rows() -> None:
    reference = normal(256, 3, 0)
    base = reference_eps(reference, rows=64)
    assert reference_eps(1e-4 * reference, rows=64) == pytest.approx(1e-4 * base)
    assert reference_eps(reference, rows=64, quantile=0.5) < base < reference_eps(reference, rows=64, min_samples=9)
    assert reference_eps(reference) < base < reference_eps(reference, rows=16)
    assert reference_eps(reference, rows=2) == reference_eps(reference, rows=5)  # a neighbourhood needs min_samples


def test_radius_needs_min_samples_references() -> None:
    with pytest.raises(ValueError, match=r"got 4 reference latents, expected at least min_samples = 5"):
        reference_eps(normal(4, 2, 0))


# --- The ratio rule ---


@pytest.mark.parametrize(
    ("history", "ratio"),
    [
        ([0.0, 1.0, 3.0, 9.0], 4.0),  # 6 / mean(1, 2)
        ([9.0, 8.0, 6.0, 0.0], 4.0),  # falling counts as rising does
        ([0.0, 1.0, 2.0, 12.0], 10.0),
        ([5.0, 6.0, 6.0], 0.0),
        ([5.0, 5.0, 5.0], 0.0),
        ([5.0, 5.0, 5.1], math.inf),
    ],
)
def test_ratio_by_hand(history: list[float], ratio: float) -> None:
    assert change_ratio(torch.tensor(history)) == pytest.approx(ratio)
    assert change_ratio(100 * torch.tensor(history)) == pytest.approx(ratio)  # no unit


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_ratio_needs_a_change_before_the_last(steps: int) -> None:
    assert math.isnan(change_ratio(torch.arange(float(steps))))


# --- The monitor ---


def watched(monitor: ClusterSeparation, heights: list[float], rows: int = 8) -> tuple[State, list[Report]]:
    """Rollouts whose index per completion is exactly the height: copies of one point, that far from the only reference."""
    state, reports = monitor.start(of(torch.zeros(8, 1))), []
    for step, height in enumerate(heights, 1):
        state = monitor.update(state, of(torch.full((rows, 1), height), step))
        reports.append(monitor.report(state))
    return state, reports


QUIET = [1.0, 1.1] * 6


def test_a_jump_raises_the_alarm_and_a_slow_rise_does_not() -> None:
    _, reports = watched(ClusterSeparation(eps=0.5), [*QUIET, 3.0])
    assert [report.alarm for report in reports[:-1]] == [None] * 12
    assert reports[-1].values["change_ratio"] == pytest.approx(1.9 / 0.1, rel=1e-4)
    assert reports[-1].alarm is not None
    assert reports[-1].alarm.startswith(
        "The cluster separation index rose from 1.1 to 3 per completion, 19 times its mean change over the 11 steps before "
        "(limit 10)"
    )
    assert "go back to the checkpoint before it" in reports[-1].alarm
    _, reports = watched(ClusterSeparation(eps=0.5), [1.0 + step for step in range(30)])
    assert all(report.alarm is None for report in reports)


def test_the_alarm_is_that_of_the_last_step_only() -> None:
    _, reports = watched(ClusterSeparation(eps=0.5), [*QUIET, 3.0, 3.0])
    assert reports[-2].alarm and not reports[-1].alarm


def test_a_fall_is_said_to_be_one_and_a_change_after_none_has_no_ratio() -> None:
    _, reports = watched(ClusterSeparation(eps=0.5), [*[3.0] * 12, 1.0])
    alarm, values = reports[-1].alarm, reports[-1].values
    assert alarm and "fell from 3 to 1 per completion, after no change at all over the 11 steps before" in alarm
    assert "change_ratio" not in values and "change_ratio" in reports[-2].values


@pytest.mark.parametrize(("past", "alarm"), [(8, False), (9, False), (10, True), (11, True)])
def test_an_alarm_needs_its_number_of_past_changes(past: int, alarm: bool) -> None:
    heights = [1.0, 1.1] * 6
    _, reports = watched(ClusterSeparation(eps=0.5), [*heights[: past + 1], 9.0])
    assert bool(reports[-1].alarm) == alarm
    assert reports[-1].values["change_ratio"] > 10
    _, reports = watched(ClusterSeparation(eps=0.5, min_changes=1), [*heights[: past + 1], 9.0])
    assert reports[-1].alarm


def test_values() -> None:
    monitor = ClusterSeparation(eps=0.5)
    state = monitor.update(monitor.start(of(torch.cat([REFERENCE, REFERENCE]))), of(POLICY, 1))
    assert monitor.report(state).values == pytest.approx(
        {
            "index": 41.015621,
            "index_per_row": 41.015621 / 11,
            "clusters": 2.0,
            "noise_share": 1 / 11,
            "eps": 0.5,
        },
        abs=1e-5,
    )
    bare = ClusterSeparation(eps=0.5, noise_cluster=False)
    assert bare.report(bare.update(state, of(POLICY, 1))).values["index"] == pytest.approx(32.015621, abs=1e-5)


def test_larger_batches_do_not_count_as_a_change() -> None:
    monitor = ClusterSeparation(eps=0.5)
    state, _ = watched(monitor, QUIET)
    report = monitor.report(monitor.update(state, of(torch.full((80, 1), 1.1))))
    assert report.values["index"] == pytest.approx(88, rel=1e-5) and report.alarm is None
    assert report.values["change_ratio"] == pytest.approx(0.0, abs=1e-6)


def test_the_radius_follows_the_reference_and_the_size_of_the_batch() -> None:
    reference, monitor = normal(300, 4, 0), ClusterSeparation(eps_quantile=0.8, min_samples=4)
    state = monitor.start(of(reference))
    for rows in (64, 64, 30, 3, 64):
        state = monitor.update(state, of(normal(rows, 4, rows)))
        expected = reference_eps(reference, min_samples=4, quantile=0.8, rows=rows)
        assert monitor.report(state).values["eps"] == expected
    assert reference_eps(reference, rows=30, min_samples=4, quantile=0.8) != expected


def test_references_that_coincide_are_refused_at_the_start_unless_the_radius_is_given() -> None:
    same = of(torch.ones(100, 3))
    with pytest.raises(ValueError, match=r"has not collapsed.*or give eps a number"):
        ClusterSeparation().start(same)
    assert ClusterSeparation(eps=0.5).start(same)


@pytest.mark.parametrize("eps", ["reference", 0.5])
def test_a_policy_that_stays_where_it_was_raises_no_alarm(eps: float) -> None:
    monitor = ClusterSeparation(eps=eps)  # type: ignore[arg-type]
    state = monitor.start(of(normal(512, 16, 0)))
    alarms = 0
    for step in range(1, 81):
        state = monitor.update(state, of(normal(64, 16, step), step))
        alarms += monitor.report(state).alarm is not None
    assert alarms == 0
    state = monitor.update(state, of(torch.cat([normal(32, 16, 99), 0.3 * normal(32, 16, 98) + 12])))
    assert monitor.report(state).alarm  # half of the completions jump


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eps", 0.0),
        ("eps", -1.0),
        ("eps", math.nan),
        ("eps", math.inf),
        ("eps_quantile", 0.0),
        ("eps_quantile", 1.1),
        ("min_samples", 0),
        ("min_changes", 0),
        ("max_ratio", 0.0),
        ("max_ratio", math.nan),
    ],
)
def test_thresholds_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field}.*{value}"):
        ClusterSeparation(**{field: value})  # type: ignore[arg-type]
