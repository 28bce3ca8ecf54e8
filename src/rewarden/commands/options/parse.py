"""Words of a command line to an option class, with everything that is wrong about them in one message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rewarden.commands.options.flags import Flag, flags_of

Options = TypeVar("Options")

HELP = {"-h": False, "--help": False, "--help-all": True}
"""What asks for help, and whether for all of it."""


class HelpAsked(Exception):
    """The words ask for help: about a command or, where one stands in front, a method."""

    def __init__(self, about: type[Any], command: str, *, is_all: bool) -> None:
        super().__init__(command)
        self.about = about
        self.command = command
        self.is_all = is_all


def parse(options: type[Options], words: Sequence[str], *, command: str) -> Options:
    """The options that the words describe.

    A list takes every word up to the next flag, and grows where its flag stands again; of other flags the last one counts.
    Both --like-this and --like_this are understood, and --flag=value.

    Raises:
        ValueError: In one sentence, everything that is unknown, wrong or missing.
        HelpAsked: When help is asked for.
    """
    reader = _Reader(options, list(words), command)
    value = reader.read()
    if reader.wrong:
        raise ValueError(f"{'; '.join(reader.wrong)} (`{command} --help` explains)")
    return value


def near(typed: str, known: Iterable[str]) -> str:
    """A question after what was probably meant, to be put behind a refusal; empty where nothing is near."""
    found = difflib.get_close_matches(typed, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


@dataclass
class _Reader:
    """Goes through the words from the left."""

    options: type[Any]
    words: list[str]
    command: str
    outer: Sequence[Flag] = ()
    """Of a method: the command's flags, which belong in front of it."""
    wrong: list[str] = field(default_factory=list)
    misplaced: set[str] = field(default_factory=set)
    """Flags of the command that stand behind the method; they are wrong, not missing."""
    values: dict[str, Any] = field(default_factory=dict)

    def read(self) -> Any:
        flags = flags_of(self.options)
        self.named = {flag.name: flag for flag in flags if not (flag.place or flag.classes)}
        self.places = [flag for flag in flags if flag.place]
        self.last = next((flag for flag in flags if flag.classes), None)
        while self.words:
            word = self.words.pop(0)
            if word in HELP:
                raise HelpAsked(self.options, self.command, is_all=HELP[word])
            if self._is_method(word):
                self._method(word)
            elif word.startswith("--") and word != "--":
                self._named(word)
            else:
                self._placed(word)
        self._missing(flags)
        return None if self.wrong else self.options(**self.values)

    def _is_method(self, word: str) -> bool:
        return self.last is not None and word in self.last.classes

    def _is_value(self, word: str, flag: Flag) -> bool:
        return not (word.startswith("--") or word in HELP or (flag.is_list and self._is_method(word)))

    def _named(self, word: str) -> None:
        typed, equals, given = word.partition("=")
        name = typed.replace("_", "-")
        flag = self.named.get(name)
        if flag is None:
            self._unknown(name)
            while self.words and not self.words[0].startswith("-") and not self._is_method(self.words[0]):
                self.words.pop(0)
            return
        if flag.is_switch:
            if equals:
                self.wrong.append(f"{name} takes no value, and got {given!r}")
            self.values[flag.field] = True
            return
        values = [given] if equals else []
        while self.words and (flag.is_list or not values) and not equals and self._is_value(self.words[0], flag):
            values.append(self.words.pop(0))
        if not values:
            self.wrong.append(f"{name} needs a value, {flag.metavar}")
            self.values.setdefault(flag.field, flag.default)
            return
        self._keep(flag, values)

    def _unknown(self, name: str) -> None:
        behind = {flag.name for flag in self.outer if not flag.classes}
        if name in behind:
            self.misplaced.add(name)
            method = self.command.rpartition(" ")[2]
            rule = "the method comes last, with only its own options behind it"
            self.wrong.append(f"{name} stands behind {method} and belongs in front of it: {rule}")
            return
        self.wrong.append(f"there is no option {name}{near(name, [*self.named, *behind])}")

    def _placed(self, word: str) -> None:
        flag = next((each for each in self.places if each.is_list or each.field not in self.values), None)
        if flag is not None:
            values = [word]
            while flag.is_list and self.words and self._is_value(self.words[0], flag):
                values.append(self.words.pop(0))
            self._keep(flag, values)
        elif self.last is not None and self.last.field not in self.values:
            known = self.last.classes
            hint = near(word, known) or f"; there are {', '.join(known)}"
            self.wrong.append(f"there is no {self.last.field} {word!r}{hint}")
            self.values[self.last.field] = None  # so that it is not called missing too
        else:
            self.wrong.append(f"{word!r} stands behind no option")

    def _method(self, word: str) -> None:
        assert self.last is not None
        inner = _Reader(
            self.last.classes[word],
            self.words,
            f"{self.command} {word}",
            flags_of(self.options),
            self.wrong,
            self.misplaced,
        )
        self.values[self.last.field] = inner.read()
        self.words = []

    def _keep(self, flag: Flag, typed: Sequence[str]) -> None:
        values = [value for value in (self._value(flag, text) for text in typed) if value is not _WRONG]
        if flag.is_list:
            self.values[flag.field] = (*self.values.get(flag.field, ()), *values)
        else:
            self.values[flag.field] = values[-1] if values else flag.default

    def _value(self, flag: Flag, text: str) -> Any:
        """One value, or that there is none."""
        if flag.choices:
            found = {str(choice): choice for choice in flag.choices}
            if text in found:
                return found[text]
            expected = f"one of {', '.join(found)}{near(text, found)}"
        elif flag.kind is bool:
            if text.lower() in _TRUTH:
                return _TRUTH[text.lower()]
            expected = "True or False"
        else:
            try:
                return flag.kind(text)
            except ValueError:
                expected = "a whole number" if flag.kind is int else "a number"
        self.wrong.append(f"got {flag.name} {text}, expected {expected}")
        return _WRONG

    def _missing(self, flags: Sequence[Flag]) -> None:
        needed = [flag for flag in flags if flag.is_needed or flag.is_expected]
        absent = [flag for flag in needed if flag.field not in self.values and flag.name not in self.misplaced]
        if not absent:
            return
        names = [
            f"a {flag.field} ({', '.join(flag.classes)}) at the end"
            if flag.classes
            else f"{flag.name} {flag.metavar}".strip()
            if not flag.place
            else flag.metavar
            for flag in absent
        ]
        self.wrong.append(f"missing: {', '.join(names)}")


