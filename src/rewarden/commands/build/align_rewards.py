"""From the options of `rewarden align` to what completions are worth: sources, reward pipeline, monitors, R2M."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rewarden.commands.output.provenance import say

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rewarden.align.policy import Policy, SamplingCopy
    from rewarden.align.prompts import Prompt
    from rewarden.align.r2m.feedback import FeedbackReward
    from rewarden.align.r2m.retraining_steps import RetrainingSteps
    from rewarden.align.reference_responses import Responses
    from rewarden.align.rewards.components import Component
    from rewarden.align.rewards.pipeline import RewardPipeline
    from rewarden.align.rewards.sources import RewardSource
    from rewarden.align.rollouts import RolloutSampler
    from rewarden.commands.options.align import Align
    from rewarden.core import RewardOutput
    from rewarden.hf.scoring.endogenous import EndogenousScorer
    from rewarden.hf.scoring.scorer import Scorer
    from rewarden.monitors.monitor_set import MonitorSet

R2M_RATE = 4096e-6
"""Default learning rate of R2M times the reward model's width: the paper's 1e-6 at its width of 4096. Narrower layers take
larger steps, as everywhere here; that rule is reasoned, not measured for R2M."""
MIN_RESPONSES = 1024
"""Reference responses where something is compared with them: half of them are held out, and monitors need 500 of those."""

REMEDIES = {
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


def scorers(args: Align, reward: Any, gold: Any) -> Scorers:
    """Load rewards, detector, endogenous reward and gold, and refuse what they cannot do."""
    from rewarden.align.rewards.detector import DetectedSource
    from rewarden.align.rewards.sources import FunctionSource, ModelSource, load_source
    from rewarden.hf.scoring.endogenous import EndogenousScorer

    def source(given: Any, spec: str) -> RewardSource:
        if given is not None:
            return FunctionSource(given, getattr(given, "__name__", "the function given"), args.reward_timeout)
        return load_source(spec, layout=args.layout, batch_tokens=args.batch_tokens, timeout=args.reward_timeout)

    main = own = source(reward, args.reward)
    output = _try_out(args, own)
    if args.detector is not None:
        detector = load_source(args.detector, batch_tokens=args.batch_tokens)
        try:
            main = DetectedSource(own, detector)
        except ValueError as error:
            raise ValueError(f"--detector {args.detector}: {error}") from error
    _check_needs(args, output, has_latents=main.has_latents)
    if args.retrain_every is not None and main.has_latents and args.detector is None:
        raise ValueError(
            f"--retrain-every moves the latents of {args.reward}, and monitors and --ibl-weight compare them with those from the "
            f"start; give a model that stays as it is as --detector: {args.reward} itself will do, it is loaded a second time"
        )
    endogenous = None
    if args.endogenous is not None:
        endogenous = EndogenousScorer.load(args.endogenous, layout=args.layout, batch_tokens=args.batch_tokens)
    is_gold = gold is not None or args.gold is not None
    return Scorers(
        main, own.scorer if isinstance(own, ModelSource) else None, endogenous,
        source(gold, args.gold or "") if is_gold else None,
    )  # fmt: skip


def _try_out(args: Align, source: RewardSource) -> RewardOutput:
    """What the reward gives, seen on one completion; refuses a shaping that it has not got the members for."""
    import torch

    from rewarden.align.rewards.sources import FunctionSource
    from rewarden.core import RewardOutput

    if isinstance(source, FunctionSource):
        output = RewardOutput(torch.zeros(1))
    else:
        output = source(["Hello"], [["Hello!"]], [{}]).output
    try:
        args.chosen_shaping()(output)
    except ValueError as error:
        raise ValueError(f"--shaping {args.shaping} and --reward {args.reward}: {error}") from error
    return output


def _check_needs(args: Align, output: RewardOutput, *, has_latents: bool) -> None:
    """Refuse what asks for more than the reward gives, before anything is sampled."""
    from rewarden.monitors import MONITORS

    asked = {"--ibl-weight": frozenset({"latent"})} if args.ibl_weight else {}
    if args.stop_on is not None:
        asked[f"--stop-on {args.stop_on}"] = MONITORS[args.stop_on].needs
    there = {"latent": has_latents, "uncertainty": output.uncertainty is not None}
    for option, needs in asked.items():
        for signal, (what, remedy) in REMEDIES.items():
            if signal in needs and not there[signal]:
                raise ValueError(f"{option} needs {what}, and {args.reward} has none; {remedy}")


def responses(
    args: Align,
    accelerator: Accelerator,
    scorers: Scorers,
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    sampler: RolloutSampler,
    sampling: SamplingCopy,
) -> Responses:
    """The starting policy's responses: those stored by the run, or sampled now by the first process."""
    from rewarden.align import reference_responses
    from rewarden.align.agreement import on_main
    from rewarden.align.rewards.functions import RewardError

    is_compared = scorers.endogenous is not None or scorers.source.has_latents
    count = args.reference_responses or (MIN_RESPONSES if is_compared else 64)

    def sample() -> None:
        if reference_responses.load(args.output) is not None:
            return
        say(f"sampling {count:,} responses of the starting policy, to compare with")
        places = reference_responses.prompts_for(len(prompts), args.steps, args.prompts_per_step, count, args.seed)
        rollouts = reference_responses.sample(prompts, ids, places, sampler, sampling.model())
        found = reference_responses.score(rollouts, places, scorers.source, scorers.endogenous)
        reference_responses.store(args.output, rollouts, found)

    try:
        on_main(accelerator, sample)
    except RewardError as error:
        raise ValueError(
            f"responses of the starting policy: {error}. Nothing was trained yet; mend the reward and begin again with --resume"
        ) from error
    found = reference_responses.load(args.output)
    assert found is not None
    return found


