"""What completions of a run are worth: sources, reference responses, components that need them, monitors, R2M."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rewarden.commands.output.provenance import say

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rewarden.align.policy import Policy
    from rewarden.align.prompts import Prompt
    from rewarden.align.r2m.feedback import FeedbackReward
    from rewarden.align.reference_responses import Responses
    from rewarden.align.rewards.components import Component
    from rewarden.align.rewards.sources import RewardSource
    from rewarden.align.rollouts import Rollouts
    from rewarden.core import RewardOutput
    from rewarden.hf.model.reward_model import Layout, RewardModel
    from rewarden.hf.scoring.endogenous import EndogenousScorer
    from rewarden.hf.scoring.scorer import Scorer
    from rewarden.methods.policy_feedback import PolicyFeedback
    from rewarden.monitors.monitor import Signal
    from rewarden.monitors.monitor_set import MonitorSet

R2M_RATE = 4096e-6
"""Default learning rate of R2M times the reward model's width: the paper's 1e-6 at its width of 4096. Narrower layers take
larger steps, as everywhere here; that rule is reasoned, not measured for R2M."""
MIN_RESPONSES = 1024
"""Reference responses where something is compared with them: half of them are held out, and monitors need 500 of those."""

REMEDIES: dict[Signal, tuple[str, str]] = {
    "latent": (
        "latents",
        "take a reward model trained with info-bottleneck (or anything around it), or give one as --detector",
    ),
    "uncertainty": ("uncertainties", "take a Bayesian ensemble, or several models joined by +"),
}
"""Of what a reward may not have: what it is called, and what to do."""


class Scorers(NamedTuple):
    """Everything that is asked about completions, loaded before anything is sampled."""

    source: RewardSource
    """The rewards, with the latents that are watched."""
    reward_model: Scorer | None
    """Of a source that is a single trained model: that model, for what reads or trains it."""
    endogenous: EndogenousScorer | None
    gold: RewardSource | None


class SourceLoader(NamedTuple):
    """How what is asked about completions is loaded."""

    layout: Layout
    batch_tokens: int | None
    timeout: float | None
    """Seconds that a Python function may take."""
    process: bool = False
    """Whether a Python function runs in a process of its own."""
    steps: int = 0
    """Of the run, for functions that ask for the trainer's state."""

    def source(self, spec: str, given: Callable[..., Any] | None = None) -> RewardSource:
        """What the specification names, or the function that is given in its place."""
        from rewarden.align.rewards.sources import FunctionSource, load_source

        if given is not None:
            if self.process:
                raise ValueError("reward_process needs a function in a file, FILE.py:FUNCTION; this one is an object")
            found: RewardSource = FunctionSource(given, getattr(given, "__name__", "the function given"), self.timeout)
        else:
            found = load_source(
                spec,
                layout=self.layout,
                batch_tokens=self.batch_tokens,
                timeout=self.timeout,
                process=self.process,
            )
        if isinstance(found, FunctionSource):
            found.max_steps = self.steps
        return found

    def detected(self, source: RewardSource, detector: str) -> RewardSource:
        """The source with the latents of the detector, a folder."""
        from rewarden.align.rewards.detector import DetectedSource
        from rewarden.align.rewards.sources import load_source

        try:
            return DetectedSource(source, load_source(detector, batch_tokens=self.batch_tokens))
        except ValueError as error:
            raise ValueError(f"--detector {detector}: {error}") from error

    def endogenous(self, name: str) -> EndogenousScorer:
        """The language model whose endogenous reward is added."""
        from rewarden.hf.scoring.endogenous import EndogenousScorer

        return EndogenousScorer.load(name, layout=self.layout, batch_tokens=self.batch_tokens)


def tried_out(source: RewardSource) -> RewardOutput:
    """What a source gives, seen on one completion; a function gives rewards and nothing else."""
    import torch

    from rewarden.align.rewards.sources import FunctionSource
    from rewarden.core import RewardOutput

    if isinstance(source, FunctionSource):
        return RewardOutput(torch.zeros(1))
    return source(["Hello"], [["Hello!"]], [{}]).output


def check_needs(asked: Mapping[str, frozenset[Signal]], there: Mapping[Signal, bool], reward: str) -> None:
    """Refuse what asks for more than the reward gives, before anything is sampled.

    Args:
        asked: By option, what it needs.
        there: By what may be needed, whether the reward gives it.
        reward: Its name.

    Raises:
        ValueError: Naming the option, and what to do.
    """
    for option, needs in asked.items():
        for signal, (what, remedy) in REMEDIES.items():
            if signal in needs and not there[signal]:
                raise ValueError(f"{option} needs {what}, and {reward} has none; {remedy}")


def one_model(scorers: Scorers, option: str, does: str, reward: str) -> Scorer:
    """The single trained model that the rewards come from.

    Raises:
        ValueError: When they come from anything else.
    """
    if scorers.reward_model is None:
        raise ValueError(f"{option} {does} one reward model, and {reward} is not one; give a folder")
    return scorers.reward_model


