"""From the options of `rewarden align` to a run, and from a run to what it leaves behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rewarden.commands.build import align_folder, align_rewards
from rewarden.commands.build.align_checks import check
from rewarden.commands.output.provenance import say

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rewarden.align.held_out import HeldOut
    from rewarden.align.loop import Run
    from rewarden.align.policy import Policy
    from rewarden.align.prompts import Prompt
    from rewarden.align.step import PolicyStep
    from rewarden.align.update import Learner
    from rewarden.commands.build.align_outputs import Finish
    from rewarden.commands.options.align import Align


def build(
    args: Align, *, reward: Callable[..., Any] | None, gold: Callable[..., Any] | None, prompts: Any
) -> tuple[Run, Finish]:
    """Load everything, and go back to the last checkpoint where the run is resumed.

    Raises:
        ValueError: As `rewarden.commands.align.align`.
    """
    from rewarden.align.guards import LeaveOutTruncated
    from rewarden.align.held_out import HeldOut
    from rewarden.align.policy import ReferencePolicy, SamplingCopy
    from rewarden.align.step import PolicyStep, StepPlan
    from rewarden.commands.build.align_outputs import Finish

    check(args, given_reward=reward is not None, given_gold=gold is not None)
    accelerator = _accelerator(args)
    settings = align_folder.settings_of(args, reward, gold)
    align_folder.look(args, settings)
    texts, held_out = _prompts(args, prompts)
    settings[align_folder.PROMPTS] = align_folder.fingerprint([*texts, *held_out])
    policy, tokenizer = _policy(args)
    ids, held_out_ids = (
        _encoded(args, policy, tokenizer, each, name)
        for each, name in ((texts, "prompts"), (held_out, "held-out prompts"))
    )
    dtype = _dtype(args)
    sampling = SamplingCopy(policy, dtype)
    sampler = _sampler(args, tokenizer)
    scorers = align_rewards.scorers(args, reward, gold)
    feedback = align_rewards.feedback(args, scorers.reward_model, policy)
    retraining = align_rewards.retraining(args, scorers.reward_model)
    # Only now is the folder touched: a mistyped option costs no earlier run, and leaves nothing behind.
    align_folder.claim(args, settings, accelerator)
    responses = align_rewards.responses(args, accelerator, scorers, texts, ids, sampler, sampling)
    lr = _learning_rate(args, policy)
    make_step = PolicyStep(
        plan=StepPlan(args.prompts_per_step, args.seed, lr, args.warmup_steps),
        prompts=texts,
        ids=ids,
        sampler=sampler,
        sampling=sampling,
        policy=policy,
        learner=_learner(accelerator, policy, lr),
        reference=ReferencePolicy(policy),
        updater=_updater(args, policy, dtype),
        pipeline=align_rewards.pipeline(args, scorers, responses, [*texts, *held_out], accelerator),
        monitors=align_rewards.monitors(responses, stop_on=args.stop_on),
        guards=[LeaveOutTruncated()] if args.truncated == "mask" else [],
        feedback=feedback,
        retraining=retraining,
    )
    run = _run(args, make_step, HeldOut(held_out, held_out_ids, scorers.gold) if held_out else None)
    align_folder.record(args, settings, run)
    accelerator.init_trackers("rewarden-align", config={key: str(value) for key, value in settings.items()})
    if args.resume:
        _resume(args, run)
    return run, Finish(args.output, run, tokenizer)


def _learner(accelerator: Accelerator, policy: Policy, lr: float) -> Learner:
    import torch

    from rewarden.align.update import Learner

    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    wrapped = policy if accelerator.num_processes == 1 else accelerator.prepare(policy)
    return Learner(accelerator, wrapped, torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=True))


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


def _accelerator(args: Align) -> Accelerator:
    import torch
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    from rewarden.hf import distributed

    distributed.start()
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "FSDP was asked for, and policies are trained with DDP or in one process; leave --use_fsdp out"
        )
    known = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in args.report_to:
        if name not in known:
            raise ValueError(
                f"--report-to {name}: no such tracker is installed; there are {', '.join(known) or 'none'}; install its package"
            )
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), log_with=list(args.report_to) or None,
        project_dir=str(args.output),
    )  # fmt: skip
    processes_here = accelerator.num_processes
    if args.prompts_per_step % processes_here:
        raise ValueError(
            f"--prompts-per-step is {args.prompts_per_step} for {processes_here} processes; take a multiple of that"
        )
    if args.minibatches > args.prompts_per_step // processes_here:
        raise ValueError(
            f"--minibatches is {args.minibatches}, and each of {processes_here} processes has "
            f"{args.prompts_per_step // processes_here} prompts of a step; every minibatch needs one: take fewer"
        )
    return accelerator


def _prompts(args: Align, given: Any) -> tuple[list[Prompt], list[Prompt]]:
    from rewarden.align.prompts import load_prompts, split_held_out

    found = load_prompts(args.prompts if given is None else given, class_column=args.class_column)
    rest, held_out = split_held_out(found.prompts, args.held_out, args.seed)
    say(
        f"prompts: {len(found.prompts) + found.duplicates:,} read, {len(rest):,} to train on"
        + (f", {len(held_out):,} held out" if held_out else "")
        + (f", {found.duplicates:,} that repeat others left out" if found.duplicates else "")
    )
    return rest, held_out


def _policy(args: Align) -> tuple[Policy, Any]:
    import torch

    from rewarden.align.policy import Policy
    from rewarden.hf.model.adapters import add_lora
    from rewarden.hf.model.loading import load_tokenizer

    lora = args.plain_adapters()
    tokenizer = load_tokenizer(args.policy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        policy = Policy.load(args.policy, layout=args.layout, has_values=args.chosen_algorithm().has_values)
    if lora is not None:
        add_lora(policy, lora, seed=args.seed)
    return policy.to(policy.device), tokenizer


def _encoded(args: Align, policy: Policy, tokenizer: Any, prompts: Sequence[Prompt], name: str) -> list[list[int]]:
    from rewarden.align.prompts import encode_prompts
    from rewarden.hf.model.context import Context

    if not prompts:
        return []
    context = Context.of(args.policy, policy.backbone)
    room = args.max_prompt_length
    if context.positions is not None:
        room = min(room, context.positions - args.max_new_tokens)
    if room < 1:
        raise ValueError(
            f"--max-new-tokens is {args.max_new_tokens}, and {args.policy} reads {context.positions} tokens at most, which "
            "leaves no room for a prompt; take fewer"
        )
    found = encode_prompts(tokenizer, prompts, max_length=room, raw=args.raw)
    context.check_ids(tokenizer, found.ids)
    if found.truncated:
        why = "" if room == args.max_prompt_length else f", what {args.policy} has room for"
        say(f"{name}: {found.truncated:,} of {len(prompts):,} cut from the left to {room} tokens{why}")
    empty = [prompt.row for prompt, ids in zip(prompts, found.ids, strict=True) if not ids]
    if empty:
        raise ValueError(f"row {empty[0]}: the prompt has no tokens, so nothing can be continued; leave the row out")
    return found.ids


def _dtype(args: Align) -> Any:
    import torch

    from rewarden.hf.training import fit

    is_bf16 = args.precision == "bf16" or (args.precision == "auto" and fit.bf16_pays())
    return torch.bfloat16 if is_bf16 else torch.float32


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


def _updater(args: Align, policy: Policy, dtype: Any) -> Any:
    from rewarden.align.update import Updater

    return Updater(
        algorithm=args.chosen_algorithm(), temperature=args.temperature,
        longest=args.max_new_tokens, epochs=args.policy_epochs, minibatches=args.minibatches,
        batch_tokens=args.batch_tokens or (4096 if policy.device.type == "cpu" else 16384),
        max_grad_norm=args.max_grad_norm, seed=args.seed, dtype=dtype,
    )  # fmt: skip
