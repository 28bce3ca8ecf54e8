from __future__ import annotations

from dataclasses import fields, replace

import pytest

from rewarden.cli import main
from rewarden.commands.options.align import Align
from rewarden.commands.options.align_checks import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    FINITE,
    check,
    check_processes,
)
from rewarden.commands.options.parse import parse
from rewarden.methods.policy_feedback import PolicyFeedback
from rewarden.rl.algorithms import GRPO
from rewarden.shaping import nominal, worst


def parsed(flags: str, reward: str = "models/a") -> Align:
    return parse(Align, f"--reward {reward} --prompts p.jsonl --output o {flags}".split(), command="rewarden align")


def test_the_defaults_are_fine() -> None:
    check(parsed(""))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps 0", "--steps is 0; it must be at least 1"),
        ("--prompts-per-step 0", "--prompts-per-step is 0"),
        ("--max-new-tokens -3", "--max-new-tokens is -3"),
        ("--batch-tokens 0", "--batch-tokens is 0"),
        ("--retrain-every 0", "--retrain-every is 0"),
        ("--kl-weight -1", "--kl-weight is -1.0; it must be at least 0"),
        ("--kl-weight nan", "--kl-weight is nan"),
        ("--length-penalty inf", "--length-penalty is inf"),
        ("--truncated penalty --truncation-penalty -1", "--truncation-penalty is -1.0"),
        ("--held-out -1", "--held-out is -1"),
        ("--lr 0", "--lr is 0.0; it must be above 0"),
        ("--lr nan", "--lr is nan"),
        ("--max-grad-norm 0", "--max-grad-norm is 0.0"),
        ("--reward-clip -1", "--reward-clip is -1.0"),
        ("--temperature 0", "--temperature is 0.0"),
        ("--endogenous m --endogenous-weight nan", "--endogenous-weight is nan"),
        ("--seed -1", "--seed is -1"),
        ("--reference-responses 1", "--reference-responses is 1"),
        ("--shaping mix --nominal-weight 1.5", "--nominal-weight is 1.5"),
        ("--shaping uwo --penalty -1", "--penalty is -1.0"),
        ("--top-p 0", "--top-p is 0.0"),
        ("--top-p 1.1", "--top-p is 1.1"),
        ("--top-k 1", "--top-k is 1"),
        ("--shaping mix", "--nominal-weight belongs to --shaping mix"),
        ("--truncated penalty", "--truncation-penalty belongs to"),
        ("--truncation-penalty 1", "--truncation-penalty belongs to"),
        ("--endogenous model", "--endogenous and --endogenous-weight belong together"),
        ("--endogenous-weight 1", "--endogenous and --endogenous-weight belong together"),
        ("--length-target 9", "--length-target does nothing"),
        ("--ibl-covariance ledoit-wolf", "--ibl-covariance does nothing"),
        ("--reward-timeout 9", "--reward-timeout is for Python functions"),
        ("--algorithm remax --whiten", "--whiten would take the difference"),
        ("--group-size 1", "--group-size is 1, and rloo compares"),
        ("--minibatches 9", "--minibatches is 9, and a step has 8 prompts"),
        ("--clip-low 0.1", "--clip-low, --clip-high and --surrogate do nothing with one update"),
        ("--surrogate sapo --algorithm grpo", "--clip-low, --clip-high and --surrogate do nothing with one update"),
        ("--clip-high 0.3 --algorithm ppo", "--clip-low, --clip-high and --surrogate do nothing with one update"),
        ("--kl-in loss", "--kl-weight is 0"),
        ("--algorithm grpo --kl-estimator k2", "--kl-weight is 0"),
        ("--lora-rank 4", "--lora-rank would do nothing without --lora"),
        ("--retrain-lr 1", "--retrain-lr does nothing"),
        ("--r2m --retrain-every 2", "choose one"),
        ("--r2m --algorithm remax", "take rloo or grpo"),
        ("--r2m-width 4", "options of R2M would do nothing"),
        ("--r2m --r2m-variant no-training --r2m-lr 1", "--r2m-lr does nothing with --r2m-variant no-training"),
        (
            "--r2m --r2m-variant no-bt --r2m-entropy-weight 0.5",
            "--r2m-entropy-weight does nothing with --r2m-variant no-bt",
        ),
        ("--r2m --r2m-variant head-only --r2m-floor 0.5", "--r2m-floor does nothing with --r2m-variant head-only"),
        ("--r2m --group-size 1 --algorithm ppo", "learns from at least 2 completions"),
        ("--r2m --r2m-variant no-bt --group-size 2", "learns from at least 3 completions"),
        ("--retrain-every 2 --group-size 1 --algorithm ppo", "--retrain-every pairs"),
        ("--gold g", "--gold judges held-out prompts"),
        ("--eval-every 5", "--eval-every is about held-out prompts"),
        ("--stop-on mop --reference-responses 999", "--stop-on mop needs 1000"),
    ],
)
def test_refused(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"--") as caught:
        check(parsed(flags)) if "R2M" not in message else parsed(flags).chosen_feedback()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--clip-high 0.3 --policy-epochs 2",
        "--clip-low 0.1 --minibatches 2",
        "--algorithm grpo --kl-weight 0.1 --kl-estimator k2",
        "--kl-weight 0.1 --kl-in loss",
        "--group-size 1 --algorithm ppo",
        "--group-size 1 --algorithm remax",
        "--r2m --r2m-variant no-bt --group-size 3",
        "--r2m --r2m-entropy-weight 0.5",
        "--stop-on mop --reference-responses 1000",
        "--held-out 4 --eval-every 5 --gold g.py:gold --reward-timeout 5",
        "--lora --lora-rank 4",
        "--whiten --algorithm ppo",
    ],
)
def test_allowed(flags: str) -> None:
    check(parsed(flags))


