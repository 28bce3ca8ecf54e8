"""`rewarden merge`: one reward model from the averaged weights of several (WARM, arXiv:2401.12187)."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rewarden.commands.options.flags import Positional
from rewarden.disk.owned_folder import MODEL, OwnedFolder

if TYPE_CHECKING:
    from torch import Tensor

    from rewarden.data import Pair
    from rewarden.hf.model.reward_model import RewardModelConfig
    from rewarden.hf.scoring.scorer import Scorer

# What has to agree between members, and nothing else: what rewards mean differs from one model to the next.
ALIKE = ("backbone", "method", "pooling", "language_head", "pad_token_id", "limits")


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Average the weights of reward models into one model that costs as much as one of them (WARM).

    The members need one start: the same backbone, and the same head, trained before they part. See docs/merging.md.
    """

    models: Annotated[tuple[Path, ...], Positional("FOLDER FOLDER ...")]
    """Folders that `rewarden train` wrote, at least two."""
    output: Path
    """Folder for the averaged model, and merging.json."""
    weights: tuple[float, ...] = ()
    """One per model, adding up to 1. Default: equal."""
    pairs: tuple[str, ...] = ()
    """Held-out preference pairs, files or hub data sets: compares the average with its members and with their ensemble, and
    checks that the way from the first to the second loses no accuracy."""
    steps: int = 5
    """Models on that way, both ends included."""
    layout: Literal["auto", "tree", "padded"] = "auto"
    """How --pairs are scored, as in `rewarden score`."""
    overwrite: bool = False
    """Replace a model in OUTPUT."""
    seed: int = 0
    """Of the bootstrap; averaging draws nothing at random."""
    json: bool = False
    """Print what merging.json holds on stdout."""


@dataclass(frozen=True)
class Member:
    """One of the models to average, before its weights are read."""

    folder: Path
    config: RewardModelConfig
    tokenizer: str
    """Hash of everything that turns text into tokens."""
    record: Mapping[str, Any]
    """What training.json holds; empty when there is none."""
    sha256: str
    """Of its weights."""


