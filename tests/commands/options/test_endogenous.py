from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch

from rewarden.commands.options.endogenous import EndogenousOptions, chosen_scorer, scores_identity
from rewarden.commands.options.scoring import ScoringOptions
from rewarden.commands.output.score_cache import identity
from rewarden.hf.scoring.endogenous import EndogenousScorer
from rewarden.hf.scoring.scorer import Scorer

from ..conftest import write

REFERENCE = [
    {"prompt": "Well?", "completions": ["good", "bad", "good thanks"]},
    {"prompt": "How are you?", "completion": "fine"},
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EndogenousOptions(gamma=0.5), "--gamma belongs to --endogenous MODEL; give both or neither"),
        (EndogenousOptions(endogenous_weight=1, reference="r"), "--endogenous-weight belongs to --endogenous MODEL"),
        (
            EndogenousOptions(endogenous="m", endogenous_weight=0.5),
            "--endogenous-weight and --reference belong together",
        ),
        (EndogenousOptions(endogenous="m", reference="r.jsonl"), "--endogenous-weight and --reference belong together"),
        (
            EndogenousOptions(endogenous="m", aggregation="sum", gamma=0.9),
            "--gamma belongs to --aggregation discounted, and --agg",
        ),
        (EndogenousOptions(endogenous="m", gamma=1.5), "--gamma is 1.5; it is a discount from 0 to 1"),
        (EndogenousOptions(endogenous="m", alpha=0.0), "--alpha is 0.0; it must be positive"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: EndogenousOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options.check_endogenous()


def test_defaults_are_those_of_the_scorer(tiny: Path) -> None:
    scorer = chosen_scorer(None, ScoringOptions(), EndogenousOptions(endogenous=str(tiny)))
    assert isinstance(scorer, EndogenousScorer)
    assert (scorer.aggregation, scorer.gamma, scorer.alpha, scorer.system) == ("discounted", 0.93, 1.0, None)
    assert (scorer.batch_tokens, scorer.limits.raw, scorer.model.layout) == (4096, False, "tree")


def test_every_option_reaches_the_scorer(tiny: Path) -> None:
    scoring = ScoringOptions(batch_tokens=99, layout="padded", raw=True)
    persona = EndogenousOptions(endogenous=str(tiny), aggregation="discounted", gamma=0.5, alpha=2.0, system="Be kind.")
    scorer = persona.endogenous_scorer(scoring)
    assert (scorer.aggregation, scorer.gamma, scorer.alpha, scorer.system) == ("discounted", 0.5, 2.0, "Be kind.")
    assert (scorer.batch_tokens, scorer.limits.raw, scorer.model.layout) == (99, True, "padded")
    other = EndogenousOptions(endogenous=str(tiny), aggregation="mean", dtype="bfloat16").endogenous_scorer(
        ScoringOptions()
    )
    assert (other.aggregation, other.model.body.dtype) == ("mean", torch.bfloat16)
    assert scorer.model.body.dtype == torch.float32


def test_options_of_trained_models_are_refused(tiny: Path) -> None:
    for options in (ScoringOptions(shaping="worst"), ScoringOptions(standardise=True)):
        with pytest.raises(ValueError, match=r"--(shaping|standardise) is for trained models with members"):
            EndogenousOptions(endogenous=str(tiny)).endogenous_scorer(options)
    with pytest.raises(ValueError, match="--batch-tokens is 0; it must be positive"):
        EndogenousOptions(endogenous=str(tiny)).endogenous_scorer(ScoringOptions(batch_tokens=0))


def test_one_model_or_a_weight(tiny: Path, trained: Path) -> None:
    endogenous = EndogenousOptions(endogenous=str(tiny))
    assert isinstance(chosen_scorer(trained, ScoringOptions(), EndogenousOptions()), Scorer)
    with pytest.raises(ValueError, match="got no model; give --model DIR"):
        chosen_scorer(None, ScoringOptions(), EndogenousOptions())
    with pytest.raises(ValueError, match="got --model and --endogenous; give one of them, or --endogenous-weight and"):
        chosen_scorer(trained, ScoringOptions(), endogenous)
    with pytest.raises(ValueError, match="--endogenous-weight adds to a trained reward; give --model DIR too"):
        chosen_scorer(
            None, ScoringOptions(), EndogenousOptions(endogenous=str(tiny), endogenous_weight=1, reference="r.jsonl")
        )


def test_the_sum_is_that_of_standardised_rewards(tiny: Path, trained: Path, tmp_path: Path) -> None:
    reference = write(tmp_path / "reference.jsonl", REFERENCE)
    options = EndogenousOptions(endogenous=str(tiny), endogenous_weight=0.5, reference=str(reference))
    scorer = chosen_scorer(trained, ScoringOptions(), options)
    prompts, completions = ["Well?", "How are you?"], [["good", "bad", "good thanks"], ["fine"]]
    found = [score for group in scorer(prompts, completions) for score in group]
    parts = []
    for part in (Scorer.load(trained), EndogenousScorer.load(str(tiny))):
        rewards = [score.reward for group in part(prompts, completions) for score in group]
        mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
        parts.append([(reward - mean) / std for reward in rewards])
    expected = [first + 0.5 * second for first, second in zip(*parts, strict=True)]
    assert [score.reward for score in found] == pytest.approx(expected, abs=1e-5)
    assert [score.members for score in found] == [pytest.approx(both, abs=1e-5) for both in zip(*parts, strict=True)]
    assert json.loads(json.dumps(scorer.record))["weights"] == [1.0, 0.5]


def test_identity_depends_on_everything_that_scores_depend_on(tiny: Path, trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    reference = write(tmp_path / "reference.jsonl", REFERENCE)
    plain = EndogenousOptions(endogenous=str(copy))
    added = EndogenousOptions(endogenous=str(copy), endogenous_weight=1.0, reference=str(reference))

    def keys() -> list[str]:
        return [
            scores_identity(trained, ScoringOptions(), EndogenousOptions()),
            scores_identity(None, ScoringOptions(), plain),
            scores_identity(None, ScoringOptions(raw=True), plain),
            scores_identity(None, ScoringOptions(), EndogenousOptions(endogenous=str(copy), gamma=0.5)),
            scores_identity(None, ScoringOptions(), EndogenousOptions(endogenous=str(copy), system="x")),
            scores_identity(trained, ScoringOptions(), added),
        ]

    before = keys()
    assert before == keys()
    assert len(set(before)) == len(before)
    assert before[0] == identity([trained], ScoringOptions())
    write(reference, REFERENCE[:1])
    assert [old == new for old, new in zip(before, keys(), strict=True)] == [True] * 5 + [False]
    (copy / "generation_config.json").write_text("{}")
    assert [old == new for old, new in zip(before, keys(), strict=True)] == [True] + [False] * 5
