"""An option class as flags: their names, types, groups and texts, read off its fields and the strings under them."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Group = TypeVar("Group")

NEEDED: Any = dataclasses.MISSING
"""The default of a flag that has to be given."""


@dataclass(frozen=True)
class Positional:
    """Marks a field that is given by its place, without a flag."""

    metavar: str | None = None


@dataclass(frozen=True)
class Expected:
    """Marks a field that a command line has to name, though Python users may do without it."""


@dataclass(frozen=True)
class OneOf:
    """Marks a field whose value is built by one of several option classes: its name comes last, its own flags behind it."""

    classes: Mapping[str, type[Any]]


@dataclass(frozen=True)
class Flag:
    """One option of a command."""

    field: str
    """Name of the field."""
    text: str
    """What it does."""
    group: type[Any]
    """The class that has the field; options of one class are about one thing."""
    kind: type[Any]
    """What one value is: str, int, float, bool or Path."""
    choices: tuple[Any, ...]
    """The values that there are; empty where any will do."""
    is_list: bool
    is_optional: bool
    """Whether None is a value, and the default."""
    default: Any
    place: Positional | None
    is_expected: bool
    """Whether a command line has to name it in spite of its default."""
    classes: Mapping[str, type[Any]]
    """Of a `OneOf`: the classes by name; else empty."""

    @property
    def name(self) -> str:
        """What is typed: --like-this, or the field's name where it is given by its place."""
        return self.field if self.place or self.classes else f"--{self.field.replace('_', '-')}"

    @property
    def is_needed(self) -> bool:
        """Whether a command cannot do without it."""
        return self.default is NEEDED

    @property
    def is_switch(self) -> bool:
        """Whether it is given without a value."""
        return self.kind is bool and not self.is_optional

    @property
    def metavar(self) -> str:
        """What stands for its value in a line of help."""
        if self.place and self.place.metavar:
            return self.place.metavar
        if self.choices:
            return "{" + ",".join(map(str, self.choices)) + "}"
        if self.is_switch:
            return ""
        one = {bool: "{True,False}", str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}[self.kind]
        return f"{one} ..." if self.is_list else one


def flags_of(options: type[Any]) -> tuple[Flag, ...]:
    """The options of a class, in the order of its fields.

    Raises:
        TypeError: When a field has a type that cannot be typed on a command line.
    """
    hints = get_type_hints(options, include_extras=True)
    return tuple(_flag(options, field, hints[field.name]) for field in dataclasses.fields(options) if field.init)


def _flag(options: type[Any], field: dataclasses.Field[Any], hint: Any) -> Flag:
    marks: Sequence[Any] = ()
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
    place = next((mark for mark in marks if isinstance(mark, Positional)), None)
    classes = next((mark.classes for mark in marks if isinstance(mark, OneOf)), {})
    is_expected = any(isinstance(mark, Expected) for mark in marks)
    is_optional = is_list = False
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
        is_optional = True
    if get_origin(hint) is tuple:
        hint, is_list = get_args(hint)[0], True
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = type(choices[0]) if choices else hint
    if not classes and kind not in (str, int, float, bool, Path):
        raise TypeError(f"{options.__name__}.{field.name}: {hint} is no type of an option")
    group = next(each for each in options.__mro__ if field.name in vars(each).get("__annotations__", {}))
    text = _texts(group).get(field.name, "")
    return Flag(
        field.name, text, group, kind, choices, is_list, is_optional, _default(field), place, is_expected, classes
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def _texts(options: Any) -> dict[str, str]:
    """The strings under the fields of a class, by field."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def paragraphs(options: type[Any]) -> list[str]:
    """The docstring of a class: its first line, then its paragraphs."""
    return inspect.cleandoc(options.__doc__ or "").split("\n\n")


def part(options: Any, group: type[Group]) -> Group:
    """The fields of one of the classes that an option class is composed of, as an object of that class."""
    return group(**{field.name: getattr(options, field.name) for field in dataclasses.fields(group)})  # type: ignore[arg-type]
