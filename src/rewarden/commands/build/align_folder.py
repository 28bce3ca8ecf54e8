"""The folder of a policy run: whose it is, what may be continued in it, and what it records about itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden.files import write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rewarden.align.loop import Run
    from rewarden.align.prompts import Prompt
    from rewarden.commands.options.align import Align

RECORD = "run.json"
FREE = (
    "output", "steps", "resume", "overwrite", "json", "save_every", "report_every", "keep_checkpoints", "report_to", "stop_on",
    "reward_timeout", "max_rows", "batch_tokens",
)  # fmt: skip
"""Options that may differ when a run is continued: they change no completion and no weight, but for rounding by the last one."""
PROMPTS = "content of --prompts"


def settings_of(args: Align, reward: Any, gold: Any) -> dict[str, Any]:
    """What must stay the same when the run is continued, ready for JSON."""
    values = asdict(args)
    for name, function in (("reward", reward), ("gold", gold)):
        if function is not None:
            values[name] = f"function {getattr(function, '__name__', 'given')}"
    free = set(FREE) - ({"steps"} if args.r2m else set())  # R2M's schedule runs over all steps
    return json.loads(json.dumps({name: value for name, value in values.items() if name not in free}, default=str))


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """The first digits of a hash of the prompts with everything that is known of them."""
    rows = [[prompt.text, prompt.prompt_class, dict(prompt.extra)] for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:16]


def look(args: Align, settings: dict[str, Any]) -> None:
    """Refuse to touch a run by accident, or to mix two.

    Raises:
        ValueError: When there is a run and neither --resume nor --overwrite, when it had other settings, or when there are files
            of something else.
    """
    from rewarden.align import checkpoints

    path = args.output / RECORD
    if args.overwrite and args.resume:
        raise ValueError("--resume continues the run in --output and --overwrite deletes it; give one of them")
    if not path.exists():
        # What a kill left of writing the record is no file of anybody's.
        if args.output.exists() and any(each.name != f".{RECORD}.part" for each in args.output.iterdir()):
            raise ValueError(f"{args.output} is not empty and holds no run; give a folder of its own")
        return
    if args.overwrite:
        return
    if not args.resume:
        raise ValueError(f"{args.output} holds a run; continue it with --resume or replace it with --overwrite")
    before = json.loads(path.read_text(encoding="utf-8"))["settings"]
    changed = [
        f"{_option(name)} was {_given(before.get(name))} and is {_given(value)}"
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{args.output} holds a run with other settings: {'; '.join(changed)}; continue it with those it was started with, "
            "or start again with --overwrite"
        )
    done = max(checkpoints.steps_saved(args.output), default=0)
    if args.steps < done:
        raise ValueError(
            f"--steps is {args.steps}, and {args.output} holds a run of {done} steps; give at least as many to continue it"
        )


def _option(name: str) -> str:
    return name if name == PROMPTS else f"--{name.replace('_', '-')}"


def _given(value: Any) -> str:
    return "not given" if value in (None, []) else str(value)


def claim(args: Align, settings: dict[str, Any], accelerator: Accelerator) -> None:
    """Make the folder this run's; with --overwrite the run in it is deleted now, when everything has been loaded.

    Raises:
        ValueError: As `look`.
    """
    look(args, settings)
    accelerator.wait_for_everyone()  # all look before the first process deletes
    path = args.output / RECORD
    if accelerator.is_main_process:
        if args.overwrite and path.exists():
            # The record last: a folder that has one is known as a run, however little is left of it.
            for each in args.output.iterdir():
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each)
                elif each != path:
                    each.unlink()
            path.unlink()
        if not path.exists():
            write_json(path, {"settings": settings})
    accelerator.wait_for_everyone()


def record(args: Align, settings: dict[str, Any], run: Run) -> None:
    """Write what the run is, for the report and for those who continue it; the first process alone."""
    import shlex

    from rewarden.commands.output.provenance import versions

    if not run.accelerator.is_main_process:
        return
    found = {
        "command": "rewarden " + " ".join(shlex.quote(word) for word in sys.argv[1:]),
        "arguments": json.loads(json.dumps(asdict(args), default=str)),
        "settings": settings,
        "reward": run.make_step.pipeline.source.record,
        "algorithm": asdict(run.make_step.updater.algorithm),
        "layout": run.make_step.policy.layout,
        "precision": str(run.make_step.updater.dtype).removeprefix("torch."),
        "processes": run.accelerator.num_processes,
        "lr": run.make_step.plan.lr,
        "versions": versions(),
    }
    write_json(Path(args.output) / RECORD, found)