_WRONG = object()
_TRUTH = {"true": True, "false": False, "none": None}


def as_options(options: type[Options], given: Options | None, changes: dict[str, Any]) -> Options:
    """The options of a call from Python: an object, keyword arguments, or an object with changes.

    Raises:
        TypeError: When a keyword is no option, or one that is needed is missing.
    """
    import dataclasses

    fields = {flag.field: flag for flag in flags_of(options)}
    for name in changes:
        if name not in fields:
            raise TypeError(f"{options.__name__} has no option {name!r}{near(name, fields)}")
    changes = {name: _python_value(fields[name], value) for name, value in changes.items()}
    if given is not None:
        return dataclasses.replace(given, **changes)  # type: ignore[type-var]
    absent = [name for name, flag in fields.items() if flag.is_needed and name not in changes]
    if absent:
        raise TypeError(f"{options.__name__} needs {', '.join(absent)}; give them as keyword arguments")
    return options(**changes)


def _python_value(flag: Flag, value: Any) -> Any:
    """What Python users would write, as the option holds it: text as a path, one value or a list as a tuple."""
    if flag.is_list:
        several = [value] if isinstance(value, str | Path) or not isinstance(value, Iterable) else value
        return tuple(_path_or_text(flag, each) for each in several)
    return _path_or_text(flag, value)


def _path_or_text(flag: Flag, value: Any) -> Any:
    return flag.kind(value) if flag.kind in (Path, str) and isinstance(value, str | Path) else value
