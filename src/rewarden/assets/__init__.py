"""What the package ships: the embedded model and the sample data. Nothing here imports anything heavy."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = ("rewarden-tiny",)
"""Names that stand for models inside the package."""

DATA = Path(__file__).parent / "data"
"""Sample preference data (train, eval, gold) and benchmarks (llmbar, rm_bench, judge_bench), as .jsonl.gz."""

PLOTLY = Path(__file__).parent / "plotly" / "plotly-basic.min.js"
"""The script that draws the plots of HTML reports: scatter and bar charts only, to keep pages small."""


def model_path(name: str) -> Path:
    """Folder of an embedded model.

    Raises:
        ValueError: When there is none of that name.
    """
    if name not in EMBEDDED:
        raise ValueError(f"no embedded model is called {name!r}; there is {', '.join(EMBEDDED)}")
    return Path(__file__).parent / name


def resolve(name: str) -> str:
    """The folder of an embedded model, or the name itself: a folder or a hub id."""
    return str(model_path(name)) if name in EMBEDDED else name
