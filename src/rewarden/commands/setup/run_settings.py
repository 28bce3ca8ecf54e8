"""What a run was started with: settings compared by value when it is continued, files by what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rewarden.disk.checksums import sha256


def content(given: str | Path | None) -> Any:
    """A setting that names a file or a folder, by what is in it; None and names of other things stay as they are.

    Of a folder only the files right in it count, which is where models keep theirs.
    """
    if given is None or not Path(given).exists():
        return None if given is None else str(given)
    path = Path(given)
    if path.is_file():
        return {"path": str(given), "sha256": sha256(path)}
    files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    # Under the name that it is loaded by; the training record holds times.
    return {"path": str(given), "sha256": {each.name: sha256(each) for each in files if each.name != "training.json"}}


def refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other settings: what it made would be of neither.

    Args:
        folder: Of the run, for the message.
        before: The settings that it was started with, as JSON gave them back.
        now: The settings of now, by the name of the option.

    Raises:
        ValueError: When a setting has another value; the message names each, old and new.
    """
    now = json.loads(json.dumps(now, default=str))
    changed = [
        f"{_option(name)} was {_shown(before.get(name), now.get(name))} and is {_shown(now.get(name), before.get(name))}"
        for name in dict.fromkeys((*now, *before))
        if _value(before.get(name)) != _value(now.get(name))
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}; continue it with those it was started with, "
            "or start again with --overwrite"
        )


def flat(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a nested setting as settings of their own, so that each can be named: {"method.kl_weight": 0.1, ...}."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        found |= flat(f"{name}.{key}", value) if isinstance(value, Mapping) else {f"{name}.{key}": value}
    return found


def _value(setting: Any) -> Any:
    if isinstance(setting, Mapping) and "sha256" in setting:
        return setting["sha256"]
    return [_value(each) for each in setting] if isinstance(setting, list) else setting


def _option(name: str) -> str:
    return name if " " in name else f"--{name.rpartition('.')[2].replace('_', '-')}"


def _shown(setting: Any, other: Any) -> str:
    if setting in (None, []):
        return "not given"
    if isinstance(setting, list):
        return ", ".join(_shown(each, None) for each in setting)
    if isinstance(setting, Mapping) and "sha256" in setting:
        return f"{setting['path']} ({_short(setting['sha256'], other)})"
    return str(setting)


def _short(digest: Any, other: Any) -> str:
    """The beginning of a digest; of a folder the names of the files that differ."""
    if isinstance(digest, str):
        return f"SHA-256 {digest[:12]}"
    others = other.get("sha256") if isinstance(other, Mapping) else None
    others = others if isinstance(others, Mapping) else {}
    differ = [f"{name} {digest[name][:12]}" for name in _first(n for n in digest if digest[n] != others.get(n))]
    return "SHA-256 " + ", ".join(differ) if differ else f"{len(digest)} files"


def _first(names: Iterable[str]) -> list[str]:
    return list(names)[:3]
