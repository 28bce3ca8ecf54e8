"""Where rewards come from: trained models, several of them, a user's function, or a language model's own probabilities."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_map

from rewarden.align.rewards.function_process import FunctionProcess
from rewarden.align.rewards.functions import FunctionLogs, RewardFunction, Rows, called, load_function, without_skipped
from rewarden.align.rewards.torch_state import TorchState
from rewarden.core import RewardOutput, select
from rewarden.hf.forward import RewardPass, by_group, forward_groups, reward_pass, token_groups
from rewarden.hf.model.reward_model import Layout
from rewarden.hf.scoring.endogenous import EndogenousScorer
from rewarden.hf.scoring.ensemble import ScorerEnsemble
from rewarden.hf.scoring.scorer import CompletionScore, Scorer
from rewarden.hf.tokens import TokenGroup
from rewarden.messages import Text
from rewarden.shaping import nominal

Groups = Sequence[Sequence[str]]
Extras = Sequence[Mapping[str, Any]]


class Scores(NamedTuple):
    """What a source says about completions: one row per completion, those of the first prompt first; float32, on the CPU."""

    output: RewardOutput
    """Reward units, higher is better; with the uncertainty, latents and members that the source has."""
    embedding: Float[Tensor, "rows hidden"] | None
    """The pooled hidden state that the reward head read; None where there is no such thing."""
    cut: int = 0
    """Completions that the source saw only in part, because they or their prompts exceed its length limits."""
    is_skipped: Bool[Tensor, " rows"] | None = None
    """Completions that the source says nothing about, whose reward is NaN; None where there are none."""


@runtime_checkable
class RewardSource(Protocol):
    """Prompts with completions in, rewards out."""

    def __call__(self, prompts: Sequence[Text], completions: Groups, extras: Extras) -> Scores:
        """What the source says about every completion of every prompt.

        Args:
            prompts: Plain text or turns; at least one.
            completions: Plain text, at least one for every prompt.
            extras: The other columns of every prompt.

        Raises:
            ValueError: When a prompt lacks completions or columns, or no usable reward comes back.
        """
        ...

    @property
    def record(self) -> dict[str, Any]:
        """What gives the rewards, ready for JSON: {"method": its name, field: value, ...}."""
        ...

    @property
    def has_latents(self) -> bool:
        """Whether `RewardOutput.latent` is there, for whatever watches it."""
        ...


@dataclass(frozen=True)
class ModelSource:
    """A trained reward model: everything its head says, and what the head read, from one pass over the backbone.

    The scorer's shaping is left out: what the policy is paid is decided later, from the whole output. Identical completions of a
    prompt are scored once, so they tie exactly. The head is looked up at every call: one that is trained meanwhile takes effect.
    """

    scorer: Scorer

    @property
    def record(self) -> dict[str, Any]:
        """The model's method, as `rewarden.methods.to_dict` writes it."""
        return self.scorer.record

    @functools.cached_property
    def has_latents(self) -> bool:
        """Whether the head gives a latent, which is tried out on a hidden state of zeros."""
        model = self.scorer.model
        width = model.backbone.config.get_text_config().hidden_size
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a head in training mode draws noise
            return model.head_output(torch.zeros(1, width, device=model.device)).latent is not None

    def __call__(self, prompts: Sequence[Text], completions: Groups, extras: Extras) -> Scores:
        """See `RewardSource.__call__`; `extras` are not read."""
        _check(prompts, completions, extras)
        scorer = self.scorer
        groups = token_groups(scorer.tokenizer, prompts, completions, scorer.limits, scorer.context)
        pieces: list[RewardPass] = []
        starts: dict[int, tuple[int, list[int]]] = {}
        at = 0
        for found in forward_groups(groups, self._run, budget=scorer.batch_tokens, layout=scorer.model.layout):
            starts[found.number] = at, found.places
            pieces.append(found.output)
            at += len(found.output.embedding)
        order = (starts[index] for index in range(len(groups)))
        rows = torch.tensor([start + place for start, places in order for place in places])
        embedding, output = tree_map(lambda *leaves: _joined(leaves), *pieces)
        return Scores(select(output, rows), embedding[rows], sum(sum(group.is_truncated) for group in groups))

    def _run(self, groups: Sequence[TokenGroup]) -> list[RewardPass]:
        """Embeddings and outputs of the sequences of the groups, in float32 on the CPU."""
        found = reward_pass(self.scorer.model, groups, pad_token_id=self.scorer.tokenizer.pad_token_id)
        return by_group(groups, tree_map(_on_cpu, found))


