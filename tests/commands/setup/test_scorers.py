from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarden.cli import main
from rewarden.commands.options.endogenous import EndogenousOptions
from rewarden.commands.options.judge import JudgeOptions
from rewarden.commands.options.scoring import ScoringOptions
from rewarden.commands.setup.scorers import check_folders, entrants, labels

from ..conftest import make_pairs, write

ALONE = EndogenousOptions(endogenous="owner/Model")
ADDED = EndogenousOptions(endogenous="owner/Model", endogenous_weight=1, reference="r")


def named(models: list[str], endogenous: EndogenousOptions, judge: JudgeOptions) -> list[tuple[str, str]]:
    found = entrants([Path(model) for model in models], ScoringOptions(), endogenous, judge)
    return [(entrant.name, entrant.source) for entrant in found]


def test_labels(tmp_path: Path) -> None:
    a, b, c = tmp_path / "one" / "model", tmp_path / "two" / "model", tmp_path / "other"
    assert labels([a, c]) == ["model", "other"]
    assert labels([a, b, c]) == ["one/model", "two/model", f"{tmp_path.name}/other"]
    assert labels([Path(f"{a}+{c}"), c]) == ["model+other", "other"]
    with pytest.raises(ValueError, match="stands twice"):
        labels([a, b, a])
    with pytest.raises(ValueError, match="no model"):
        labels([])


def test_who_takes_part() -> None:
    none, judge = EndogenousOptions(), JudgeOptions(judge="owner/Chat", judge_kind="pointwise")
    trained = [("a", "x/a"), ("b", "x/b")]
    assert named(["x/a", "x/b"], none, JudgeOptions()) == trained
    assert named(["x/a", "x/b"], ADDED, JudgeOptions()) == trained
    assert named(["x/a", "x/b"], ALONE, judge) == [
        *trained,
        ("endogenous Model", "owner/Model"),
        ("pointwise Chat", "owner/Chat"),
    ]
    assert named([], none, judge) == [("pointwise Chat", "owner/Chat")]


def test_nobody_and_options_without_their_model_are_refused() -> None:
    with pytest.raises(ValueError, match="got no model"):
        named([], EndogenousOptions(), JudgeOptions())
    with pytest.raises(ValueError, match="belongs to --endogenous"):
        named(["a"], EndogenousOptions(gamma=0.5), JudgeOptions())
    with pytest.raises(ValueError, match="without --judge"):
        named(["a"], EndogenousOptions(), JudgeOptions(judge_kind="pairwise"))


def test_identities_tell_judges_apart(tiny: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.toml"
    template.write_text('user = "{prompt} {completion}?"')

    def identity(judge: JudgeOptions) -> str:
        (entrant,) = entrants([], ScoringOptions(), EndogenousOptions(), judge)
        return entrant.identity()

    kinds = [
        JudgeOptions(judge=str(tiny)),
        JudgeOptions(judge=str(tiny), judge_kind="pointwise"),
        JudgeOptions(judge=str(tiny), template=template),
        JudgeOptions(judge="http://localhost:1/v1", judge_model="a"),
        JudgeOptions(judge="http://localhost:1/v1", judge_model="b"),
    ]
    first = [identity(judge) for judge in kinds]
    assert len(set(first)) == len(kinds)
    template.write_text('user = "{prompt} {completion}!"')
    assert [a == b for a, b in zip(first, map(identity, kinds), strict=True)] == [True, True, False, True, True]


def test_trained_endogenous_and_judge_are_compared(trained: Path, tiny: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.jsonl", make_pairs(6))
    command = (
        f"evaluate --model {trained} --endogenous {tiny} --judge {tiny} --pairs x={pairs} --output {tmp_path / 'o'}"
    )
    assert main(command.split()) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    names = ["model", f"endogenous {tiny.name}", f"verifier {tiny.name}"]
    assert list(results["models"]) == names
    assert all(results["models"][name]["sets"]["x"]["n_pairs"] == 6 for name in names)
    nlls = {results["models"][name]["sets"]["x"]["nll"] for name in names}
    assert len(nlls) == 3


def test_folders_without_a_reward_model_are_refused_before_the_first_is_loaded(
    tiny: Path, trained: Path, tmp_path: Path
) -> None:
    check_folders([trained])
    with pytest.raises(ValueError, match="holds a llama model, not a reward model; train one from it"):
        check_folders([trained, tiny])
    with pytest.raises(ValueError, match=r"is not a trained reward model \(no config.json\)"):
        check_folders([Path(f"{trained}+{tmp_path / 'none'}")])
