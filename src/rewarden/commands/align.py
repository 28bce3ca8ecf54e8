"""`rewarden align`: train a policy against a reward, and watch whether the reward still means anything."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from rewarden.commands.options.align import Align


def align(
    args: Align,
    *,
    reward: Callable[..., Any] | None = None,
    gold: Callable[..., Any] | None = None,
    prompts: Any = None,
) -> dict[str, Any]:
    """Train the policy; returns the summary that is also OUTPUT/summary.json, in all processes but the first an empty one.

    Python users may pass a function as `reward` and `gold`, and rows as `prompts`, in place of what the options name.

    Raises:
        ValueError: On bad data, an unknown model, options that do not fit together, or a reward that fails.
    """
    from rewarden.commands.build import align_folder, align_run
    from rewarden.hf import distributed

    started = time.monotonic()
    distributed.start()
    with align_folder.opened(args):
        run, finish = align_run.build(args, reward=reward, gold=gold, prompts=prompts)
        first = run.progress.step
        run(on_report=finish.draft)
        summary = finish(seconds=time.monotonic() - started, resumed_from=first)
    run.accelerator.end_training()
    return summary


def main(args: Align) -> None:
    """Train, then say where the policy is and whether it is to be trusted."""
    import logging

    from rewarden.commands.build.align_outputs import in_words
    from rewarden.hf import distributed

    with distributed.joined():
        if not distributed.is_first():
            logging.getLogger("rewarden").setLevel(logging.ERROR)
        summary = align(args)
    if not summary:  # the first process has it; which one this is, is no longer known after the end
        return
    if args.json:
        print(json.dumps(summary))
        return
    print(in_words(summary))
