"""`rewarden align`: train a policy against a reward, and watch whether the reward still means anything."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewarden.commands.options.align import Align
from rewarden.commands.options.parse import as_options


def align(
    args: Align | None = None,
    *,
    reward: str | Callable[..., Any] | None = None,
    gold: str | Callable[..., Any] | None = None,
    prompts: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Train the policy; returns the summary that is also OUTPUT/summary.json, in all processes but the first an empty one.

    The fields of `Align` as keyword arguments, or an object, of which they change fields. Python users may pass a function as
    `reward` and `gold`, and rows as `prompts`, in place of what the options name.

    Raises:
        TypeError: When a keyword is no option, or one that is needed is missing.
        ValueError: On bad data, an unknown model, options that do not fit together, or a reward that fails.
    """
    from rewarden.commands.setup import align_folder, align_run
    from rewarden.hf import distributed

    started = time.monotonic()
    args = _options(args, options, reward=reward, gold=gold, prompts=prompts)
    functions = {name: given for name, given in (("reward", reward), ("gold", gold)) if callable(given)}
    rows = None if isinstance(prompts, str | Path) else prompts
    distributed.start()
    with align_folder.opened(args):
        run, finish = align_run.build(args, reward=functions.get("reward"), gold=functions.get("gold"), prompts=rows)
        first = run.progress.step
        run(on_report=finish.draft)
        summary = finish(seconds=time.monotonic() - started, resumed_from=first)
    run.accelerator.end_training()
    return summary


def _options(args: Align | None, changes: dict[str, Any], **named: Any) -> Align:
    """The options of a call from Python, in which `reward`, `gold` and `prompts` may name something, or be it."""
    changes |= {name: str(given) for name, given in named.items() if isinstance(given, str | Path)}
    if args is None:  # what is given itself needs a name there too
        changes = {name: "given" for name in ("reward", "prompts") if named[name] is not None} | changes
    return as_options(Align, args, changes)


def main(args: Align) -> None:
    """Train, then say where the policy is and whether it is to be trusted."""
    import logging

    from rewarden.commands.setup.align_outputs import in_words
    from rewarden.hf import distributed

    distributed.start()
    if not distributed.is_first():
        logging.getLogger("rewarden").setLevel(logging.ERROR)
    summary = align(args)
    if not summary:  # the first process has it; which one this is, is no longer known after the end
        return
    if args.json:
        print(json.dumps(summary))
        return
    print(in_words(summary))
