from __future__ import annotations

import importlib

import pytest

from rewarden.cli import COMMANDS
from rewarden.commands.options.flags import flags_of
from rewarden.commands.options.help_text import help_text
from rewarden.commands.options.train import Train
from rewarden.methods.info_bottleneck import InfoBottleneck

CLASSES = {name: getattr(importlib.import_module(f"rewarden.commands.{name}"), name.capitalize()) for name in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_screen_is_short_and_all_of_it_is_complete(command: str) -> None:
    options = CLASSES[command]
    short = help_text(options, f"rewarden {command}", is_all=False, width=100)
    every = help_text(options, f"rewarden {command}", is_all=True, width=100)
    assert short.startswith(f"usage: rewarden {command} ")
    assert short.count("\n") <= 60
    assert all(len(line) <= 100 for line in every.splitlines() if not line.startswith("  rewarden "))
    for flag in flags_of(options):
        assert flag.classes or f"  {flag.metavar if flag.place else flag.name}" in every
        assert flag.text, f"{options.__name__}.{flag.field} is not explained"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_basic_exists_and_holds_what_is_needed(command: str) -> None:
    options = CLASSES[command]
    basic = getattr(options, "basic", None)
    names = {flag.field for flag in flags_of(options)}
    needed = {flag.field for flag in flags_of(options) if (flag.is_needed or flag.is_expected) and not flag.classes}
    assert basic is None or needed <= set(basic) <= names
    assert basic is not None or len(names) <= 16


def test_options_are_grouped_by_what_they_are_about() -> None:
    text = help_text(Train, "rewarden train", is_all=True, width=100)
    place = [
        text.index(title) for title in ("\nfrom what to where:", "\nwhat to train on:", "\nhow long and how fast:")
    ]
    assert place == sorted(place)
    assert place[2] < text.index("--epochs NUMBER") < text.index("\nmemory, speed, where numbers go:")
    assert "--epochs NUMBER         Passes over the training pairs. [1.0]" in text


def test_the_rest_is_named() -> None:
    text = help_text(Train, "rewarden train", is_all=False, width=100)
    hidden = len(flags_of(Train)) - 1 - len(Train.basic)
    assert text.endswith(
        f"{hidden} more: `rewarden train --help-all`. options of a method: `rewarden train METHOD --help`\n"
    )
    assert "--deepspeed" not in text
    assert "  rewarden train --train pairs.jsonl --output my-model info-bottleneck --kl-weight 0.01\n" in text
    assert "  info-bottleneck         InfoRM: preferences through a variational information bottleneck.\n" in text


def test_a_method_explains_its_fields() -> None:
    text = help_text(InfoBottleneck, "rewarden train info-bottleneck", is_all=False, width=80)
    assert "--kl-weight NUMBER" in text
    assert all(len(line) <= 80 for line in text.splitlines())
