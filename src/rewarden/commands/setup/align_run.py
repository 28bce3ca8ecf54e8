"""From the options of `rewarden align` to a run, and from a run to what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rewarden.commands.options.align_checks import Choices, check, check_processes
from rewarden.commands.output.provenance import say
from rewarden.commands.setup import align_folder, align_policy, align_rewards
from rewarden.monitors import MONITORS

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from rewarden.align.held_out import HeldOut
    from rewarden.align.loop import Run
    from rewarden.align.policy import Policy
    from rewarden.align.prompts import Prompt
    from rewarden.align.reference_responses import Responses
    from rewarden.align.rewards.pipeline import RewardPipeline
    from rewarden.align.rollouts import Rollouts
    from rewarden.align.step import PolicyStep
    from rewarden.commands.options.align import Align
    from rewarden.commands.setup.align_outputs import Finish
    from rewarden.commands.setup.align_rewards import Scorers
    from rewarden.monitors.monitor import Signal


def build(
    args: Align, *, reward: Callable[..., Any] | None, gold: Callable[..., Any] | None, prompts: Any
) -> tuple[Run, Finish]:
    """Load everything, and go back to the last checkpoint where the run is resumed.

    Raises:
        ValueError: As `rewarden.commands.align.align`.
    """
    from rewarden.align import reference_responses
    from rewarden.align.guards import LeaveOutTruncated
    from rewarden.align.held_out import HeldOut
    from rewarden.align.policy import ReferencePolicy, SamplingCopy
    from rewarden.align.step import PolicyStep, StepPlan
    from rewarden.commands.setup.align_outputs import Finish

    choices = check(args, given_reward=reward is not None, given_gold=gold is not None)
    accelerator = align_policy.accelerator(args.report_to, args.output)
    check_processes(args, accelerator.num_processes)
    settings = align_folder.settings_of(args, reward, gold)
    align_folder.look(args, settings)
    texts, held_out = _prompts(args, prompts)
    settings[align_folder.PROMPTS] = align_folder.fingerprint([*texts, *held_out])
    policy, tokenizer = _policy(args, choices)
    room = align_policy.PromptRoom(args.policy, args.max_prompt_length, args.max_new_tokens, args.raw)
    ids = align_policy.encoded(room, policy, tokenizer, texts, "prompts")
    held_out_ids = align_policy.encoded(room, policy, tokenizer, held_out, "held-out prompts")
    dtype = align_policy.dtype(args.precision)
    sampling = SamplingCopy(policy, dtype)
    sampler = _sampler(args, tokenizer)
    scorers = load_scorers(args, choices, reward, gold)
    learning = _learning(args, choices, scorers, policy)
    # Only now is the folder touched: a mistyped option costs no earlier run, and leaves nothing behind.
    align_folder.claim(args, settings, accelerator)
    responses = _responses(
        args, accelerator, scorers, len(texts),
        lambda places: reference_responses.sample(texts, ids, places, sampler, sampling.model()),
    )  # fmt: skip
    lr = _learning_rate(args, policy)
    make_step = PolicyStep(
        plan=StepPlan(args.prompts_per_step, args.seed, lr, args.warmup_steps),
        prompts=texts,
        ids=ids,
        sampler=sampler,
        sampling=sampling,
        policy=policy,
        learner=align_policy.learner(accelerator, policy, lr),
        reference=ReferencePolicy(policy),
        updater=_updater(args, choices, policy, dtype),
        pipeline=reward_pipeline(args, choices, scorers, responses, [*texts, *held_out], accelerator),
        monitors=align_rewards.monitors(responses, stop_on=args.stop_on),
        guards=[LeaveOutTruncated()] if args.truncated == "mask" else [],
        **learning,
    )
    run = _run(args, make_step, HeldOut(held_out, held_out_ids, scorers.gold) if held_out else None)
    align_folder.record(args, settings, run)
    accelerator.init_trackers("rewarden-align", config={key: str(value) for key, value in settings.items()})
    if args.resume:
        _resume(args, run)
    return run, Finish(args.output, run, tokenizer)


def load_scorers(args: Align, choices: Choices, reward: Any, gold: Any) -> Scorers:
    """Load rewards, detector, endogenous reward and gold, and refuse what they cannot do.

    Raises:
        ValueError: When one cannot be loaded, or an option asks for what the reward has not got.
    """
    from rewarden.align.rewards.sources import ModelSource

    loader = align_rewards.SourceLoader(
        args.layout, args.batch_tokens, args.reward_timeout, args.reward_process, args.steps
    )
    source = own = loader.source(args.reward, reward)
    output = align_rewards.tried_out(own)
    try:
        choices.shaping(output)
    except ValueError as error:
        raise ValueError(f"--shaping {args.shaping} and --reward {args.reward}: {error}") from error
    if args.detector is not None:
        source = loader.detected(own, args.detector)
    asked: dict[str, frozenset[Signal]] = {}
    if args.ibl_weight:
        asked["--ibl-weight"] = frozenset({"latent"})
    if args.stop_on is not None:
        asked[f"--stop-on {args.stop_on}"] = MONITORS[args.stop_on].needs
    there: dict[Signal, bool] = {"latent": source.has_latents, "uncertainty": output.uncertainty is not None}
    align_rewards.check_needs(asked, there, args.reward)
    if args.retrain_every is not None and source.has_latents and args.detector is None:
        raise ValueError(
            f"--retrain-every moves the latents of {args.reward}, and monitors and --ibl-weight compare them with those from the "
            f"start; give a model that stays as it is as --detector: {args.reward} itself will do, it is loaded a second time"
        )
    return align_rewards.Scorers(
        source,
        own.scorer if isinstance(own, ModelSource) else None,
        None if args.endogenous is None else loader.endogenous(args.endogenous),
        loader.source(args.gold or "", gold) if gold is not None or args.gold is not None else None,
    )


def reward_pipeline(
    args: Align,
    choices: Choices,
    scorers: Scorers,
    responses: Responses,
    prompts: Sequence[Prompt],
    accelerator: Accelerator,
) -> RewardPipeline:
    """What the policy is rewarded with: the shaped reward, and what else was asked for."""
    from rewarden.align.gather import Gather
    from rewarden.align.rewards import components
    from rewarden.align.rewards.pipeline import RewardPipeline

    pricing = align_rewards.LatentPricing(args.ibl_weight, args.ibl_covariance, args.class_column is not None)
    parts = [components.shaped(choices.shaping), *align_rewards.latent_penalty(pricing, responses, prompts)]
    if args.endogenous_weight is not None:
        parts.append(align_rewards.endogenous_prior(scorers, responses, args.endogenous_weight))
    if args.length_penalty:
        parts.append(components.length_penalty(args.length_penalty, target=args.length_target or 0))
    if args.truncation_penalty is not None:
        parts.append(components.truncation_penalty(args.truncation_penalty))
    return RewardPipeline(scorers.source, parts, clip=args.reward_clip, whiten=args.whiten, gather=Gather(accelerator))


def _learning(args: Align, choices: Choices, scorers: Scorers, policy: Policy) -> dict[str, Any]:
    """What learns beside the policy: "feedback" of R2M, "retraining" of the whole reward model."""
    from rewarden.align.r2m.retraining_steps import RetrainingSteps

    found: dict[str, Any] = {"feedback": None, "retraining": None}
    if choices.feedback is not None:
        scorer = align_rewards.one_model(scorers, "--r2m", "reads the hidden states of", args.reward)
        found["feedback"] = align_rewards.feedback(
            choices.feedback, scorer.model, policy, steps=args.steps, seed=args.seed, scale_rate=args.r2m_lr is None
        )
    if args.retrain_every is not None:
        scorer = align_rewards.one_model(scorers, "--retrain-every", "trains", args.reward)
        rate = 1e-6 if args.retrain_lr is None else args.retrain_lr
        found["retraining"] = RetrainingSteps(scorer, every=args.retrain_every, learning_rate=rate, seed=args.seed)
    return found


def _responses(
    args: Align, accelerator: Accelerator, scorers: Scorers, prompts: int, draw: Callable[[list[int]], Rollouts]
) -> Responses:
    """The starting policy's responses to as many of the prompts as are compared with."""
    from rewarden.align.reference_responses import prompts_for

    is_compared = scorers.endogenous is not None or scorers.source.has_latents
    count = args.reference_responses or (align_rewards.MIN_RESPONSES if is_compared else 64)
    places = prompts_for(prompts, args.steps, args.prompts_per_step, count, args.seed)
    return align_rewards.responses(args.output, accelerator, scorers, places, lambda: draw(places))


