"""The report of a policy-optimisation run, as one HTML page from the files of its folder, also while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewarden.files import write_text
from rewarden.report import page
from rewarden.report.html import escaped, items
from rewarden.report.run.curves import against_kl, curves, other_curves, r2m_curves
from rewarden.report.run.examples import examples
from rewarden.report.run.folder import RunFolder, read_run
from rewarden.report.run.settings import numbers, r2m, settings, timing
from rewarden.report.run.style import SCRIPT, STYLE
from rewarden.report.run.summary import summary, what_ran
from rewarden.report.run.verdict import caveats, verdict

FILE = "report.html"


def align_report(run: Path) -> str:
    """The page of a run: did the reward rise, what did it cost in KL, did a monitor notice, and what do the texts look like.

    Args:
        run: Folder of the run. Of what may be in it ("metrics.jsonl", "run.json", "best.json", "rollouts/step-*.parquet",
            "reference/responses.parquet") nothing has to be there: the page holds what there is so far, says what is missing,
            and counts what cannot be read. A few files of rollouts are opened, however many there are.

    Returns:
        HTML that needs no network to be read. Every number on it is in the files, or a mean, an extreme or a difference of
        those; the same files give the same page.

    Raises:
        FileNotFoundError: `run` is not a folder.
    """
    found = read_run(run)
    figures: dict[str, Any] = {}
    links, content = page.sections(_parts(found, figures))
    title = f"Policy optimisation: {run.resolve().name}"
    header = f"<h1>{escaped(title)}</h1><p>{escaped(what_ran(found))}</p>{_said(found)}"
    body = f"{links}\n{page.NO_SCRIPT if figures else ''}\n{content}"
    return page.document(title, header, body, figures=figures, style=STYLE, script=SCRIPT)


def write_align_report(run: Path) -> Path:
    """Write the page of a run into its folder; see `align_report`.

    Returns:
        Where it is: "report.html" in the folder. The file appears at once, and an older one stays until then.

    Raises:
        FileNotFoundError: `run` is not a folder.
        OSError: The file cannot be written.
    """
    path = run / FILE
    write_text(path, align_report(run))
    return path


def _said(run: RunFolder) -> str:
    """The verdict, its first sentence large, and what stands against it."""
    said, doubts = verdict(run), items(caveats(run))
    lead = f"<p class=verdict-lead>{escaped(said[0])}</p>{items(said[1:])}" if said else ""
    return lead + (f"<p><b>Before you read on</b></p>{doubts}" if doubts else "")


def _parts(run: RunFolder, figures: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Heading and content of each section that has something to show, by its id."""
    parts = {"summary": ("Summary", summary(run))}
    if run.steps:
        parts["curves"] = ("Curves", curves(run, figures) + numbers(run))
        parts["plane"] = ("Reward against KL", against_kl(run, figures))
        parts["examples"] = ("See the hack", examples(run))
        feedback = r2m(run)
        parts |= {"r2m": ("R2M", r2m_curves(run, figures) + feedback)} if feedback else {}
        others = other_curves(run, figures)
        parts |= {"others": ("Optimiser and time", others + timing(run))} if others else {}
    return parts | {"settings": ("Settings", settings(run))}
