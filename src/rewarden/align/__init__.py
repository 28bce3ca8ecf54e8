"""Policy optimisation against a reward: the loop, what the policy is paid, and what watches it.

`rewarden.align(...)` runs it: the folder can be called, and is `rewarden.commands.align.align` then.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallableFolder(ModuleType):
    """This folder as a function too: the command and the folder have the same good name, and users want the command."""

    def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Run the command; see `rewarden.commands.align.align`, which stands two layers up and is found only now."""
        run = importlib.import_module("rewarden.commands.align").align
        found: dict[str, Any] = run(*args, **options)
        return found


sys.modules[__name__].__class__ = CallableFolder
