"""`rewarden evaluate`: what reward models are worth, as JSON, CSV and a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rewarden.commands.options.endogenous import EndogenousOptions
from rewarden.commands.options.flags import part
from rewarden.commands.options.judge import JudgeOptions
from rewarden.commands.options.parse import as_options
from rewarden.commands.options.scoring import ScoringOptions
from rewarden.commands.setup.scorers import EvaluatedModel, check_folders, entrants
from rewarden.disk.owned_folder import EVALUATION, OwnedFolder

if TYPE_CHECKING:
    from rewarden.benchmarks.benchmark import Benchmark
    from rewarden.commands.measure import EvaluationData, Measured
    from rewarden.data import GoldGroup


@dataclass(frozen=True, kw_only=True)
class Evaluate(JudgeOptions, EndogenousOptions, ScoringOptions):
    """Evaluate reward models on preference pairs, on benchmarks, and by best-of-n over responses with gold scores.

    Writes results.json, results.csv (one line per set), pairs.csv (one line per pair), benchmarks/NAME.jsonl (every reward)
    and report.html. Several models are compared by paired tests.
    """

    basic: ClassVar[tuple[str, ...]] = (
        "model", "pairs", "gold", "benchmark", "path", "output", "shaping", "endogenous", "judge", "judge_kind", "resume", "seed",
        "json",
    )  # fmt: skip
    output: Path
    """Folder for the results."""
    model: tuple[Path, ...] = ()
    """Folders that `rewarden train` wrote. Folders joined by + (A+B+C) are one model, their ensemble."""
    pairs: tuple[str, ...] = ()
    """[NAME=]FILE of preference pairs, or a hub data set. NAME defaults to the file's folder and name."""
    gold: str | None = None
    """Responses with gold scores, for best-of-n."""
    gold_split: str = "test"
    """Which rows of --gold are taken, by their column "split" if there is one; "all" takes every row."""
    benchmark: tuple[str, ...] = ()
    """Benchmarks by their own metrics: rm-bench, reward-bench, reward-bench-2, judge-bench, llmbar, hhh, best-of-k."""
    path: tuple[str, ...] = ()
    """Where a benchmark's data lies: FILE with one --benchmark, else NAME=FILE for each that is not bundled."""
    resume: bool = False
    """Take the scores that an interrupted run has left in the output folder, where model, options and texts are the same."""
    seed: int = 0
    """Of the bootstrap."""
    json: bool = False
    """Print the results as JSON on stdout."""


def evaluate(args: Evaluate | None = None, **options: Any) -> dict[str, Any]:
    """Evaluate and write; returns what results.json holds.

    The fields of `Evaluate` as keyword arguments, or an object, of which they change fields.

    Raises:
        TypeError: When a keyword is no option, or one that is needed is missing.
        ValueError: On bad data, or when there is nothing to evaluate, or nothing to evaluate on.
    """
    from rewarden.commands.output.provenance import Record

    args = as_options(Evaluate, args, options)
    folder = OwnedFolder(args.output, EVALUATION)
    sources = {"--pairs": [named(entry)[1] for entry in args.pairs], "--gold": [args.gold] if args.gold else []}
    sources["--path"] = [entry.rpartition("=")[2] for entry in args.path]
    folder.check({f"{option} {source}": source for option, given in sources.items() for source in given})
    with folder.locked():
        return Record(_evaluated(args, folder))


def _evaluated(args: Evaluate, folder: OwnedFolder) -> dict[str, Any]:
    """Read, measure, write; scores are kept in the folder from the first model on."""
    from rewarden.commands.output.results_files import write_page, write_results

    entered = _entrants(args)
    names = [entrant.name for entrant in entered]
    check_folders(args.model)
    material = read(args)
    folder.claim()
    measured = _measured(args, entered, material)
    models = {entrant.name: {"model": entrant.source} | measured[entrant.name].results for entrant in entered}
    results: dict[str, Any] = models[names[0]]
    found: list[dict[str, Any]] = []
    if len(names) > 1:
        from rewarden.commands.measure import comparisons

        found = comparisons(measured, seed=args.seed)
        results = {"models": models, "comparisons": found}
    write_results(args.output, results, measured, material)
    title = f"Evaluation of {names[0] if len(names) == 1 else f'{len(names)} reward models'}"
    write_page(
        args.output / "report.html",
        models,
        title=title,
        material=material,
        measured=measured,
        seed=args.seed,
        comparisons=found,
    )
    if args.is_endpoint:
        _answers(args).unlink(missing_ok=True)  # the scores made of them stand beside it
    return results


def _entrants(args: Evaluate) -> list[EvaluatedModel]:
    options, judge = part(args, ScoringOptions), part(args, JudgeOptions)
    return entrants(args.model, options, part(args, EndogenousOptions), judge, answers=_answers(args))


