"""What the monitors cost per step, how often they alarm when the policy has not moved, and how soon when a part of it has.

Latents are simulated: normal or heavy-tailed around a point of their prompt's own, in 32 dimensions of falling variance. The
last line is JSON. `python runs/monitor_alarms.py` takes about three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rewarden.monitors.cluster_separation import ClusterSeparation
from rewarden.monitors.mahalanobis import MahalanobisOutliers
from rewarden.monitors.monitor import Monitor, Rollout

PROMPTS, EACH, WIDTH = 8, 8, 32
SPECTRUM = torch.logspace(0, -2, WIDTH)


def rollout(latent: Tensor, each: int, step: int) -> Rollout:
    """A batch of which only latents and prompts matter."""
    zeros = torch.zeros(len(latent))
    return Rollout(step, zeros, zeros, zeros, latent=latent, prompt=torch.arange(len(latent)) // each)


def latents(prompts: int, each: int, seed: int, *, heavy: bool) -> Tensor:
    """Half of the variance is the prompt's; heavy tails are Student's t with 4 degrees of freedom, one scale per prompt."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(prompts, 1, WIDTH, generator=generator)
    found = (centre + torch.randn(prompts, each, WIDTH, generator=generator)) / 2**0.5
    if heavy:
        found = found / (torch.randn(prompts, 1, 4, generator=generator).square().mean(-1, keepdim=True)).sqrt()
    return (found * SPECTRUM).reshape(-1, WIDTH)


def first_alarm(
    monitor: Monitor,
    run: int,
    steps: int,
    *,
    reference: tuple[int, int] = (1024, 1),
    heavy: bool = False,
    moved: Callable[[Tensor], Tensor] = lambda latent: latent,
) -> int | None:
    """The first step with an alarm; None without one. The reference is so many prompts with so many completions each."""
    seed = 10_000 * (run + 1)
    state = monitor.start(rollout(latents(*reference, seed, heavy=heavy), reference[1], 0))
    for step in range(1, steps + 1):
        found = latents(PROMPTS, EACH, seed + step, heavy=heavy)
        state = monitor.update(state, rollout(moved(found) if step > 20 else found, EACH, step))
        if monitor.report(state).alarm:
            return step
    return None


def share_that_left(share: float) -> Callable[[Tensor], Tensor]:
    """Moves a random share of the completions by 1.5 standard deviations in every dimension."""
    generator = torch.Generator().manual_seed(0)
    return lambda latent: latent + 1.5 * SPECTRUM * (torch.rand(len(latent), 1, generator=generator) < share)


def milliseconds(monitor: Monitor, *, width: int, references: int, rows: int = 64) -> float:
    """Median time of one update and report."""
    torch.manual_seed(0)
    state, times = monitor.start(rollout(torch.randn(references, width), 1, 0)), []
    for step in range(50):
        batch = rollout(torch.randn(rows, width), EACH, step)
        start = time.perf_counter()
        state = monitor.update(state, batch)
        monitor.report(state)
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    both = {"csi": ClusterSeparation(), "mop": MahalanobisOutliers()}
    result: dict[str, object] = {"runs": runs, "steps": 200}
    for width, references in ((128, 1024), (512, 4096)):
        for name, monitor in both.items():
            result[f"ms/{name}/{width}x{references}"] = milliseconds(monitor, width=width, references=references)
    for heavy in (False, True):
        for reference in ((1024, 1), (128, 8), (512, 8)):
            for name, monitor in both.items():
                alarms = [first_alarm(monitor, run, 200, reference=reference, heavy=heavy) for run in range(runs)]
                key = f"false_alarms/{name}/{'heavy' if heavy else 'normal'}/{reference[0]}x{reference[1]}"
                result[key] = sum(alarm is not None for alarm in alarms)
                print(key, result[key], flush=True)
    for share in (0.05, 0.1, 0.2):
        moved = share_that_left(share)
        for name, monitor in both.items():
            found = [first_alarm(monitor, run, 60, moved=moved) for run in range(runs)]
            delays = [alarm - 20 for alarm in found if alarm is not None and alarm > 20]
            result[f"steps_to_alarm/{name}/{share}"] = statistics.median(delays) if delays else None
            result[f"missed/{name}/{share}"] = runs - len(delays)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
