"""Where results come from, and what commands say on the way."""

from __future__ import annotations

import sys


def versions() -> dict[str, str]:
    """Versions that decide whether a run can be repeated."""
    import platform
    from importlib.metadata import version

    packages = ("rewarden", "torch", "transformers", "accelerate", "tokenizers")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def say(text: str) -> None:
    """One line on stderr, from the first of several processes."""
    from rewarden.hf import distributed

    if distributed.is_first():
        print(text, file=sys.stderr, flush=True)
