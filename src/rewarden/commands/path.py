"""`rewarden path`: where an embedded model is on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from rewarden.assets import model_path
from rewarden.commands.options.flags import Positional


@dataclass(frozen=True, kw_only=True)
class Path:
    """Print the folder of a model that comes with the package."""

    name: Annotated[str, Positional("NAME")] = "rewarden-tiny"
    """Name of the embedded model."""
    json: bool = False
    """Print {"name", "path"} as JSON."""


def main(args: Path) -> None:
    """Print the folder."""
    folder = str(model_path(args.name))
    print(json.dumps({"name": args.name, "path": folder}) if args.json else folder)
