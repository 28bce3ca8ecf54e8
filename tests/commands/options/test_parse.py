from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rewarden.commands.merge import Merge
from rewarden.commands.options.parse import HelpAsked, as_options, near, parse
from rewarden.commands.options.train import Train
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck


def train(line: str) -> Train:
    return parse(Train, line.split(), command="rewarden train")


def wrong(line: str, options: type[Any] = Train) -> str:
    command = f"rewarden {options.__name__.lower()}"
    with pytest.raises(ValueError, match=r".") as caught:
        parse(options, line.split(), command=command)
    text = str(caught.value)
    assert text.endswith(f" (`{command} --help` explains)")
    return text.removesuffix(f" (`{command} --help` explains)")


def test_values_become_what_the_fields_are() -> None:
    args = train("--train a b --output out --epochs 1e-1 --max_steps=7 --resume --freeze-backbone false bradley-terry")
    assert args == Train(
        train=("a", "b"), output=Path("out"), epochs=0.1, max_steps=7, resume=True, freeze_backbone=False, method=BradleyTerry()
    )  # fmt: skip
    assert train("--train a --output o --center -1 info-bottleneck --kl-weight 0.5").method == InfoBottleneck(
        kl_weight=0.5
    )
    assert train("--train a --output o --freeze-backbone None bradley-terry").freeze_backbone is None


def test_a_list_ends_at_a_flag_or_the_method_and_grows() -> None:
    assert train("--output o --train a bradley-terry").train == ("a",)
    assert train("--train a --output o --train b c bradley-terry").train == ("a", "b", "c")
    assert train("--train a --seed 1 --output o --seed 2 bradley-terry").seed == 2


def test_places() -> None:
    args = parse(Merge, ["a", "b", "--output", "o", "c"], command="rewarden merge")
    assert args.models == (Path("a"), Path("b"), Path("c"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--trian x --train a --output o bradley-terry", "there is no option --trian; did you mean --train?"),
        ("--train a --output o bradly-terry", "there is no method 'bradly-terry'; did you mean bradley-terry?"),
        ("--train a --output o bradley-terry x", "'x' stands behind no option"),
        ("--train a --output o --layout tre bradley-terry", "expected one of auto, tree, padded; did you mean tree?"),
        ("--train a --output o --seed 1.5 bradley-terry", "got --seed 1.5, expected a whole number"),
        ("--train a --output o --lr fast bradley-terry", "got --lr fast, expected a number"),
        ("--train a --output o --freeze-backbone yes bradley-terry", "expected True or False"),
        ("--train a --output o --resume=yes bradley-terry", "--resume takes no value, and got 'yes'"),
        ("--train a --output o --eval bradley-terry --json", "--json stands behind bradley-terry"),
        ("--output o --train bradley-terry", "--train needs a value, TEXT ..."),
        ("--train a --output --seed 1 bradley-terry", "--output needs a value, PATH"),
        ("--train a --output o info-bottleneck --kl-wieght 1", "there is no option --kl-wieght; did you mean --kl-weight?"),
        ("--train a --output o zzz", "there is no method 'zzz'; there are bradley-terry, info-bottleneck"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(line: str, message: str) -> None:
    line = line.replace("--eval bradley-terry", "bradley-terry")
    assert message in wrong(line)


def test_that_the_method_comes_last_is_said() -> None:
    assert wrong("bradley-terry --train x") == (
        "--train stands behind bradley-terry and belongs in front of it: the method comes last, with only its own options "
        "behind it; missing: --output PATH"
    )


def test_everything_that_is_missing_or_wrong_is_said_at_once() -> None:
    text = wrong("--trian x --seed q")
    assert re.match(
        "there is no option --trian; did you mean --train.; got --seed q, expected a whole number; missing: ", text
    )
    assert "missing: --output PATH, --train TEXT ..., a method (bradley-terry, info-bottleneck, " in text
    assert wrong("", Merge) == "missing: FOLDER FOLDER ..., --output PATH"


@pytest.mark.parametrize(
    ("words", "is_all"), [(["-h"], False), (["--seed", "1", "--help"], False), (["--help-all"], True)]
)
def test_help_is_asked_for(words: list[str], is_all: bool) -> None:
    with pytest.raises(HelpAsked) as asked:
        parse(Train, words, command="rewarden train")
    assert (asked.value.about, asked.value.command, asked.value.is_all) == (Train, "rewarden train", is_all)


def test_help_of_a_method() -> None:
    with pytest.raises(HelpAsked) as asked:
        train("info-bottleneck --help")
    assert (asked.value.about, asked.value.command) == (InfoBottleneck, "rewarden train info-bottleneck")


def test_nothing_near_is_no_question() -> None:
    assert near("zzz", ["tree"]) == ""


def test_calls_from_python() -> None:
    plain = as_options(Train, None, {"output": "out", "train": Path("a"), "report_to": ["x"], "method": BradleyTerry()})
    assert plain == Train(output=Path("out"), train=("a",), report_to=("x",), method=BradleyTerry())
    assert as_options(Train, plain, {}) == plain
    assert as_options(Train, plain, {"seed": 3}).seed == 3
    with pytest.raises(TypeError, match="Train has no option 'sead'; did you mean seed"):
        as_options(Train, plain, {"sead": 3})
    with pytest.raises(TypeError, match="Train needs output, method; give them as keyword arguments"):
        as_options(Train, None, {"train": "a"})
