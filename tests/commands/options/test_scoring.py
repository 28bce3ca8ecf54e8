from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewarden import Scorer
from rewarden.commands.options.scoring import ScoringOptions, folders
from rewarden.core import RewardOutput
from rewarden.hf.scoring.ensemble import ScorerEnsemble

OUTPUT = RewardOutput(torch.tensor([2.0]), members=torch.tensor([[2.0, -1.0]]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ScoringOptions(), 2.0),
        (ScoringOptions(shaping="worst"), -1.0),
        (ScoringOptions(shaping="mix", nominal_weight=0.5), 0.5),
        (ScoringOptions(shaping="mix", nominal_weight=0.0), -1.0),
        # Mean 0.5; population variance 2.25, unbiased 4.5.
        (ScoringOptions(shaping="mean"), 0.5),
        (ScoringOptions(shaping="uwo"), 0.5 - 0.5 * 2.25),
        (ScoringOptions(shaping="uwo", penalty=0.1), 0.5 - 0.1 * 2.25),
        (ScoringOptions(shaping="uwo", penalty=0.1, variance="unbiased"), 0.5 - 0.1 * 4.5),
        (ScoringOptions(shaping="lcb"), 0.5 - 1.5),
        (ScoringOptions(shaping="lcb", penalty=2.0, variance="unbiased"), 0.5 - 2 * 4.5**0.5),
    ],
)
def test_shapings(options: ScoringOptions, expected: float, trained: Path) -> None:
    assert options.trained_scorer(trained).shaping(OUTPUT).item() == pytest.approx(expected)


def test_layout_and_raw_reach_the_scorer(trained: Path) -> None:
    plain, changed = (
        ScoringOptions().trained_scorer(trained),
        ScoringOptions(layout="padded", raw=True).trained_scorer(trained),
    )
    assert (plain.model.layout, plain.limits.raw) == ("tree", False)
    assert (changed.model.layout, changed.limits.raw) == ("padded", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ScoringOptions(penalty=0.5), "--penalty belongs to --shaping uwo and lcb, and --shaping is nominal"),
        (ScoringOptions(shaping="worst", variance="unbiased"), "--variance belongs to --shaping uwo and lcb"),
        (ScoringOptions(shaping="mix"), "--nominal-weight belongs to --shaping mix"),
        (ScoringOptions(shaping="uwo", nominal_weight=0.5), "--nominal-weight belongs to --shaping mix"),
        (ScoringOptions(standardise=True), "--standardise belongs to an ensemble of models and one, two is none"),
        (ScoringOptions(batch_tokens=0), "--batch-tokens is 0; it must be positive"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: ScoringOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options.check_scoring([Path("one"), Path("two")])


def test_options_that_do_something_for_one_of_the_models_pass() -> None:
    ScoringOptions(standardise=True).check_scoring([Path("one"), Path("one+two")])
    ScoringOptions(shaping="uwo", penalty=0.1, variance="unbiased").check_scoring([Path("one")])


def test_folders_joined_by_plus_are_an_ensemble(trained: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.symlink_to(trained)
    options = ScoringOptions(shaping="worst", layout="padded", raw=True, batch_tokens=99, standardise=True)
    made = options.trained_scorer(Path(f"{trained}+{twin}"))
    assert isinstance(made, ScorerEnsemble)
    assert made.standardise
    assert made.shaping(OUTPUT).item() == -1.0
    for scorer in made.scorers:
        assert (scorer.model.layout, scorer.limits.raw, scorer.batch_tokens) == ("padded", True, 99)
        assert scorer.shaping(OUTPUT).item() == 2.0  # a member's own reward
    assert isinstance(ScoringOptions().trained_scorer(trained), Scorer)


def test_folders(tmp_path: Path) -> None:
    odd = tmp_path / "a+b"
    odd.mkdir()
    assert folders(odd) == [odd]  # an existing folder is a folder, whatever its name
    assert folders(Path("one")) == [Path("one")]
    assert folders(Path("runs/one+runs/two+/three/")) == [Path("runs/one"), Path("runs/two"), Path("/three")]
    for entry in ("+one", "one+", "one++two", "one+/+two"):
        with pytest.raises(ValueError, match="expected folders joined by"):
            folders(Path(entry))
    with pytest.raises(ValueError, match="one stands twice in the ensemble"):
        folders(Path("one+two+one/"))
