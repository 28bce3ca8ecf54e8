"""What `rewarden align` refuses before it loads anything: values out of range, and options that would do nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from rewarden.monitors import MONITORS

if TYPE_CHECKING:
    from rewarden.commands.options.align import Align
    from rewarden.hf.model.adapters import Lora
    from rewarden.methods.policy_feedback import PolicyFeedback
    from rewarden.rl.algorithms import Algorithm
    from rewarden.shaping import Shaping

AT_LEAST_ONE = (
    "steps", "prompts_per_step", "group_size", "max_new_tokens", "max_prompt_length", "max_rows", "policy_epochs",
    "minibatches", "eval_every", "save_every", "report_every", "keep_checkpoints", "retrain_every", "batch_tokens",
)  # fmt: skip
AT_LEAST_ZERO = (
    "ibl_weight", "length_penalty", "length_target", "truncation_penalty", "warmup_steps", "held_out", "penalty",
)  # fmt: skip
ABOVE_ZERO = ("lr", "max_grad_norm", "reward_clip", "reward_timeout", "retrain_lr", "temperature")
FINITE = ("endogenous_weight",)
IDLE = {
    "no-training": ("--r2m-entropy-weight", "--r2m-lr"),
    "no-bt": ("--r2m-entropy-weight",),
    "no-gre": ("--r2m-entropy-weight",),
    "head-only": ("--r2m-width", "--r2m-floor"),
}
"""Options of R2M that a comparator has no use for, or that would make it another one."""
SEEDS = 2**63
"""Seeds are below this, as torch has it."""


class Choices(NamedTuple):
    """What options come to, checked; made once for a run."""

    algorithm: Algorithm
    feedback: PolicyFeedback | None
    shaping: Shaping
    adapters: Lora | None


def check(args: Align, *, given_reward: bool = False, given_gold: bool = False) -> Choices:
    """Refuse what cannot work.

    Args:
        args: The options.
        given_reward: Whether a Python function stands in for --reward.
        given_gold: The same for --gold.

    Returns:
        What the options come to.

    Raises:
        ValueError: Naming the option.
    """
    _check_ranges(args)
    choices = Choices(args.chosen_algorithm(), args.chosen_feedback(), args.chosen_shaping(), args.plain_adapters())
    _check_sampling(args)
    has_gold = given_gold or args.gold is not None
    is_function = given_reward or given_gold or any(map(_is_function, (args.reward, args.gold or "")))
    refusals = (
        _rewards(args, is_function=is_function), _updates(args, choices.algorithm), _feedback(args, choices.feedback),
        _watching(args, has_gold=has_gold),
    )  # fmt: skip
    for found in refusals:
        for is_wrong, message in found:
            if is_wrong:
                raise ValueError(message)
    return choices


def check_processes(args: Align, processes: int) -> None:
    """Refuse shares of a step that do not come out even, or are too small.

    Raises:
        ValueError: Naming the option.
    """
    if args.prompts_per_step % processes:
        raise ValueError(
            f"--prompts-per-step is {args.prompts_per_step} for {processes} processes; take a multiple of that"
        )
    if args.minibatches > args.prompts_per_step // processes:
        raise ValueError(
            f"--minibatches is {args.minibatches}, and each of {processes} processes has "
            f"{args.prompts_per_step // processes} prompts of a step; every minibatch needs one: take fewer"
        )


def _is_function(spec: str) -> bool:
    return spec.rpartition(":")[0].endswith(".py")


def _check_ranges(args: Align) -> None:
    for names, is_right, expected in (
        (AT_LEAST_ONE, lambda value: 1 <= value < math.inf, "must be at least 1"),
        (AT_LEAST_ZERO, lambda value: 0 <= value < math.inf, "must be at least 0"),
        (ABOVE_ZERO, lambda value: 0 < value < math.inf, "must be above 0"),
        (FINITE, math.isfinite, "must be a finite number"),
        (("seed",), lambda value: 0 <= value < SEEDS, "must be from 0 to 2^63 - 1"),
        (("reference_responses",), lambda value: value >= 2, "must be at least 2, for there to be a spread"),
        (("nominal_weight",), lambda value: 0 <= value <= 1, "must be from 0 to 1"),
    ):
        for name in names:
            value = getattr(args, name)
            if value is not None and not is_right(value):
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it {expected}")


def _check_sampling(args: Align) -> None:
    if not 0 < args.top_p <= 1:
        raise ValueError(f"--top-p is {args.top_p}; it must be above 0 and at most 1, which samples from everything")
    if args.top_k is not None and args.top_k < 2:
        raise ValueError(
            f"--top-k is {args.top_k}; it must be at least 2, or all completions of a prompt are the same; leave it out to "
            "sample from everything"
        )


Refusals = Iterator[tuple[bool, str]]
"""Whether something is wrong, and what to say then."""


def _rewards(args: Align, *, is_function: bool) -> Refusals:
    yield (
        (args.truncated == "penalty") != (args.truncation_penalty is not None),
        "--truncation-penalty belongs to --truncated penalty: give both or neither",
    )
    yield (
        (args.endogenous is None) != (args.endogenous_weight is None),
        "--endogenous and --endogenous-weight belong together: give both or neither",
    )
    yield (
        args.length_target is not None and args.length_penalty == 0,
        "--length-target does nothing without --length-penalty; add it or leave the target out",
    )
    yield (
        args.ibl_covariance != "empirical" and args.ibl_weight == 0,
        "--ibl-covariance does nothing without --ibl-weight; add it or leave the covariance out",
    )
    yield (
        args.reward_timeout is not None and not is_function,
        "--reward-timeout is for Python functions, and neither --reward nor --gold is one; leave it out",
    )
    yield (
        args.reward_process and not is_function,
        "--reward-process is for Python functions, and neither --reward nor --gold is one; leave it out",
    )
    yield (
        args.whiten and args.algorithm == "remax",
        "--whiten would take the difference between sampled and greedy completions away, which is all that remax learns from; "
        "leave it out, or take another algorithm",
    )


def _updates(args: Align, algorithm: Algorithm) -> Refusals:
    yield (
        args.group_size < algorithm.min_group,
        f"--group-size is {args.group_size}, and {args.algorithm} compares the completions of a prompt; take at least 2",
    )
    yield (
        args.minibatches > args.prompts_per_step,
        f"--minibatches is {args.minibatches}, and a step has {args.prompts_per_step} prompts; every minibatch needs one: take "
        "fewer, or raise --prompts-per-step",
    )
    is_clipping = args.clip_low is not None or args.clip_high is not None or args.surrogate != "clipped"
    yield (
        is_clipping and args.policy_epochs * args.minibatches == 1,
        "--clip-low, --clip-high and --surrogate do nothing with one update a step: the policy that wrote the completions is the "
        "one that is updated, so all ratios are 1; add --policy-epochs or --minibatches, or leave them out",
    )
    yield (
        args.kl_weight == 0 and (args.kl_in is not None or args.kl_estimator is not None),
        "--kl-in and --kl-estimator say how a divergence is charged, and --kl-weight is 0; add a weight or leave them out",
    )


def _feedback(args: Align, feedback: PolicyFeedback | None) -> Refusals:
    yield (
        args.retrain_lr is not None and args.retrain_every is None,
        "--retrain-lr does nothing without --retrain-every; add it or leave the rate out",
    )
    yield (
        args.r2m and args.retrain_every is not None,
        "--r2m learns on top of a frozen reward model, and --retrain-every trains all of it; choose one",
    )
    given = {
        "--r2m-width": args.r2m_width, "--r2m-floor": args.r2m_floor, "--r2m-entropy-weight": args.r2m_entropy_weight,
        "--r2m-lr": args.r2m_lr,
    }  # fmt: skip
    for name in IDLE.get(args.r2m_variant or "", ()):
        yield (
            given[name] is not None,
            f"{name} does nothing with --r2m-variant {args.r2m_variant}; leave one of them out",
        )
    yield (
        args.r2m and args.algorithm == "remax",
        "--algorithm remax compares with greedy completions, which --r2m does not read; take rloo or grpo",
    )
    if feedback is not None:
        least = 3 if feedback.entropy_weight == 1 else 2
        yield (
            args.group_size < least,
            f"--group-size is {args.group_size}, and --r2m learns from at least {least} completions of a prompt; take "
            "larger groups",
        )
    yield (
        args.retrain_every is not None and args.group_size < 2,
        f"--group-size is {args.group_size}, and --retrain-every pairs the best completion of a prompt with its worst; take at "
        "least 2",
    )


def _watching(args: Align, *, has_gold: bool) -> Refusals:
    yield (
        has_gold and args.held_out == 0,
        "--gold judges held-out prompts, and none are held out; add --held-out 32, or leave it out",
    )
    yield (
        args.eval_every != 25 and args.held_out == 0,
        "--eval-every is about held-out prompts, and none are held out; add --held-out 32, or leave it out",
    )
    if args.stop_on is not None and args.reference_responses is not None:
        needed = MONITORS[args.stop_on]().least_reference
        yield (
            args.reference_responses < needed,
            f"--reference-responses is {args.reference_responses}, and --stop-on {args.stop_on} needs {needed}; take more, or "
            "another monitor",
        )
