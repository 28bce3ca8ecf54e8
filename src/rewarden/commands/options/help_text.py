"""What `--help` prints: the basic options on one screen, and all of them with `--help-all`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rewarden.commands.options.flags import Flag, flags_of, paragraphs

_COLUMN = 26  # where texts begin
_WIDEST = 100


def help_text(options: type[Any], command: str, *, is_all: bool, width: int | None = None) -> str:
    """The help of an option class.

    A class that has `basic`, a tuple of names of its fields, shows these alone, each with its first sentence; the others are
    shown with `is_all`, by the classes that they come from, under the first line of each one's docstring.

    Args:
        options: The options of a command, or the fields of a method.
        command: What is typed in front of them.
        is_all: Whether everything is shown.
        width: Columns; by default those of the terminal, at most 100.
    """
    width = min(_WIDEST, shutil.get_terminal_size().columns) if width is None else width
    flags = [flag for flag in flags_of(options) if not flag.classes]
    basic: tuple[str, ...] = getattr(options, "basic", ())
    is_short = bool(basic) and not is_all
    lines = [_usage(flags_of(options), command), ""]
    for text in paragraphs(options):
        lines += [*_paragraph(text, command, width), ""]
    if is_short:
        shown = sorted((flag for flag in flags if flag.field in basic), key=lambda flag: basic.index(flag.field))
        lines += ["options:", *_rows(shown, width, is_short=True), ""]
    else:
        for group, members in _groups(options, flags):
            lines += [f"{group}:", *_rows(members, width, is_short=False), ""]
    method = next((flag for flag in flags_of(options) if flag.classes), None)
    if method is not None:
        lines += [f"{method.field}s, the last word, with options of their own:", *_classes(method, width), ""]
    lines += _ending(command, method, hidden=len(flags) - len(basic) if is_short else 0)
    return "\n".join(lines).rstrip() + "\n"


def _usage(flags: Sequence[Flag], command: str) -> str:
    named = [flag for flag in flags if not (flag.place or flag.classes)]
    needed = [f"{flag.name} {flag.metavar}" for flag in named if flag.is_needed or flag.is_expected]
    places = [flag.metavar for flag in flags if flag.place]
    rest = ["[options]", *(f"{flag.field.upper()} [its options]" for flag in flags if flag.classes)]
    return " ".join(["usage:", command, *places, *needed, *rest])


def _paragraph(text: str, command: str, width: int) -> Iterator[str]:
    """A paragraph wrapped; a line that is a command stays as it is."""
    plain: list[str] = []
    for line in [*text.splitlines(), ""]:
        is_example = line.startswith(command.split()[0] + " ")
        if not line or is_example:
            yield from textwrap.wrap(" ".join(plain), width)
            plain = []
        if is_example:
            yield f"  {line}"
        elif line:
            plain.append(line)


def _groups(options: type[Any], flags: Sequence[Flag]) -> Iterator[tuple[str, list[Flag]]]:
    """The options by the class that they come from, a command's own first."""
    groups = sorted({flag.group: None for flag in flags}, key=lambda group: group is not options)
    for group in groups:
        title = "options" if group is options else re.split("[.:;]", paragraphs(group)[0])[0]
        yield title[0].lower() + title[1:], [flag for flag in flags if flag.group is group]


def _rows(flags: Sequence[Flag], width: int, *, is_short: bool) -> Iterator[str]:
    for flag in flags:
        text = _first_sentence(flag.text) if is_short else flag.text
        yield from _row(_head(flag), f"{text}{_default(flag)}", width)


def _head(flag: Flag) -> str:
    return flag.metavar if flag.place else f"{flag.name} {flag.metavar}".rstrip()


def _row(head: str, text: str, width: int) -> Iterator[str]:
    """A name, and its text beside it, or under it where the name is long."""
    texts = textwrap.wrap(text, max(20, width - _COLUMN), break_on_hyphens=False) or [""]
    if len(head) > _COLUMN - 4:
        yield f"  {head}"
    else:
        yield f"  {head:<{_COLUMN - 2}}{texts.pop(0)}".rstrip()
    for each in texts:
        yield " " * _COLUMN + each


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


def _default(flag: Flag) -> str:
    if flag.is_needed or flag.is_expected:
        return " (needed)"
    if flag.is_switch or flag.default in (None, ()) or "efault" in flag.text:
        return ""
    return f" [{flag.default}]"


def _classes(flag: Flag, width: int) -> Iterator[str]:
    for name, options in flag.classes.items():
        yield from _row(name, paragraphs(options)[0].split("\n")[0], width)


def _ending(command: str, method: Flag | None, *, hidden: int) -> list[str]:
    more = [f"{hidden} more: `{command} --help-all`"] if hidden else []
    if method is not None:
        more.append(f"options of a {method.field}: `{command} {method.field.upper()} --help`")
    return [". ".join(more)] if more else []
