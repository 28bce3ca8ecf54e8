"""What `rewarden evaluate` puts to the test: trained models, an endogenous reward, a judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rewarden.commands.options.endogenous import EndogenousOptions, chosen_scorer, scores_identity
from rewarden.commands.options.judge import JudgeOptions
from rewarden.commands.options.scoring import ScoringOptions, folders

if TYPE_CHECKING:
    from rewarden.hf.scoring.scorer import AnyScorer


@dataclass(frozen=True)
class EvaluatedModel:
    """One column of the results."""

    name: str
    """Tells it apart from the others."""
    source: str
    """Folder, hub id or address."""
    scorer: Callable[[], AnyScorer]
    """Loads it."""
    identity: Callable[[], str]
    """What its scores depend on besides the texts; see `rewarden.commands.output.score_cache.identity`."""


def entrants(
    models: Sequence[Path],
    options: ScoringOptions,
    endogenous: EndogenousOptions,
    judge: JudgeOptions,
    *,
    answers: Path | None = None,
) -> list[EvaluatedModel]:
    """Every trained model; the endogenous reward as one more or, with a weight, added to each of them; the judge.

    Args:
        models: Folders of trained models.
        options: How rewards are read off them.
        endogenous: An endogenous reward, if any.
        judge: A judge, if any.
        answers: File that keeps the answers of a judge behind an endpoint.

    Raises:
        ValueError: When there is none, or options do not fit together.
    """
    endogenous.check_endogenous()
    judge.check_judge()
    if models:
        options.check_scoring(models)
    is_added = endogenous.endogenous is not None and endogenous.endogenous_weight is not None
    beside = endogenous if is_added else EndogenousOptions()
    names = labels(models) if models or (endogenous.endogenous is None and judge.judge is None) else []
    found = [
        EvaluatedModel(
            name,
            str(model),
            partial(chosen_scorer, model, options, beside),
            partial(scores_identity, model, options, beside),
        )
        for name, model in zip(names, models, strict=True)
    ]
    if endogenous.endogenous is not None and not (is_added and models):
        own = partial(chosen_scorer, None, options, endogenous), partial(scores_identity, None, options, endogenous)
        found.append(EvaluatedModel(f"endogenous {_short(endogenous.endogenous)}", endogenous.endogenous, *own))
    if judge.judge is not None:
        name = f"{judge.judge_kind} {_short(judge.judge_model or judge.judge)}"
        found.append(
            EvaluatedModel(
                name,
                judge.judge,
                partial(judge.judge_scorer, options, answers),
                partial(_judge_identity, judge, options),
            )
        )
    return found


def check_folders(models: Sequence[Path]) -> None:
    """Refuse what is no trained reward model now, not when it is its turn.

    Raises:
        ValueError: Naming the first folder that holds none.
    """
    for folder in (folder for model in models for folder in folders(model)):
        try:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{folder} is not a trained reward model (no config.json); give a folder that `rewarden train` wrote"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the loader says what is damaged
        if kind != "rewarden":
            raise ValueError(
                f"{folder} holds a {kind} model, not a reward model; train one from it with `rewarden train`"
            )


def labels(models: Sequence[Path]) -> list[str]:
    """Short names of models: the folders' names, with as many parent folders as tell all apart.

    Raises:
        ValueError: When there is no model, or one stands twice.
    """
    if not models:
        raise ValueError(
            "got no model; give --model DIR, a folder that `rewarden train` wrote, or several, or --endogenous or --judge MODEL"
        )
    parts = [[folder.absolute() for folder in folders(model)] for model in models]
    twice = next((model for model, each in zip(models, parts, strict=True) if parts.count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} stands twice after --model; a model cannot be compared with itself, leave one out")
    names: list[str] = []
    for depth in range(1, 2 + max(len(folder.parts) for each in parts for folder in each)):
        names = ["+".join("/".join(folder.parts[-depth:]) for folder in each) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _judge_identity(judge: JudgeOptions, options: ScoringOptions) -> str:
    """The judge's options and template, and the files of a local model; a served model goes by its name."""
    from rewarden.assets import resolve
    from rewarden.commands.output.score_cache import identity

    folder = Path(resolve(judge.judge or ""))
    files = identity([folder] if not judge.is_endpoint and folder.is_dir() else [], options)
    template = None if judge.template is None else judge.template.read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps([files, asdict(judge), template], default=str).encode()).hexdigest()


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
