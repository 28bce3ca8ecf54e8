from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch):
    """packages(name=True | False): pretends that a package is installed, or that it is not."""

    def pretend(**installed: bool) -> None:
        find = importlib.util.find_spec

        def found(name: str, *more: object) -> object:
            return (object() if installed[name] else None) if name in installed else find(name, *more)

        monkeypatch.setattr(importlib.util, "find_spec", found)

    return pretend
