"""Where results come from, and what commands say on the way."""

from __future__ import annotations

import sys
from typing import Any


class Record(dict[str, Any]):
    """What a command returns: a dictionary, shown in a line where its whole content would fill pages."""

    def __repr__(self) -> str:
        """The names in it; `dict(record)` shows everything."""
        return f"Record({', '.join(self)})"


def versions() -> dict[str, str]:
    """Versions that decide whether a run can be repeated; of a package that is used from its sources, what these say."""
    import platform

    packages = ("rewarden", "torch", "transformers", "accelerate", "tokenizers")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    import importlib
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))


def command_line() -> str:
    """What was typed, quoted so that a shell reads it as it was meant."""
    import shlex

    return shlex.join(["rewarden", *sys.argv[1:]])


def say(text: str) -> None:
    """One line on stderr, from the first of several processes."""
    from rewarden.commands.output.terminal import visible
    from rewarden.hf import distributed

    if distributed.is_first():
        print(visible(text), file=sys.stderr, flush=True)