def pipeline(
    args: Align, scorers: Scorers, responses: Responses, prompts: Sequence[Prompt], accelerator: Accelerator
) -> RewardPipeline:
    """What the policy is rewarded with: the shaped reward, and what else was asked for.

    Args:
        args: The options.
        scorers: What is asked about completions.
        responses: Of the starting policy.
        prompts: All that will be rewarded: those of the training first, as `responses` numbers them, then the held-out ones.
        accelerator: Joins the processes whose rewards are whitened together.
    """
    from rewarden.align.gather import Gather
    from rewarden.align.rewards import components
    from rewarden.align.rewards.pipeline import RewardPipeline

    parts = [components.shaped(args.chosen_shaping())]
    if responses.latent is not None:
        parts += _latent_penalty(args, responses, prompts)
    if scorers.endogenous is not None and args.endogenous_weight is not None:
        found = responses.endogenous
        assert found is not None
        mean, std = float(found.mean()), float(found.std())
        parts.append(components.endogenous_prior(scorers.endogenous, args.endogenous_weight, mean=mean, std=std))
    if args.length_penalty:
        parts.append(components.length_penalty(args.length_penalty, target=args.length_target or 0))
    if args.truncation_penalty is not None:
        parts.append(components.truncation_penalty(args.truncation_penalty))
    return RewardPipeline(scorers.source, parts, clip=args.reward_clip, whiten=args.whiten, gather=Gather(accelerator))


def _latent_penalty(args: Align, responses: Responses, prompts: Sequence[Prompt]) -> list[Component]:
    """IBL; without a weight the distance from all responses is only measured, and left out where that cannot be."""
    from rewarden.align.reference_responses import classes_of
    from rewarden.align.rewards import components
    from rewarden.monitors.mahalanobis import fit_reference

    assert responses.latent is not None
    latent = responses.latent.double()
    if not args.ibl_weight:
        try:
            return [components.latent_penalty(fit_reference(latent, covariance="ledoit-wolf"), 0.0)]
        except ValueError as error:
            say(f"distances in the latents are left out: {error}")
            return []
    if args.class_column is None:
        return [components.latent_penalty(fit_reference(latent, covariance=args.ibl_covariance), args.ibl_weight)]
    classes = classes_of(responses, prompts)
    fits = {}
    for name in dict.fromkeys(prompt.prompt_class for prompt in prompts):
        rows = latent[[each == name for each in classes]]
        try:
            fits[str(name)] = fit_reference(rows, covariance=args.ibl_covariance)
        except ValueError as error:
            raise ValueError(
                f"prompt class {name!r} has {len(rows)} of the {len(latent)} reference responses: {error}; or raise "
                "--reference-responses, or leave --class-column out"
            ) from error
    return [components.latent_penalty(fits, args.ibl_weight)]


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


def feedback(args: Align, reward_model: Scorer | None, policy: Policy) -> FeedbackReward | None:
    """R2M on top of the reward model; None without it."""
    from rewarden.align.r2m.feedback import FeedbackReward

    settings = args.chosen_feedback()
    if settings is None:
        return None
    if reward_model is None:
        raise ValueError(
            f"--r2m reads the hidden states of one reward model, and {args.reward} is not one; give a folder"
        )
    model = reward_model.model
    width = model.backbone.config.hidden_size
    if args.r2m_lr is None:
        settings = replace(settings, learning_rate=R2M_RATE / width)
    return FeedbackReward(
        settings, model.head, hidden_size=width,
        policy_hidden_size=policy.backbone.config.hidden_size, total_steps=args.steps, seed=args.seed, device=policy.device,
    )  # fmt: skip


def retraining(args: Align, reward_model: Scorer | None) -> RetrainingSteps | None:
    """Retraining of the whole reward model; None without it."""
    from rewarden.align.r2m.retraining_steps import RetrainingSteps

    if args.retrain_every is None:
        return None
    if reward_model is None:
        raise ValueError(f"--retrain-every trains one reward model, and {args.reward} is not one; give a folder")
    rate = 1e-6 if args.retrain_lr is None else args.retrain_lr
    return RetrainingSteps(reward_model, every=args.retrain_every, learning_rate=rate, seed=args.seed)