@dataclass(frozen=True)
class Judge:
    """Rewards of held-out pairs under any weights of one architecture."""

    scorer: Scorer
    pairs: Sequence[Pair]
    seed: int
    tick: Callable[[int], object]

    def rewards(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Rewards (pairs, 2) in float64, chosen first."""
        import torch

        self.scorer.model.load_state_dict(dict(weights))
        prompts = [pair.prompt for pair in self.pairs]
        scored = self.scorer(prompts, [(pair.chosen, pair.rejected) for pair in self.pairs], progress=self.tick)
        return torch.tensor([[score.reward for score in each] for each in scored], dtype=torch.float64)

    def results(self, rewards: Tensor) -> dict[str, Any]:
        """Accuracy with its 95 % interval, clustered by prompt (higher is better), and NLL in nats (lower is better)."""
        from rewarden.data import pair_key
        from rewarden.evaluation import metrics
        from rewarden.evaluation.bootstrap import cluster_ids, share_interval

        gap = rewards[:, 0] - rewards[:, 1]
        clusters = cluster_ids([pair_key(pair) for pair in self.pairs])
        return {
            "accuracy": share_interval((gap > 0).double(), clusters, seed=self.seed).to_dict(),
            "nll": metrics.nll(gap),
        }


def merge(args: Merge) -> dict[str, Any]:
    """Average and save; returns what OUTPUT/merging.json holds.

    Raises:
        ValueError: When the models cannot be averaged, or options do not fit together.
    """
    _check_arguments(args)
    folder = OwnedFolder(args.output, MODEL)
    folder.check(
        {f"the model {model}": model for model in args.models} | {f"--pairs {name}": name for name in args.pairs}
    )
    with folder.locked():
        if (args.output / "settings.json").exists() and not args.overwrite:
            raise ValueError(
                f"{args.output} holds an unfinished training; choose another --output, or replace it with --overwrite"
            )
        return _merged(args, folder)


def _merged(args: Merge, folder: OwnedFolder) -> dict[str, Any]:
    """Average, and replace what is in the folder when the average is whole."""
    from rewarden import merging, methods
    from rewarden.commands.output.provenance import versions
    from rewarden.data import load_pairs
    from rewarden.hf.scoring.scorer import Scorer
    from rewarden.hf.tokens import Limits
    from rewarden.hf.training import fit

    pairs = [pair for source in args.pairs for pair in load_pairs(source)]
    members = [_member(folder) for folder in args.models]
    _check_alike(members)
    notes = _notes(members)
    weights = args.weights or (1 / len(members),) * len(members)
    scorer = Scorer.load(args.models[0], layout=args.layout)
    found: dict[str, Any] = {}
    if pairs:
        average, found = _compared(args, members, scorer, pairs)
        scorer.model.config.reward_mean, scorer.model.config.reward_std = found["reward_mean"], found["reward_std"]
    else:
        average = merging.average(_weights(members), args.weights or None)
        scorer.model.config.reward_mean = scorer.model.config.reward_std = None
        notes.append("mean and standard deviation of the reward are not known; give --pairs to measure them")
    scorer.model.load_state_dict(average)
    record = {
        "method": methods.to_dict(scorer.model.method),
        "merged": [
            {"folder": str(member.folder), "sha256": member.sha256, "weight": weight}
            for member, weight in zip(members, weights, strict=True)
        ],
        "notes": notes,
        "pairs": {"files": list(args.pairs), "number": len(pairs)},
        "reward_mean": None,
        "reward_std": None,
        "versions": versions(),
    } | found
    limits = Limits(**(scorer.model.config.limits or {}))
    written = fit.save(scorer.model, scorer.tokenizer, limits, record, args.output, also=["merging.json"])
    folder.delete(path for path in folder.files() if path.relative_to(args.output).as_posix() not in written)
    OwnedFolder(args.output / "stage-one", MODEL).remove()
    return record


def _compared(
    args: Merge, members: Sequence[Member], scorer: Scorer, pairs: Sequence[Pair]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The average, and how it does on held-out pairs beside its members and the mean of their rewards."""
    import torch

    from rewarden import merging
    from rewarden.hf.progress import progress

    runs = len(members) + 1 + args.steps - 2
    with progress(2 * len(pairs) * runs, "merge", "completion") as bar:
        judge = Judge(scorer, pairs, args.seed, bar.update)
        rewards: list[Tensor] = []
        ends: list[Mapping[str, Tensor]] = []

        def judged() -> Iterator[Mapping[str, Tensor]]:
            for weights in _weights(members):
                rewards.append(judge.rewards(weights))
                if len(ends) < 2:
                    ends.append(weights)
                yield weights

        average = merging.average(judged(), args.weights or None)
        own = judge.rewards(average)
        line = _line(judge, ends, rewards[:2], args.steps)
    shares = torch.tensor(args.weights or [1 / len(members)] * len(members), dtype=torch.float64)
    ensemble = (torch.stack(rewards) * shares[:, None, None]).sum(0)
    each, together = [judge.results(one) for one in rewards], judge.results(own)
    accuracies = torch.tensor([one["accuracy"]["value"] for one in each], dtype=torch.float64)
    found = {
        "members": [{"folder": str(member.folder)} | result for member, result in zip(members, each, strict=True)],
        "average": together,
        "ensemble": judge.results(ensemble),
        "gain_over_members": together["accuracy"]["value"] - float(shares @ accuracies),
        "connectivity": {"between": [str(member.folder) for member in members[:2]]} | line,
        "reward_mean": own.mean().item(),
        "reward_std": own.std().item(),
    }
    return average, found


def _line(judge: Judge, ends: Sequence[Mapping[str, Tensor]], rewards: Sequence[Tensor], steps: int) -> dict[str, Any]:
    """Accuracy on the straight line from the first member to the second; the ends are known already."""
    from rewarden import merging
    from rewarden.evaluation import metrics

    places = [number / (steps - 1) for number in range(steps)]
    inner = [judge.rewards(merging.interpolate(ends[0], ends[1], place)) for place in places[1:-1]]
    accuracies = [metrics.accuracy(one[:, 0] - one[:, 1]) for one in (rewards[0], *inner, rewards[1])]
    result = merging.linear_mode_connectivity(accuracies, places)
    return asdict(result) | {"is_connected": result.is_connected}


def _weights(members: Sequence[Member]) -> Iterator[Mapping[str, Tensor]]:
    """The members' weights in float32, one model at a time."""
    from rewarden.hf.model.reward_model import RewardModel

    for member in members:
        yield RewardModel.load(str(member.folder), layout="padded").state_dict()


# --- Whether models may be averaged ---------------------------------------------------------------


def _check_arguments(args: Merge) -> None:
    """Refuse what would average nothing, compare nothing, or write over a model."""
    if len(args.models) < 2:
        raise ValueError(f"there is {len(args.models)} model to average; give at least two folders")
    if args.weights and len(args.weights) != len(args.models):
        raise ValueError(f"got {len(args.weights)} --weights for {len(args.models)} models; give one for each")
    if args.steps < 2:
        raise ValueError(f"--steps is {args.steps}; the way from one model to another has at least its 2 ends")
    if args.output.resolve() in [folder.resolve() for folder in args.models]:
        raise ValueError(f"--output {args.output} is one of the models to average; choose another folder")
    if (args.output / "config.json").exists() and not args.overwrite:
        raise ValueError(
            f"{args.output} already holds a model; choose another --output, or replace it with --overwrite"
        )


def _member(folder: Path) -> Member:
    """What is known of a model without reading its weights into memory.

    Raises:
        ValueError: When the folder holds no rewarden model.
    """
    from rewarden.hf.model.loading import load_config, load_tokenizer
    from rewarden.hf.model.reward_model import RewardModelConfig

    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is not a trained reward model (no config.json); give folders that `rewarden train` wrote"
        )
    config = load_config(str(folder))
    if not isinstance(config, RewardModelConfig):
        raise ValueError(
            f"{folder} holds a {config.model_type} model, not a reward model; give folders that `rewarden train` wrote"
        )
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return Member(folder, config, _fingerprint(load_tokenizer(str(folder))), record, digest.hexdigest())


