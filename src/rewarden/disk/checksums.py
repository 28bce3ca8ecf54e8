"""Folders that can be checked: a list of their files with sizes and SHA-256, written last, so that whole means verified."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rewarden.disk.atomic import in_place_of, settle

CHECKSUMS = "checksums.json"


def seal(folder: Path) -> None:
    """Flush every file of a folder to the disk and list them all; a folder without a list was never finished."""
    settle(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    found = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    with in_place_of(folder / CHECKSUMS) as aside:
        aside.write_text(json.dumps({"files": found}, indent=1) + "\n", encoding="utf-8")


def is_sealed(folder: Path) -> bool:
    """Whether a folder was finished; its files are not looked at."""
    return (folder / CHECKSUMS).is_file()


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, the first thing found; None when every file is as it was written.

    Files that were added later are no damage.
    """
    try:
        listed = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        known = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in listed.items()}
    except FileNotFoundError:
        return "it was never finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    for name, (size, digest) in known.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
            if sha256(folder / name) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