@dataclass(frozen=True)
class EnsembleSource:
    """Several trained models: their rewards are the members, the mean is the reward, and the uncertainty how far they disagree.

    There is no latent, as each model has one of its own. Coste et al. 2024, arXiv:2310.02743.
    """

    scorer: ScorerEnsemble
    has_latents: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.scorer.shaping is not nominal:
            raise ValueError(
                "got an ensemble with a shaping of its own, expected the nominal one; shape what the policy is paid instead"
            )

    @property
    def record(self) -> dict[str, Any]:
        """The ensemble's."""
        return self.scorer.record

    def __call__(self, prompts: Sequence[Text], completions: Groups, extras: Extras) -> Scores:
        """See `RewardSource.__call__`; `extras` are not read."""
        _check(prompts, completions, extras)
        return _of_scores(self.scorer(prompts, completions))


@dataclass(frozen=True)
class EndogenousSource:
    """A language model's own log-probabilities as the reward: `rewarden.endogenous`, arXiv:2506.23235."""

    scorer: EndogenousScorer
    has_latents: bool = field(default=False, init=False)

    @property
    def record(self) -> dict[str, Any]:
        """The scorer's."""
        return self.scorer.record

    def __call__(self, prompts: Sequence[Text], completions: Groups, extras: Extras) -> Scores:
        """See `RewardSource.__call__`; `extras` are not read. Nats, times the scorer's alpha."""
        _check(prompts, completions, extras)
        return _of_scores(self.scorer(prompts, completions))


@dataclass
class FunctionSource:
    """A Python function with TRL's convention: f(prompts, completions, **columns) returns one number per completion.

    Prompts that are turns are passed as turns, and their completions as one turn of the assistant. Columns are those of the
    prompts' rows. See `rewarden.align.rewards.functions.call` for the checks, and for what a timeout can and cannot do.
    """

    function: RewardFunction
    name: str
    """For messages and the record, "path/to/file.py:name"."""
    timeout: float | None
    """Seconds that a call may take; None for as long as it likes."""
    process: FunctionProcess | None = None
    """Where it is called, if in a process of its own."""
    takes_none: bool = False
    """Whether whoever asks can leave completions out: None for a row is then a skipped row, and an error otherwise."""
    max_steps: int = field(default=0, compare=False)
    """Of the run, for functions that ask for the trainer's state."""
    logs: FunctionLogs = field(default_factory=FunctionLogs, init=False, repr=False, compare=False)
    """What the function logged in its last call."""
    state: TorchState = field(default_factory=TorchState, init=False, repr=False, compare=False)
    has_latents: bool = field(default=False, init=False)
    calls: int = field(default=0, init=False)
    """How often it was called."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(
                f"the timeout is {self.timeout} s, expected more than 0; raise it, or leave it out for no limit"
            )

    @property
    def record(self) -> dict[str, Any]:
        """The function's name and its timeout."""
        return {"method": "RewardFunction", "function": self.name, "timeout": self.timeout}

    def __call__(self, prompts: Sequence[Text], completions: Groups, extras: Extras) -> Scores:
        """See `RewardSource.__call__`.

        Raises:
            RewardError: When the function fails, takes too long, or returns anything else than a finite number per completion.
        """
        _check(prompts, completions, extras)
        self.calls += 1
        rows = Rows.of(prompts, completions, extras)
        found = called(
            self.function,
            self.name,
            rows,
            batch=self.calls,
            timeout=self.timeout,
            state=self.state,
            runner=self.process,
            logs=self.logs,
            max_steps=self.max_steps,
        )
        if not self.takes_none:
            where = f"reward function {self.name}, batch {self.calls} of {len(rows.completions)} completions"
            without_skipped(found, rows, where)
        is_skipped = torch.tensor(found.is_skipped) if True in found.is_skipped else None
        return Scores(RewardOutput(torch.tensor(found.rewards, dtype=torch.float32)), None, is_skipped=is_skipped)