def responses(
    folder: Path, accelerator: Accelerator, scorers: Scorers, places: Sequence[int], draw: Callable[[], Rollouts]
) -> Responses:
    """The starting policy's responses: those stored by the run, or drawn now by the first process.

    Args:
        folder: Of the run.
        accelerator: Joins the processes.
        scorers: What is asked about the responses.
        places: Numbers of the prompts that are answered.
        draw: Samples one response for each of them.

    Raises:
        ValueError: When no usable reward comes back.
    """
    from rewarden.align import reference_responses
    from rewarden.align.agreement import on_main
    from rewarden.align.rewards.functions import RewardError

    def sample() -> None:
        if reference_responses.load(folder) is not None:
            return
        say(f"sampling {len(places):,} responses of the starting policy, to compare with")
        rollouts = draw()
        found = reference_responses.score(rollouts, places, scorers.source, scorers.endogenous)
        reference_responses.store(folder, rollouts, found)

    try:
        on_main(accelerator, sample)
    except RewardError as error:
        raise ValueError(
            f"responses of the starting policy: {error}. Nothing was trained yet; mend the reward and begin again with --resume"
        ) from error
    found = reference_responses.load(folder)
    assert found is not None
    return found


def endogenous_prior(scorers: Scorers, responses: Responses, weight: float) -> Component:
    """The endogenous reward, in its standard deviations over the responses."""
    from rewarden.align.rewards import components

    found = responses.endogenous
    assert scorers.endogenous is not None and found is not None
    return components.endogenous_prior(scorers.endogenous, weight, mean=float(found.mean()), std=float(found.std()))


class LatentPricing(NamedTuple):
    """What a distance in the latents costs, and how it is measured."""

    weight: float
    covariance: Literal["empirical", "ledoit-wolf"]
    by_class: bool
    """Within classes of prompts."""


def latent_penalty(pricing: LatentPricing, responses: Responses, prompts: Sequence[Prompt]) -> list[Component]:
    """IBL, where there are latents; without a weight the distance is only measured, and left out where that cannot be.

    Args:
        pricing: What it costs.
        responses: Of the starting policy.
        prompts: All that will be rewarded: those of the training first, as `responses` numbers them, then the held-out ones.

    Raises:
        ValueError: When a class of prompts has too few responses.
    """
    from rewarden.align.reference_responses import classes_of
    from rewarden.align.rewards import components
    from rewarden.monitors.mahalanobis import fit_reference

    if responses.latent is None:
        return []
    latent = responses.latent.double()
    if not pricing.weight:
        try:
            return [components.latent_penalty(fit_reference(latent, covariance="ledoit-wolf"), 0.0)]
        except ValueError as error:
            say(f"distances in the latents are left out: {error}")
            return []
    if not pricing.by_class:
        return [components.latent_penalty(fit_reference(latent, covariance=pricing.covariance), pricing.weight)]
    classes = classes_of(responses, prompts)
    fits = {}
    for name in dict.fromkeys(prompt.prompt_class for prompt in prompts):
        rows = latent[[each == name for each in classes]]
        try:
            fits[str(name)] = fit_reference(rows, covariance=pricing.covariance)
        except ValueError as error:
            raise ValueError(
                f"prompt class {name!r} has {len(rows)} of the {len(latent)} reference responses: {error}; or raise "
                "--reference-responses, or leave --class-column out"
            ) from error
    return [components.latent_penalty(fits, pricing.weight)]


def monitors(responses: Responses, *, stop_on: str | None) -> MonitorSet:
    """Every monitor that can work with the responses; one that cannot is an error only if the run shall stop on it."""
    from rewarden.monitors import MONITORS
    from rewarden.monitors.monitor import Monitor
    from rewarden.monitors.monitor_set import MonitorSet

    reference, found = responses.rollout(), dict[str, Monitor]()
    for name, kind in MONITORS.items():
        if any(getattr(reference, signal) is None for signal in kind.needs) and stop_on != name:
            continue
        if "kl" in kind.needs and stop_on != name:
            continue  # costs a pass of the policy, which nobody has asked for
        try:
            kind().start(reference)
        except ValueError as error:
            if stop_on == name:
                raise
            say(f"monitor {name} is left out: {error}")
            continue
        found[name] = kind()
    started = MonitorSet(found)
    started.start(reference)
    return started


def feedback(
    settings: PolicyFeedback, model: RewardModel, policy: Policy, *, steps: int, seed: int, scale_rate: bool
) -> FeedbackReward:
    """R2M on top of the reward model, whose default learning rate follows its width where that is asked for."""
    from rewarden.align.r2m.feedback import FeedbackReward

    width = model.backbone.config.hidden_size
    if scale_rate:
        settings = replace(settings, learning_rate=R2M_RATE / width)
    return FeedbackReward(
        settings, model.head, hidden_size=width,
        policy_hidden_size=policy.backbone.config.hidden_size, total_steps=steps, seed=seed, device=policy.device,
    )  # fmt: skip
