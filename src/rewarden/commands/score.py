"""`rewarden score`: rewards for completions in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rewarden.commands.options.endogenous import EndogenousOptions, chosen_scorer
from rewarden.commands.options.flags import part
from rewarden.commands.options.judge import JudgeOptions, judge_report
from rewarden.commands.options.parse import as_options
from rewarden.commands.options.scoring import ScoringOptions
from rewarden.commands.setup.scorers import check_folders
from rewarden.files import DataError

if TYPE_CHECKING:
    from rewarden.commands.output.carried_columns import Carried
    from rewarden.data import Candidates
    from rewarden.hf.scoring.endogenous import TokenRewards
    from rewarden.hf.scoring.scorer import AnyScorer, CompletionScore
    from rewarden.messages import Text


@dataclass(frozen=True, kw_only=True)
class Score(JudgeOptions, EndogenousOptions, ScoringOptions):
    """Score completions: rows {"prompt", "completion"} or {"prompt", "completions": [...]}.

    Every column is kept. The first kind of row gains "reward" and "uncertainty" (one standard deviation in reward units, null
    where the method has none), the second "rewards" and "uncertainties". Ensembles, of heads or of models, add what
    each member gives: "members" to the first kind, "members_by_completion" to the second. An endogenous reward adds
    "prompt_value", the soft value of the prompt. Columns of these names are replaced, and the summary says which.
    """

    basic: ClassVar[tuple[str, ...]] = (
        "input", "output", "model", "shaping", "endogenous", "judge", "judge_kind", "tokens", "page", "json",
    )  # fmt: skip
    input: Path
    """.jsonl, .jsonl.gz or .parquet."""
    output: Path
    """Where the rows go, in the same formats; written whole or not at all. Not the input itself."""
    model: Path | None = None
    """Folder that `rewarden train` wrote, or several joined by + (A+B+C), which are then one ensemble."""
    tokens: bool = False
    """Of --endogenous: add "token_rewards", a list of {"token", "reward", "log_prob"} for each completion."""
    page: Path | None = None
    """Of --endogenous: an .html file with the completions as text coloured by the reward of each token."""
    json: bool = False
    """Print a summary as JSON on stdout."""


def score(args: Score | None = None, **options: Any) -> dict[str, Any]:
    """Score the file; returns counts and the mean reward.

    The fields of `Score` as keyword arguments, or an object, of which they change fields.

    Raises:
        TypeError: When a keyword is no option, or one that is needed is missing.
        ValueError: On bad data, a folder without a model, or a reward that is not finite.
    """
    from rewarden.commands.output.computed_rows import write_or_keep
    from rewarden.data import load_candidates
    from rewarden.hf.progress import progress

    args = as_options(Score, args, options)
    _check(args)
    groups = load_candidates(args.input)
    kept = _carried(args, groups)
    scorer = _scorer(args)
    total = sum(len(group.completions) for group in groups)
    with progress(total, "score", "completion") as bar:
        scores, tokens = _scored(args, scorer, groups, bar.update)
    added = [columns(group, found) for group, found in zip(groups, scores, strict=True)]
    if args.tokens:
        added = [new | token_column(found) for new, found in zip(added, tokens, strict=True)]
    _refuse_non_finite(args.output, groups, added)
    # In the order of the input: a column that is computed anew stays where it was.
    rows = [
        {name: (new if name in new else old)[name] for name in group.row | new}
        for group, old, new in zip(groups, kept.rows, added, strict=True)
    ]
    write_or_keep(args.output, rows, added, kept.types)
    if args.is_endpoint:
        _answers(args).unlink(missing_ok=True)  # whatever they said is written
    if args.page is not None:
        _write_page(args.page, groups, scores, tokens, scorer.record)
    rewards = [one.reward for found in scores for one in found]
    return {
        "output": str(args.output),
        "prompts": len(groups),
        "completions": total,
        "truncated": sum(one.is_truncated for found in scores for one in found),
        "replaced_columns": sorted(
            {name for group, new in zip(groups, added, strict=True) for name in new if name in group.row}
        ),
        "columns_as_text": kept.as_text,
        "mean_reward": sum(rewards) / len(rewards),
        **({} if args.page is None else {"page": str(args.page)}),
        **({} if args.judge is None else {"judge": judge_report(scorer)}),
    }


def _scorer(args: Score) -> AnyScorer:
    """The scorer that --model, --endogenous or --judge describe."""
    if args.judge is None:
        return chosen_scorer(args.model, part(args, ScoringOptions), part(args, EndogenousOptions))
    if args.model is not None or part(args, EndogenousOptions) != EndogenousOptions():
        raise ValueError("got --judge beside options of --model or --endogenous; give one of the three")
    return args.judge_scorer(part(args, ScoringOptions), _answers(args))


def _answers(args: Score) -> Path:
    """Where the answers of an endpoint are kept until the rows are written."""
    return args.output.with_name(f"{args.output.name}.judge-answers.jsonl")


def _carried(args: Score, groups: Sequence[Candidates]) -> Carried:
    """The columns that stay, as the output can hold them; those that are certain to be replaced are left out."""
    from rewarden.commands.output.carried_columns import carried

    replaced = {True: ("reward", "uncertainty"), False: ("rewards", "uncertainties")}
    rows = [
        (group.where, {name: value for name, value in group.row.items() if name not in replaced[group.is_single]})
        for group in groups
    ]
    return carried(rows, source=args.input, output=args.output, own=_own_types())


def _own_types() -> dict[str, Any]:
    """The Arrow types of the columns that scoring may add."""
    import pyarrow

    number = pyarrow.float64()
    numbers = pyarrow.list_(number)
    token = pyarrow.struct([("token", pyarrow.string()), ("reward", number), ("log_prob", number)])
    single = dict.fromkeys(("reward", "uncertainty", "prompt_value"), number)
    several = dict.fromkeys(("rewards", "uncertainties", "members"), numbers)
    lists = {"members_by_completion": pyarrow.list_(numbers), "token_rewards": pyarrow.list_(pyarrow.list_(token))}
    return single | several | lists


def _refuse_non_finite(output: Path, groups: Sequence[Candidates], added: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rewards that are not numbers, as `rewarden evaluate` does; the others are kept."""
    from rewarden.commands.output.computed_rows import keep

    for group, new in zip(groups, added, strict=True):
        for number, reward in enumerate([new["reward"]] if group.is_single else new["rewards"], start=1):
            if not math.isfinite(reward):
                got = f"the reward of completion {number} is {reward}"
                action = f"Check the training run for divergence, or score in float32. {keep(output, added)}"
                raise DataError.at(group.where, got, "a finite number", action)