def _fingerprint(tokenizer: Any) -> str:
    """Hash of vocabulary, merges, special tokens and chat template, whatever files they came in."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    for setting in ("truncation", "padding"):  # of the last call, not of the tokenizer
        rules.pop(setting, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([rules, special, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_alike(members: Sequence[Member]) -> None:
    """Name the first thing in which a member differs from the first one."""
    first = members[0]
    for member in members[1:]:
        for name in ALIKE:
            one, other = _setting(first.config, name), _setting(member.config, name)
            if one != other:
                raise ValueError(
                    f"{_difference(name, one, other)} ({first.folder}, {member.folder}); "
                    "average models that were trained alike, apart from seed, data order and learning rates"
                )
        if member.tokenizer != first.tokenizer:
            raise ValueError(
                f"{first.folder} and {member.folder} have different tokenizers or chat templates, so their weights saw different "
                "tokens; average models that were trained from one start"
            )


def _setting(config: RewardModelConfig, name: str) -> Any:
    from rewarden.hf.tokens import Limits

    value = getattr(config, name, None)
    return asdict(Limits(**(value or {}))) if name == "limits" else value  # older models lack newer fields


def _difference(name: str, one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(key for key in [*one, *other] if one.get(key) != other.get(key))
        return _difference(f"{name}.{key}", one.get(key), other.get(key))
    return f"{name} is {one!r} in the first model and {other!r} in another"


def _notes(members: Sequence[Member]) -> list[str]:
    """What speaks against averaging these models though it can be done; also said on stderr."""
    notes = []
    arguments = [member.record.get("arguments") for member in members]
    unknown = [str(m.folder) for m, known in zip(members, arguments, strict=True) if known is None]
    if unknown:
        notes.append(f"no training record in {', '.join(unknown)}: whether the members share a start is not known")
    known = [found for found in arguments if found is not None]
    starts = sorted({str(found.get("stage_one") or found.get("model")) for found in known})
    if len(starts) > 1:
        notes.append(f"the members started from different models ({', '.join(starts)}); averages need one start")
    fresh = [found for found in known if not found.get("keep_head")]
    if fresh and len({(found.get("seed"), bool(found.get("keep_head"))) for found in known}) > 1:
        notes.append(
            "the members' heads started from different random values, so the average may be worse than each of them; "
            "docs/merging.md says how members share a head"
        )
    if len({member.sha256 for member in members}) < len(members):
        notes.append("some members have the same weights; averaging them only gives these more weight")
    for note in notes:
        print(f"warning: {note}", file=sys.stderr, flush=True)
    return notes


# --- What a person sees ---------------------------------------------------------------------------


def _print_tables(record: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{record['pairs']['number']:,} held-out pairs, 95 % intervals", title_justify="left")
    for column in ("model", "accuracy", "nll (nats)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    rows = [(Path(found["folder"]).name, found) for found in record["members"]]
    for name, found in [*rows, ("average of weights", record["average"]), ("mean of rewards", record["ensemble"])]:
        value, low, high = (found["accuracy"][key] for key in ("value", "low", "high"))
        interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        table.add_row(name, f"{value:.3f}{interval}", f"{found['nll']:.3f}")
    line = record["connectivity"]
    way = Table(title="from the first model (0) to the second (1)", title_justify="left")
    for column in ("weight", "accuracy", "gain over the straight line"):
        way.add_column(column, justify="right")
    for weight, accuracy, gain in zip(line["weights"], line["accuracies"], line["gains"], strict=True):
        way.add_row(f"{weight:.2f}", f"{accuracy:.3f}", f"{gain:+.3f}")
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    console.print(way)


def main(args: Merge) -> None:
    """Merge, then say what the average is worth."""
    record = merge(args)
    if args.json:
        print(json.dumps(record, allow_nan=False))
        return
    if args.pairs:
        _print_tables(record)
        worst = record["connectivity"]["worst"]
        verdict = (
            "no accuracy is lost on the way"
            if worst >= -1e-12
            else f"up to {-worst:.3f} of accuracy is lost on the way"
        )
        print(f"linear mode connectivity: {verdict}")
    print(f"{args.output}: the average of {len(record['merged'])} models")