def _prompts(args: Align, given: Any) -> tuple[list[Prompt], list[Prompt]]:
    source = args.prompts if given is None else given
    return align_policy.prompts(source, class_column=args.class_column, held_out=args.held_out, seed=args.seed)


def _policy(args: Align, choices: Choices) -> tuple[Policy, PreTrainedTokenizerBase]:
    has_values, adapters = choices.algorithm.has_values, choices.adapters
    return align_policy.policy(
        args.policy, layout=args.layout, has_values=has_values, adapters=adapters, seed=args.seed
    )


def _run(args: Align, make_step: PolicyStep, held_out: HeldOut | None) -> Run:
    from rewarden.align.loop import Run, RunPlan
    from rewarden.align.store import RunStore

    plan = RunPlan(args.steps, args.save_every, args.eval_every, args.report_every, args.stop_on)
    return Run(plan, make_step, RunStore(args.output, make_step, args.keep_checkpoints), held_out)


def _resume(args: Align, run: Run) -> None:
    from rewarden.align import checkpoints
    from rewarden.align.agreement import on_main

    step = on_main(run.accelerator, lambda: checkpoints.newest_whole(args.output))
    if step is None:
        say(f"--resume: nothing was saved in {args.output}; starting from the beginning")
        return
    run.store.restore(step)
    is_over = run.is_stopped or step >= args.steps
    say(f"continuing after step {step}" + (", which was the last one" if is_over else ""))


def _learning_rate(args: Align, policy: Policy) -> float:
    if args.lr is not None:
        return args.lr
    return (10 if args.lora else 1) * 0.0075 / policy.backbone.config.get_text_config().hidden_size


def _sampler(args: Align, tokenizer: Any) -> Any:
    from rewarden.align.rollouts import RolloutSampler
    from rewarden.hf.generation.token_choice import Sampling

    sampling = Sampling(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k
    )
    return RolloutSampler(tokenizer, sampling, args.group_size, args.seed, args.max_rows)


def _updater(args: Align, choices: Choices, policy: Policy, dtype: Any) -> Any:
    from rewarden.align.update import Updater

    return Updater(
        algorithm=choices.algorithm, temperature=args.temperature,
        longest=args.max_new_tokens, epochs=args.policy_epochs, minibatches=args.minibatches,
        batch_tokens=args.batch_tokens or (4096 if policy.device.type == "cpu" else 16384),
        max_grad_norm=args.max_grad_norm, seed=args.seed, dtype=dtype,
    )  # fmt: skip
