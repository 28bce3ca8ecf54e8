from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from rewarden.commands.options.flags import NEEDED, Expected, OneOf, Positional, flags_of, paragraphs, part


@dataclass(frozen=True, kw_only=True)
class Small:
    """What is small.

    And more.
    """

    few: int = 3
    """Few of them,
    on two lines."""
    names: tuple[str, ...] = ()
    silent: bool = False


@dataclass(frozen=True, kw_only=True)
class Whole(Small):
    """Everything."""

    place: Annotated[Path, Positional("FILE")]
    """Where."""
    files: Annotated[tuple[Path, ...], Expected()] = ()
    mode: Literal["slow", "fast"] | None = None
    is_on: bool | None = None
    share: float | None = None
    inner: Annotated[Any, OneOf({"small": Small})]


BY_NAME = {flag.name: flag for flag in flags_of(Whole)}


def test_names_types_and_defaults() -> None:
    assert list(BY_NAME) == [
        "--few",
        "--names",
        "--silent",
        "place",
        "--files",
        "--mode",
        "--is-on",
        "--share",
        "inner",
    ]
    kinds = [flag.kind for flag in BY_NAME.values() if not flag.classes]
    assert kinds == [int, str, bool, Path, Path, str, bool, float]
    assert [flag.name for flag in BY_NAME.values() if flag.is_list] == ["--names", "--files"]
    assert [flag.name for flag in BY_NAME.values() if flag.is_optional] == ["--mode", "--is-on", "--share"]
    assert [flag.name for flag in BY_NAME.values() if flag.is_needed] == ["place", "inner"]
    assert [flag.name for flag in BY_NAME.values() if flag.is_expected] == ["--files"]
    assert BY_NAME["--few"].default == 3
    assert BY_NAME["place"].default is NEEDED


def test_what_stands_for_a_value() -> None:
    shown = {name: flag.metavar for name, flag in BY_NAME.items() if not flag.classes}
    assert shown == {
        "--few": "NUMBER",
        "--names": "TEXT ...",
        "--silent": "",
        "place": "FILE",
        "--files": "PATH ...",
        "--mode": "{slow,fast}",
        "--is-on": "{True,False}",
        "--share": "NUMBER",
    }


def test_an_option_belongs_to_the_class_that_has_it() -> None:
    assert {name for name, flag in BY_NAME.items() if flag.group is Small} == {"--few", "--names", "--silent"}
    assert BY_NAME["--few"].text == "Few of them, on two lines."
    assert BY_NAME["--silent"].text == ""
    assert paragraphs(Small) == ["What is small.", "And more."]


def test_a_part_is_an_object_of_its_class() -> None:
    whole = Whole(place=Path("x"), few=5, inner=None)
    assert part(whole, Small) == Small(few=5)
    assert type(part(whole, Small)) is Small


def test_a_type_that_cannot_be_typed_is_a_fault_of_ours() -> None:
    @dataclass(frozen=True)
    class Wrong:
        table: dict[str, int]

    Wrong.__annotations__["table"] = dict[str, int]
    with pytest.raises(TypeError, match=r"Wrong.table: .* is no type of an option"):
        flags_of(Wrong)
