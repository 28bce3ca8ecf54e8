"""The folder of a policy run: whose it is, what may be continued in it, and what it records about itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden.commands.setup.run_settings import content, refuse_changes
from rewarden.disk.atomic import is_disk_full
from rewarden.disk.owned_folder import POLICY_RUN, OwnedFolder
from rewarden.files import write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rewarden.align.loop import Run
    from rewarden.align.prompts import Prompt
    from rewarden.commands.options.align import Align

RECORD = "run.json"
FREE = (
    "output", "steps", "resume", "overwrite", "json", "save_every", "report_every", "keep_checkpoints", "report_to", "stop_on",
    "reward_timeout", "reward_process", "max_rows", "batch_tokens",
)  # fmt: skip
"""Options that may differ when a run is continued: they change no completion and no weight, but for rounding by the last one."""
PROMPTS = "content of --prompts"
READ = ("policy", "reward", "gold", "prompts", "endogenous", "detector")
"""Options that name what is read."""


def settings_of(args: Align, reward: Any, gold: Any) -> dict[str, Any]:
    """What must stay the same when the run is continued, ready for JSON; what is read from files, by what is in them."""
    values = asdict(args) | {name: _content(getattr(args, name)) for name in READ}
    for name, function in (("reward", reward), ("gold", gold)):
        if function is not None:
            values[name] = f"function {getattr(function, '__name__', 'given')}"
    free = set(FREE) - ({"steps"} if args.r2m else set())  # R2M's schedule runs over all steps
    return json.loads(json.dumps({name: value for name, value in values.items() if name not in free}, default=str))


def _paths(spec: str | None) -> list[str]:
    """What an option may name: a file or folder, several folders joined by +, or FILE.py:FUNCTION."""
    if spec is None or Path(spec).exists():
        return [] if spec is None else [spec]
    return [part if Path(part).exists() else part.rpartition(":")[0] or part for part in spec.split("+")]


def _content(spec: str | None) -> Any:
    if spec is None or Path(spec).exists():
        return content(spec)
    if Path(file := spec.rpartition(":")[0]).is_file():  # by its place: a function may be mended in between
        return f"{Path(file).resolve()}:{spec.rpartition(':')[2]}"
    return [content(part) for part in spec.split("+")] if "+" in spec else spec


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """The first digits of a hash of the prompts with everything that is known of them."""
    rows = [[prompt.text, prompt.prompt_class, dict(prompt.extra)] for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextlib.contextmanager
def opened(args: Align) -> Iterator[None]:
    """Be the only run in --output for the length of the block; a start that fails before anything was made leaves no trace.

    Raises:
        ValueError: When another process is at work there, when it holds what we did not write, when an input is in it, or when
            the disk is full.
    """
    from rewarden.hf import distributed

    folder = OwnedFolder(args.output, POLICY_RUN)
    folder.check({f"--{name} {path}": path for name in READ for path in _paths(getattr(args, name))})
    with contextlib.ExitStack() as held:
        distributed.on_first(lambda: held.enter_context(folder.locked()))
        try:
            yield
        except BaseException as error:
            if distributed.is_first() and all(path.name == RECORD for path in folder.files()):
                folder.clear()
            if is_disk_full(error):
                raise ValueError(_full(args.output, error)) from error
            raise


def _full(output: Path, error: BaseException) -> str:
    from rewarden.align import checkpoints

    saved = checkpoints.steps_saved(output)
    done = f"its steps up to {saved[-1]:,} are saved" if saved and saved[-1] else "no step of it was saved"
    return (
        f"{output}: the disk is full ({' '.join(str(error).split())[:200]}), so the run has stopped; {done}: free some space and "
        "continue with --resume"
    )


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
    OwnedFolder(args.output, POLICY_RUN).check()
    if args.overwrite or not path.exists():
        return
    if not args.resume:
        raise ValueError(f"{args.output} holds a run; continue it with --resume or replace it with --overwrite")
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read; start again with --overwrite") from error
    # The prompts are read after the first look.
    unread = () if PROMPTS in settings else (PROMPTS,)
    refuse_changes(args.output, {name: value for name, value in before.items() if name not in unread}, settings)
    done = max(checkpoints.steps_saved(args.output), default=0)
    if args.steps < done:
        raise ValueError(
            f"--steps is {args.steps}, and {args.output} holds a run of {done} steps; give at least as many to continue it"
        )


def claim(args: Align, settings: dict[str, Any], accelerator: Accelerator) -> None:
    """Make the folder this run's; with --overwrite the run in it is deleted now, when everything has been loaded.

    Raises:
        ValueError: As `look`.
    """
    look(args, settings)
    accelerator.wait_for_everyone()  # all look before the first process deletes
    if accelerator.is_main_process:
        folder = OwnedFolder(args.output, POLICY_RUN)
        args.output.mkdir(parents=True, exist_ok=True)
        folder.claim()
        if args.overwrite:
            folder.clear()
        if not (args.output / RECORD).exists():
            write_json(args.output / RECORD, {"settings": settings})
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
