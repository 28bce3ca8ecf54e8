from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from rewarden.report.run import curves
from rewarden.report.run.folder import RunFolder, read_run
from rewarden.report.run.style import ALARM, BEST


def run_of(*steps: dict[str, Any], best: dict[str, Any] | None = None) -> RunFolder:
    return RunFolder(Path("run"), list(steps), {}, best or {}, [])


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_running_mean_by_hand() -> None:
    values = [1.0, 2.0, 6.0, 0.0]
    assert curves.running_mean(values, 0) == values
    assert curves.running_mean(values, 1) == pytest.approx([1.0, 3.0, 8 / 3, 0.0])
    assert curves.running_mean([*values, 1.0], 9) == pytest.approx([1.0, 3.0, 2.0, 7 / 3, 1.0])
    assert curves.running_mean([], 3) == []
    line = [3.0 + 2 * place for place in range(40)]
    assert curves.running_mean(line, 5) == pytest.approx(line)
    assert [curves.radius_of(count) for count in (0, 49, 50, 120)] == [0, 0, 1, 2]


def test_long_lines_are_thinned() -> None:
    assert [curves.stride_of(count) for count in (0, 1, 1500, 1501, 3001)] == [1, 1, 1, 2, 3]
    raw, mean = curves.curve(0, "x", range(3001), [float(step % 3 == 0) for step in range(3001)])
    assert raw["x"] == list(range(0, 3001, 3))
    assert set(raw["y"]) == {1.0}
    assert mean is not None
    assert mean["y"][500] == pytest.approx(41 / 121)  # the mean is taken before points are left out
    run = run_of(*({"step": step, "kl": 0.0} for step in range(3001)))
    assert "One step in 3 is drawn." in curves.curves(run, {})


def test_the_plots_of_a_run_in_order(hacked_run: Path) -> None:
    titles = [panel.title for panel in curves.panels(read_run(hacked_run))]
    expected = (
        "Reward|KL|Monitor csi: cluster|Monitor csi: change|Monitor mop: mean|Monitor mop: share|Length|Entropy|Trunc"
    )
    assert [title.startswith(start) for title, start in zip(titles, expected.split("|"), strict=False)] == [True] * 9
    assert titles[9:] == ["Held-out prompts: gold"]


def test_what_never_changed_is_told_and_not_drawn() -> None:
    still = {"reward": 1.0, "kl": 0.0, "truncated": 1.0, "length": 8.0, "lr": 1e-6}
    once, twice = run_of({"step": 1} | still), run_of(*({"step": step} | still for step in (1, 2)))
    drawn: dict[str, Any] = {}
    text = curves.curves(twice, drawn)
    assert len(drawn) == 2  # reward and KL always
    assert "not drawn: Length of a completion (tokens) 8.000; Truncated completions (share) 1.000." in text
    assert curves.other_curves(twice, drawn).endswith("not drawn: Learning rate 1e-06.</p>")
    assert len(drawn) == 2
    curves.curves(once, drawn := {})  # one step says nothing of what changes
    assert len(drawn) == 4
    limited = run_of(*({"step": step, "monitor/m/x": 0.0, "monitor/m/threshold": 1.0} for step in (1, 2)))
    curves.curves(limited, drawn := {})
    assert len(drawn) == 1  # how far a signal stays from its limit says something


def test_held_out_prompts_stand_with_the_same_quantity() -> None:
    run = run_of({"step": 1, "reward": 1.0, "reward_a": 2.0, "held_out/reward": 3.0, "held_out/gold": 4.0})
    first, second = curves.panels(run)
    assert first.lines == {"reward": "paid", "reward_a": "a", "held_out/reward": "held-out prompts"}
    assert second.lines == {"held_out/gold": "gold"}


def test_what_belongs_to_a_signal_of_a_monitor() -> None:
    keys = [
        "share",
        "share_low",
        "share_high",
        "threshold",
        "distance",
        "reference_distance",
        "distance_threshold",
        "rows",
    ]
    share, distance = curves.monitor_panels([f"monitor/m/{key}" for key in keys])
    assert share.threshold == "monitor/m/threshold"
    assert share.band == ("monitor/m/share_low", "monitor/m/share_high")
    assert distance.lines == {"monitor/m/distance": "the policy", "monitor/m/reference_distance": "reference responses"}
    assert distance.threshold == "monitor/m/distance_threshold"
    assert distance.band is None
    # One end of an interval is none, and a limit with nothing to limit is a signal of its own.
    assert len(curves.monitor_panels(["monitor/m/a", "monitor/m/a_low"])) == 2
    assert len(curves.monitor_panels(["monitor/m/threshold"])) == 1


def test_every_number_that_is_drawn_was_logged(hacked_run: Path, figures_of: Callable[..., Any]) -> None:
    run, rows, figures = read_run(hacked_run), metrics_of(hacked_run), {}
    text = curves.curves(run, figures)
    assert [f'id="{name}"' in text for name in figures] == [True] * len(figures) == [True] * 10
    paid, quality, penalty, held_out, *means = figures["plot-curve-0-0"]["data"]
    assert paid["y"] == [row["reward"] for row in rows]
    assert quality["y"] == [row["reward_quality"] for row in rows]
    assert penalty["y"] == [row["reward_length_penalty"] for row in rows]
    assert held_out["x"] == list(range(10, 121, 10))
    assert [mean["legendgroup"] for mean in means] == ["0", "1", "2"]  # 12 held-out values need no mean
    assert means[0]["y"][60] == pytest.approx(sum(row["reward"] for row in rows[58:63]) / 5)
    band, share, _ = figures["plot-curve-5-0"]["data"]
    assert band["y"] == [row["monitor/mop/fraction_high"] for row in rows] + [
        row["monitor/mop/fraction_low"] for row in reversed(rows)
    ]
    assert share["y"] == [row["monitor/mop/fraction"] for row in rows]
    for figure in figures.values():
        assert go.Figure(figure).data