def _answers(args: Evaluate) -> Path:
    """Where the answers of an endpoint are kept until its scores are."""
    return args.output / "rewards" / "judge-answers.jsonl"


def read(args: Evaluate) -> EvaluationData:
    """Everything that models are put to the test on.

    Raises:
        ValueError: When there is nothing, a name is not known or stands twice, or data cannot be used.
    """
    from rewarden.commands.measure import EvaluationData
    from rewarden.data import Pair, load_pairs

    if not args.pairs and args.gold is None and not args.benchmark:
        raise ValueError("nothing to evaluate on; give --pairs FILE, --gold FILE, --benchmark NAME, or several of them")
    found = _benchmarks(args)
    paths = _paths(args)
    sets: dict[str, list[Pair]] = {}
    for entry in args.pairs:
        name, source = named(entry)
        if name in sets:
            raise ValueError(f"two sets are called {name!r}; tell them apart with NAME=FILE")
        sets[name] = load_pairs(source)
    benchmarks = {name: (each, each.load(paths.get(name))) for name, each in found.items()}
    gold, left_out = _gold(args)
    return EvaluationData(sets, gold, benchmarks, left_out)


def _gold(args: Evaluate) -> tuple[list[GoldGroup] | None, int]:
    """Responses with gold scores, and how many rows of other splits there are."""
    from rewarden.data import load_gold
    from rewarden.files import read_rows

    if args.gold is None:
        return None, 0
    groups = load_gold(args.gold, split=None if args.gold_split == "all" else args.gold_split)
    return groups, sum(1 for _ in read_rows(args.gold)) - len(groups)


def _benchmarks(args: Evaluate) -> dict[str, Benchmark]:
    """The benchmarks that were asked for."""
    if not args.benchmark:
        return {}
    import difflib

    from rewarden.benchmarks import BENCHMARKS

    for name in args.benchmark:
        if name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, n=1)
            hint = f"did you mean {near[0]}?" if near else "choose one of them"
            raise ValueError(f"got --benchmark {name}, expected one of {', '.join(BENCHMARKS)}; {hint}")
        if args.benchmark.count(name) > 1:
            raise ValueError(f"got --benchmark {name} twice; each is measured once, leave one out")
    return {name: BENCHMARKS[name] for name in args.benchmark}


def _paths(args: Evaluate) -> dict[str, str]:
    """The data of each benchmark whose place was given."""
    known = ", ".join(args.benchmark) or "none"
    paths: dict[str, str] = {}
    for entry in args.path:
        name, equals, source = entry.partition("=")
        if not equals or name not in args.benchmark:
            if len(args.benchmark) != 1:
                raise ValueError(
                    f"got --path {entry} with the benchmarks: {known}; --path FILE belongs to exactly one --benchmark, so "
                    "write --path NAME=FILE with the name of the benchmark whose data this is"
                )
            name, source = args.benchmark[0], entry
        if name in paths:
            raise ValueError(f"got two --path for {name}; a benchmark has one file, leave one out")
        paths[name] = source
    return paths


def _measured(args: Evaluate, entered: Sequence[EvaluatedModel], material: EvaluationData) -> dict[str, Measured]:
    """What every model made of the material, one after the other."""
    from rewarden.commands.measure import measure
    from rewarden.commands.output.score_cache import ScoreCache
    from rewarden.hf.progress import progress

    found = {}
    with progress(len(entered) * material.completions, "evaluate", "completion") as bar:
        for entrant in entered:
            kept = ScoreCache(entrant.scorer(), args.output / "rewards", entrant.identity(), reuse=args.resume)
            found[entrant.name] = measure(kept, material, seed=args.seed, progress=bar.update)
    return found


def named(entry: str) -> tuple[str, str]:
    """NAME and FILE of an entry NAME=FILE; without NAME, the parent folder and the file's name without ending."""
    from rewarden.files import stem

    name, equals, source = entry.partition("=")
    if equals and name and "/" not in name and not Path(entry).exists():
        return name, source
    parent = Path(entry).absolute().parent.name if Path(entry).exists() else Path(entry).parent.name
    return (f"{parent}-{stem(entry)}" if parent else stem(entry)), entry


def main(args: Evaluate) -> None:
    """Evaluate, then print a table."""
    results = evaluate(args)
    if args.json:
        print(json.dumps(results, allow_nan=False))
        return
    from rewarden.commands.output.leaderboard_table import print_table

    if "models" in results:
        print_table(results["models"], results["comparisons"])
    else:
        (entrant,) = _entrants(args)
        print_table({entrant.name: results})
    print(f"{args.output / 'report.html'}")