def test_what_options_come_to_is_made_once() -> None:
    found = check(parsed("--algorithm grpo --kl-weight 0.5 --shaping worst --r2m --lora --lora-rank 3"))
    assert (found.algorithm, found.shaping) == (replace(GRPO, kl_weight=0.5), worst)
    assert found.feedback == PolicyFeedback() and found.adapters.rank == 3
    assert check(parsed(""))[1:] == (None, nominal, None)


@pytest.mark.parametrize(
    ("flags", "processes", "message"),
    [
        ("", 3, "--prompts-per-step is 8 for 3 processes; take a multiple of that"),
        ("--minibatches 3", 4, "--minibatches is 3, and each of 4 processes has 2 prompts of a step"),
    ],
)
def test_shares_of_processes_come_out_even(flags: str, processes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_processes(parsed(flags), processes)
    check_processes(parsed("--minibatches 2"), 4)


def test_functions_stand_in_for_options() -> None:
    check(parsed("--reward-timeout 9", reward="my.py:reward"))
    check(parsed("--reward-timeout 9"), given_reward=True)
    check(parsed("--reward-timeout 9 --held-out 2"), given_gold=True)
    with pytest.raises(ValueError, match="--gold judges held-out prompts"):
        check(parsed(""), given_gold=True)


def test_every_number_has_a_range() -> None:
    """An option that is added without one shows up here."""
    covered = {*AT_LEAST_ONE, *AT_LEAST_ZERO, *ABOVE_ZERO, *FINITE, "seed", "reference_responses", "nominal_weight"}
    elsewhere = {
        "top_p", "top_k", "kl_weight", "clip_low", "clip_high", "discount", "gae_lambda", "value_weight", "lora_rank",
        "lora_alpha", "r2m_width", "r2m_floor", "r2m_entropy_weight", "r2m_lr",
    }  # fmt: skip
    numbers = {field.name for field in fields(Align) if "int" in str(field.type) or "float" in str(field.type)}
    assert numbers == covered | elsewhere


def test_nothing_is_loaded_or_written(tmp_path, capsys) -> None:
    """Neither policy nor reward nor prompts exist, and the option is what is complained about."""
    flags = f"--policy nowhere --reward nowhere --prompts nowhere.jsonl --output {tmp_path / 'o'} --lr -1"
    assert main(["align", *flags.split()]) == 2
    assert capsys.readouterr().err == "rewarden: --lr is -1.0; it must be above 0\n"
    assert not (tmp_path / "o").exists()