def test_all_plots_are_aligned(hacked_run: Path) -> None:
    figures: dict[str, Any] = {}
    curves.curves(read_run(hacked_run), figures)
    layouts = [figure["layout"] for figure in figures.values()]
    assert {tuple(each["xaxis"]["range"]) for each in layouts} == {(1 - 1.19, 120 + 1.19)}
    assert {(each["margin"]["l"], each["margin"]["r"]) for each in layouts} == {(58, 12)}
    assert not any(each[axis]["automargin"] for each in layouts for axis in ("xaxis", "yaxis"))
    assert [each["xaxis"]["title"]["text"] for each in layouts] == [""] * 9 + ["step"]


def test_lines_at_alarms_and_at_the_best_step(hacked_run: Path) -> None:
    figures: dict[str, Any] = {}
    text = curves.curves(read_run(hacked_run), figures)
    for figure in figures.values():
        tint, alarm, best = figure["layout"]["shapes"]
        assert (tint["x0"], tint["x1"], tint["fillcolor"]) == (60, 120, ALARM)
        assert (alarm["x0"], alarm["x1"], alarm["line"]["color"]) == (60, 60, ALARM)
        assert (best["x0"], best["x1"], best["line"]["color"]) == (55, 55, BEST)
    assert "an alarm begins" in text
    assert "step 55, kept as best" in text
    calm = run_of({"step": 1, "kl": 0.0})
    assert "alarm" not in curves._lines(calm, [])
    assert curves.figure(calm, curves.panels(calm)[0], height=100)["layout"]["shapes"] == []


def test_a_threshold_is_dashed_and_explained() -> None:
    run = run_of(*({"step": s, "monitor/m/x": 1.0 * s, "monitor/m/threshold": 2.5} for s in (1, 2, 3)))
    figures: dict[str, Any] = {}
    assert "<span class=limit>threshold</span>" in curves.curves(run, figures)
    values, limit = figures["plot-curve-0-0"]["data"]
    assert (values["y"], limit["y"], limit["line"]["dash"]) == ([1.0, 2.0, 3.0], [2.5] * 3, "dash")


def test_every_other_number_has_a_small_plot(hacked_run: Path) -> None:
    run, figures = read_run(hacked_run), {}
    text = curves.other_curves(run, figures)
    for title in (
        "Loss",
        "Gradient norm",
        "Clipped",
        "Learning rate",
        "Seconds",
        "monitor/mop/rows",
        "monitor/csi/clusters",
    ):
        assert title in text, title
    assert "r2m" not in text
    assert len(figures) == 6
    assert "The same in every step, so not drawn: monitor/mop/rows 256.0." in text
    more: dict[str, Any] = {}
    assert "omega" in curves.r2m_curves(run, more)
    assert [figure["data"][0]["y"][0] for figure in more.values()] == [
        run.steps[0]["r2m/omega"],
        run.steps[0]["r2m/gre"],
    ]
    assert curves.other_curves(run_of({"step": 1, "kl": 1.0}), {}) == ""


def test_names_of_metrics_cannot_become_markup() -> None:
    evil = "<img src=x onerror=alert(1)>"
    run = run_of(
        {"step": 1, "reward": 1.0, f"reward_{evil}": 1.0, f"monitor/{evil}/{evil}": 1.0, evil: 2.0, f"r2m/{evil}": 1.0}
    )
    figures: dict[str, Any] = {}
    text = curves.curves(run, figures) + curves.other_curves(run, figures) + curves.r2m_curves(run, figures)
    assert "<img" not in text
    assert "<img" not in json.dumps(figures)


def test_reward_against_kl_by_hand() -> None:
    steps = [{"step": 1, "reward": 0.5, "kl": -0.1}, {"step": 2, "reward": 1.0, "kl": 4.0}, {"step": 3, "reward": 2.0}]
    figures: dict[str, Any] = {}
    text = curves.against_kl(run_of(*steps), figures)
    root, plain = (figures[f"plot-plane-{place}"]["data"][0] for place in (0, 1))
    assert (root["x"], root["y"], root["marker"]["color"]) == ([0.0, 2.0], [0.5, 1.0], [1, 2])
    assert plain["x"] == [-0.1, 4.0]
    assert "below 0 at 1 of 2 steps" in text
    for figure in figures.values():
        assert go.Figure(figure).data


def test_one_step_and_nothing_to_draw() -> None:
    figures: dict[str, Any] = {}
    assert "plot-curve-0-0" in curves.curves(run_of({"step": 7, "reward": 1.0, "kl": 0.0}), figures)
    assert figures["plot-curve-0-0"]["layout"]["xaxis"]["range"] == [6.5, 7.5]
    assert figures["plot-curve-0-0"]["data"][0]["mode"] == "lines+markers"
    assert curves.curves(run_of({"step": 1, "loss": 1.0}), {}).startswith("<p>No curve yet")
    assert curves.against_kl(run_of({"step": 1, "reward": 1.0}), {}) == "<p>No step has both a reward and a KL.</p>"
