"""Small policy runs, set up step by step; the helpers of the commands' tests are in `runs`."""

import importlib.util
import sys
from pathlib import Path

from rewarden.commands.setup import align_run

_spec = importlib.util.spec_from_file_location("policy_runs", Path(__file__).parents[1] / "commands" / "policy_runs.py")
runs = sys.modules.get("policy_runs") or importlib.util.module_from_spec(_spec)
if "policy_runs" not in sys.modules:
    sys.modules["policy_runs"] = runs
    _spec.loader.exec_module(runs)


def built(policy, output, *, function=runs.ascii_share, gold=None, **changes):
    """A run that is set up and not started."""
    function = None if "reward" in changes else function
    found, _ = align_run.build(runs.options(policy, output, **changes), reward=function, gold=gold, prompts=runs.ROWS)
    return found


class Killed(BaseException):
    """As from kill -9: nothing gets a chance to tidy up."""


def killed(*_, **__):
    raise Killed