def _check(args: Score) -> None:
    """Refuse what cannot work before anything is loaded."""
    from rewarden.commands.output.computed_rows import check_destination

    if not args.output.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise ValueError(f"--output {args.output}: unknown ending; use .jsonl, .jsonl.gz or .parquet")
    check_destination("--output", args.output, [args.input])
    if args.page is not None and not args.page.name.endswith(".html"):
        raise ValueError(f"--page {args.page}: unknown ending; use .html")
    if args.page is not None:
        check_destination("--page", args.page, [args.input])
    if (args.tokens or args.page is not None) and (args.endogenous is None or args.model is not None):
        raise ValueError(
            f"--{'tokens' if args.tokens else 'page'} needs rewards of single tokens, which only --endogenous MODEL has; "
            "give that, without --model"
        )
    args.check_judge()
    if args.model is not None:
        args.check_scoring([args.model])
        check_folders([args.model])


def _scored(
    args: Score, scorer: AnyScorer, groups: Sequence[Candidates], progress: Callable[[int], object]
) -> tuple[list[list[CompletionScore]], list[list[TokenRewards]]]:
    """Scores of all completions, and the rewards of their tokens where they are asked for."""
    prompts, completions = [group.prompt for group in groups], [group.completions for group in groups]
    if not args.tokens and args.page is None:
        return scorer(prompts, completions, progress=progress), []
    from rewarden.hf.scoring.endogenous import EndogenousScorer

    assert isinstance(scorer, EndogenousScorer)
    return scorer.with_tokens(prompts, completions, progress=progress)


def columns(group: Candidates, scores: Sequence[CompletionScore]) -> dict[str, Any]:
    """What a row gains: a reward, an uncertainty and perhaps members; of several completions a list of each."""
    members = [None if score.members is None else list(score.members) for score in scores]
    of_prompt = {} if scores[0].prompt_value is None else {"prompt_value": scores[0].prompt_value}
    if group.is_single:
        found: dict[str, Any] = {"reward": scores[0].reward, "uncertainty": scores[0].uncertainty}
        return found | of_prompt if members[0] is None else found | {"members": members[0]} | of_prompt
    found = {"rewards": [score.reward for score in scores], "uncertainties": [score.uncertainty for score in scores]}
    return found | of_prompt if members[0] is None else found | {"members_by_completion": members} | of_prompt


def token_column(scored: Sequence[TokenRewards]) -> dict[str, Any]:
    """The rewards of tokens as a column: for each completion, single or not, a list of its tokens."""
    return {
        "token_rewards": [
            [
                {"token": token, "reward": reward, "log_prob": log_prob}
                for token, reward, log_prob in zip(one.tokens, one.rewards, one.log_probs, strict=True)
            ]
            for one in scored
        ]
    }


def _write_page(
    path: Path,
    groups: Sequence[Candidates],
    scores: Sequence[Sequence[CompletionScore]],
    tokens: Sequence[Sequence[TokenRewards]],
    record: Mapping[str, Any],
) -> None:
    """The completions as coloured text."""
    from rewarden.commands.output.provenance import command_line, versions
    from rewarden.files import write_text
    from rewarden.report import tokens as token_page

    shown = [
        (
            _plain(group.prompt),
            [
                token_page.Scored(score.reward, one.tokens, one.rewards, one.log_probs)
                for score, one in zip(*each, strict=True)
            ],
        )
        for group, *each in zip(groups, scores, tokens, strict=True)
    ]
    facts = (
        {name: value for name, value in record.items() if value is not None} | {"command": command_line()} | versions()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, token_page.token_page("Rewards of tokens", shown, facts))


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)


def main(args: Score) -> None:
    """Score, then say what was done."""
    summary = score(args)
    if args.json:
        print(json.dumps(summary))
        return
    print(
        f"{summary['output']}: {summary['completions']:,} completions of {summary['prompts']:,} prompts, "
        f"{summary['truncated']:,} cut to the length limits, mean reward {summary['mean_reward']:.3f}"
        + (f"; replaced columns: {', '.join(summary['replaced_columns'])}" if summary["replaced_columns"] else "")
        + "".join(f"; column {name} as {how}" for name, how in summary["columns_as_text"].items())
        + (f"; {summary['page']}" if "page" in summary else "")
        + (f"; {summary['judge']['questions']:,} questions to the judge" if "judge" in summary else "")
        + (f", {reused:,} answered by what was kept" if (reused := summary.get("judge", {}).get("reused")) else "")
    )