def load_source(
    spec: str,
    *,
    layout: Layout = "auto",
    batch_tokens: int | None = None,
    timeout: float | None = None,
    process: bool = False,
    standardise: bool = False,
) -> RewardSource:
    """The source that the command line names.

    Args:
        spec: Folder of a trained model, several joined by + (A+B+C), or a Python function (path/to/file.py:name).
        layout: Of models: "tree", "padded" or "auto".
        batch_tokens: Of models: tokens per forward pass; None chooses by the device.
        timeout: Of a function: seconds that a call may take.
        process: Of a function: call it in a process of its own, which is killed at the timeout.
        standardise: Of several models: measure each in its own standard deviations, see `ScorerEnsemble.standardise`.

    Raises:
        ValueError: When nothing of this kind is there, or it cannot be used.
    """
    parts = [spec] if Path(spec).exists() or Path(spec.rpartition(":")[0]).is_file() else spec.split("+")
    functions = [part for part in parts if part.rpartition(":")[0].endswith(".py") or part.endswith(".py")]
    if standardise and (len(parts) == 1 or functions):
        raise ValueError(f"standardising is for several models, and {spec} is not; join folders by +, or leave it out")
    if functions and len(parts) > 1:
        raise ValueError(
            f"got reward {spec!r}, expected folders of trained models around every +; {functions[0]} is a function, call the "
            "models from inside it"
        )
    if functions:
        return FunctionSource(load_function(spec), spec, timeout, FunctionProcess(spec) if process else None)
    folders = [Path(part) for part in parts if part.strip()]
    if len(folders) < len(parts) or len(set(folders)) < len(folders):
        raise ValueError(
            f"got reward {spec!r}, expected a folder, different folders joined by + (A+B+C), or FILE.py:FUNCTION; "
            "name every model once"
        )
    scorers = tuple(Scorer.load(folder, layout=layout, batch_tokens=batch_tokens) for folder in folders)
    if len(scorers) == 1:
        return ModelSource(scorers[0])
    return EnsembleSource(ScorerEnsemble(scorers, standardise=standardise))


def _check(prompts: Sequence[Text], completions: Groups, extras: Extras) -> None:
    if not len(prompts) == len(completions) == len(extras) or not all(completions) or not prompts:
        raise ValueError(
            f"got {len(prompts)} prompts, {len(completions)} lists of completions and {len(extras)} of other columns; "
            "give at least one prompt, and for every prompt one of each, with at least one completion"
        )


def _of_scores(groups: Sequence[Sequence[CompletionScore]]) -> Scores:
    """The scores as tensors."""
    scores = [score for group in groups for score in group]
    spread = [score.uncertainty for score in scores if score.uncertainty is not None]
    members = [score.members for score in scores if score.members is not None]
    output = RewardOutput(
        torch.tensor([score.reward for score in scores], dtype=torch.float32),
        torch.tensor(spread, dtype=torch.float32) if spread else None,
        members=torch.tensor(members, dtype=torch.float32) if members else None,
    )
    return Scores(output, None, sum(score.is_truncated for score in scores))


def _on_cpu(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.to("cpu", torch.float32 if leaf.is_floating_point() else leaf.dtype)


def _joined(leaves: Sequence[Any]) -> Any:
    return torch.cat(list(leaves)) if isinstance(leaves[0], Tensor) else leaves[0]
