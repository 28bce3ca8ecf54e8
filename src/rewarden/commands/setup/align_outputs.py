"""What a policy run leaves behind: the policy, the one to trust, a report and a summary."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden.disk.atomic import files_into
from rewarden.disk.owned_folder import POLICY_RUN, OwnedFolder
from rewarden.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rewarden.align.loop import Run
    from rewarden.align.policy import Policy


@dataclass(frozen=True)
class Finish:
    """Writes the end of a run."""

    folder: Path
    run: Run
    tokenizer: PreTrainedTokenizerBase

    def draft(self) -> None:
        """The report so far."""
        from rewarden.report.run.report import write_align_report

        if self.run.accelerator.is_main_process:
            self._write_best()
            write_align_report(self.folder)

    def __call__(self, *, seconds: float, resumed_from: int) -> dict[str, Any]:
        """Write the policy of the last step, the best one, the report and summary.json; returns the summary."""
        from rewarden.align import checkpoints
        from rewarden.report.run.report import write_align_report

        run = self.run
        if not run.accelerator.is_main_process:
            run.accelerator.wait_for_everyone()
            return {}
        best = self._write_best()
        kept = copy.deepcopy(run.make_step.policy)
        parts, _ = checkpoints.load(self.folder, best["step"])
        checkpoints.load_weights(kept, parts["policy"])
        self._export(kept, self.folder / "best")
        self._export(copy.deepcopy(run.make_step.policy), self.folder)
        report = write_align_report(self.folder)
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        tenth = max(1, len(lines) // 10)
        summary = {
            "output": str(self.folder),
            "steps": run.progress.step,
            "planned_steps": run.plan.steps,
            "seconds": seconds,
            "resumed_from": resumed_from,
            "tenth": tenth,
            "first_reward": _mean(map(_earned, lines[:tenth])),
            "last_reward": _mean(map(_earned, lines[-tenth:])),
            "last_kl": _mean(line["kl"] for line in lines[-tenth:]),
            "alarm": None if run.make_step.monitors.first is None else run.make_step.monitors.first._asdict(),
            "best": best,
            "report": str(report),
        }
        write_json(self.folder / "summary.json", summary)
        run.accelerator.wait_for_everyone()
        return summary

    def _write_best(self) -> dict[str, Any]:
        """Which checkpoint is to be trusted, and why."""
        alarm, step = self.run.make_step.monitors.first, self.run.store.best_step()
        if self.run.progress.best_gold is not None:
            reason = f"the best held-out gold, {self.run.progress.best_gold[1]:.3f}"
        elif alarm is not None and step + 1 >= alarm.step:
            reason = f"the oldest one: the first alarm, of {alarm.monitor}, came as early as step {alarm.step}"
        elif alarm is not None:
            reason = f"the last checkpoint before the first alarm, of {alarm.monitor} at step {alarm.step}"
        else:
            reason = (
                "the last one: no alarm"
                if self.run.make_step.monitors.monitors
                else "the last one: nothing was watching"
            )
        best = {"step": step, "reason": reason}
        write_json(self.folder / "best.json", best)
        return best

    def _export(self, policy: Policy, folder: Path) -> None:
        """A plain Hugging Face folder, adapters folded in."""
        from peft.tuners.lora import LoraLayer

        from rewarden.hf.model.adapters import merge_lora

        if any(isinstance(layer, LoraLayer) for layer in policy.modules()):
            merge_lora(policy)
        with files_into(folder, last="config.json") as aside:
            policy.language_model.save_pretrained(aside)
            self.tokenizer.save_pretrained(aside)
            names = (folder / path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
            OwnedFolder(self.folder, POLICY_RUN).record(name.relative_to(self.folder).as_posix() for name in names)


def _earned(line: Mapping[str, Any]) -> float:
    """The reward of a step before clipping and whitening, which leaves a mean of 0 whatever happens."""
    return sum(value for key, value in line.items() if key.startswith("reward_"))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def in_words(summary: Mapping[str, Any]) -> str:
    """The summary for people: what was reached, whether there was an alarm, and which policy to take."""
    tenth, resumed, alarm, best = (summary[name] for name in ("tenth", "resumed_from", "alarm", "best"))
    steps = f"{summary['steps']:,} steps" + (f" of {summary['planned_steps']:,}" if _is_short(summary) else "")
    since = f", {resumed:,} of them before" if resumed else ""
    spans = "the first step, the last" if tenth == 1 else f"the first {tenth} steps, the last {tenth}"
    said = "no alarm"
    if alarm is not None:
        said = f"alarm of {alarm['monitor']} at step {alarm['step']}: {alarm['sentence']}"
    folder = Path(summary["output"]) / "best"
    return (
        f"{summary['output']}: {steps} in {summary['seconds']:,.0f} s{since}; reward {summary['first_reward']:.3f} -> "
        f"{summary['last_reward']:.3f} (means of {spans}), KL {summary['last_kl']:.2f} nats\n"
        f"{said}\n"
        f"best: {folder}, the policy after step {best['step']:,} ({best['reason']})\n"
        f"report: {summary['report']}"
    )


def _is_short(summary: Mapping[str, Any]) -> bool:
    return summary["steps"] < summary["planned_steps"]
