"""Options of `rewarden align`, grouped by what they are about; `Align` has them all as its own fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rewarden.commands.options.adapters import AdapterOptions
from rewarden.commands.options.shaping import ShapingOptions
from rewarden.monitors import MONITORS
from rewarden.rl.algorithms import ALGORITHMS, ESTIMATORS, Algorithm, changed
from rewarden.rl.surrogates import SURROGATES

if TYPE_CHECKING:
    from rewarden.methods.policy_feedback import PolicyFeedback

    AlgorithmName = str
    SurrogateName = str
    EstimatorName = str
    MonitorName = str
else:  # what may be said is what the tables have
    AlgorithmName, SurrogateName = Literal[tuple(ALGORITHMS)], Literal[tuple(SURROGATES)]
    EstimatorName, MonitorName = Literal[tuple(ESTIMATORS)], Literal[tuple(MONITORS)]


@dataclass(frozen=True, kw_only=True)
class AlignRunOptions:
    """From what to where."""

    reward: str
    """What the policy is rewarded by: a folder that `rewarden train` wrote, several joined by + (A+B+C), or a Python function,
    FILE.py:NAME, that takes prompts, completions and the other columns and returns a number for each completion."""
    prompts: str
    """Rows with "prompt", text or messages: .jsonl, .jsonl.gz, .parquet, or a data set on the hub. Files of pairs will do."""
    output: Path
    """Folder of the run; at the end also the trained policy, as a plain Hugging Face folder."""
    policy: str = "rewarden-tiny"
    """The language model that is trained: a folder, a hub id, or the embedded rewarden-tiny."""
    steps: int = 100
    """Policy updates from fresh completions."""
    seed: int = 0
    """Decides prompts, completions and fresh weights; on CPU the same seed gives the same policy."""
    resume: bool = False
    """Continue a run that was stopped, from its last checkpoint in OUTPUT, also with more --steps."""
    overwrite: bool = False
    """Replace a run in OUTPUT, once everything has been loaded."""
    json: bool = False
    """Print a summary as JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """What is sampled at every step."""

    prompts_per_step: int = 8
    """Prompts per step, over all processes."""
    group_size: int = 8
    """Completions per prompt."""
    max_new_tokens: int = 128
    """Tokens of a completion."""
    max_prompt_length: int = 512
    """Tokens of a prompt; longer ones are cut from the left, as are those that leave no room for the completion."""
    temperature: float = 1.0
    """Of sampling; the policy is optimised at the same temperature."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability."""
    top_k: int | None = None
    """Sample from the most probable tokens only."""
    truncated: Literal["keep", "mask", "penalty"] = "keep"
    """Completions cut at the limit: like any other, left out of the loss, or rewarded --truncation-penalty less."""
    truncation_penalty: float | None = None
    """Reward units; needed with --truncated penalty, refused without."""
    raw: bool = False
    """Do not put plain text through the policy's chat template."""
    class_column: str | None = None
    """Column with the class of a prompt; with --ibl-weight distances are then measured within classes."""
    max_rows: int = 256
    """Completions that are sampled at once, but at least those of one prompt; memory, not results."""


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """What a completion is rewarded with besides its shaped reward."""

    ibl_weight: float = 0.0
    """IBL: price of one unit of Mahalanobis distance, in the reward model's latents, from the starting policy's responses."""
    ibl_covariance: Literal["empirical", "ledoit-wolf"] = "empirical"
    """Covariance of that distance: as in the released code, or shrunk."""
    endogenous: str | None = None
    """A language model whose endogenous reward is added."""
    endogenous_weight: float | None = None
    """Reward units per standard deviation of the endogenous reward; needed with --endogenous, refused without."""
    length_penalty: float = 0.0
    """Price of a token, in reward units; with --length-target only of those beyond it."""
    length_target: int | None = None
    """Tokens that cost nothing."""
    reward_clip: float | None = None
    """Keep rewards between minus and plus this."""
    whiten: bool = False
    """Shift and scale rewards to mean 0 and standard deviation 1 over the step."""
    reward_timeout: float | None = None
    """Seconds that a Python function may take for a step. Default: any time, with a warning after 30 s."""
    reward_process: bool = False
    """Call Python functions in a process of their own, which --reward-timeout kills, whatever they hold."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions:
    """How the policy is updated. Defaults that depend on the algorithm are those of its paper."""

    algorithm: AlgorithmName = "rloo"
    """Policy-gradient algorithm."""
    kl_weight: float = 0.0
    """Price of one nat of divergence from the starting policy; measured and logged in any case."""
    kl_in: Literal["reward", "loss"] | None = None
    """Where it is charged. Default: in the loss for grpo and dr-grpo, in the reward for the others."""
    kl_estimator: EstimatorName | None = None
    """How it is estimated in the loss; in the reward it is k1. Default: k3 in the loss."""
    surrogate: SurrogateName = "clipped"
    """With several updates a step, for grpo, dr-grpo and ppo: PPO's clipped minimum, or one that keeps a gradient everywhere:
    bounded weights, a soft gate, or soft weights of whole completions."""
    clip_low: float | None = None
    """With several updates a step: ratios of new to old probability count down to 1 - clip_low. Default: 0.2."""
    clip_high: float | None = None
    """They count up to 1 + clip_high; more than clip_low is DAPO's clip-higher. Default: 0.2; 4 for --surrogate cispo."""
    aggregation: Literal["per-sequence", "per-token", "constant-length"] | None = None
    """How token losses are averaged; rloo and remax average completions. Default: per-sequence for grpo, constant-length for
    dr-grpo, per-token for ppo."""
    policy_epochs: int = 1
    """How often a step's completions are used."""
    minibatches: int = 1
    """Into how many updates an epoch is split."""
    lr: float | None = None
    """Learning rate of the policy. Default: 0.0075 / hidden size; ten times that for --lora."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises; constant afterwards."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    discount: float | None = None
    """Of ppo: discount of later rewards. Default: 1."""
    gae_lambda: float | None = None
    """Of ppo: lambda of generalised advantage estimation. Default: 0.95."""
    value_weight: float | None = None
    """Of ppo: weight of the value loss. Default: 0.1."""

    def chosen_algorithm(self) -> Algorithm:
        """The algorithm with what was changed about it.

        Raises:
            ValueError: When an option is out of range, or would do nothing with this algorithm.
        """
        start = ALGORITHMS[self.algorithm]
        of_values = {"discount": self.discount, "gae_lambda": self.gae_lambda, "value_weight": self.value_weight}
        given = [f"--{name.replace('_', '-')}" for name, value in of_values.items() if value is not None]
        if given and not start.has_values:
            raise ValueError(
                f"{', '.join(given)} belong to --algorithm ppo, and it is {self.algorithm}; leave them out"
            )
        if self.aggregation is not None and start.ratio == "sequence":
            raise ValueError(
                f"--aggregation is about tokens, and {self.algorithm} compares whole completions; leave it out, or take grpo"
            )
        self._check_surrogate(start)
        kl_in = self.kl_in or start.kl_in
        if kl_in == "reward" and self.kl_estimator not in (None, "k1"):
            raise ValueError(
                f"--kl-estimator {self.kl_estimator} is for a divergence in the loss; in the reward it is k1, whose mean is the "
                "divergence; add --kl-in loss, or leave it out"
            )
        estimator = self.kl_estimator or ("k3" if kl_in == "loss" else "k1")
        try:
            return changed(
                start, kl_in=kl_in, kl_estimator=estimator, kl_weight=self.kl_weight, clip_low=self.clip_low,
                clip_high=self.clip_high, aggregation=self.aggregation, surrogate=self.surrogate, **of_values,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(_by_flag(str(error), self)) from error

    def _check_surrogate(self, start: Algorithm) -> None:
        if self.surrogate == "clipped":
            return
        if start.ratio == "sequence":
            raise ValueError(
                f"--surrogate {self.surrogate} weighs tokens, and {self.algorithm} compares whole completions; leave it out, or "
                "take grpo"
            )
        given = [name for name in ("clip_low", "clip_high") if getattr(self, name) is not None]
        idle = [f"--{name.replace('_', '-')}" for name in given if name not in SURROGATES[self.surrogate].reads]
        if idle:
            raise ValueError(f"{' and '.join(idle)} would do nothing with --surrogate {self.surrogate}; leave it out")


def _by_flag(message: str, options: object) -> str:
    """The message with the options' flags in place of their names."""
    names = "|".join(sorted(vars(options), key=len, reverse=True))
    return re.sub(rf"\b({names})\b(?= )", lambda found: f"--{found[0].replace('_', '-')}", message)


@dataclass(frozen=True, kw_only=True)
class FeedbackOptions:
    """R2M: the reward model reads the policy's hidden states, and learns while the policy does."""

    r2m: bool = False
    """Read the reward off the reward model's and the policy's hidden states together, and learn to."""
    r2m_variant: Literal["no-training", "noise", "no-bt", "no-gre", "head-only"] | None = None
    """One of what its paper compares it with. Default: the method itself."""
    r2m_width: int | None = None
    """Inner width of the attention. Default: 2048."""
    r2m_floor: float | None = None
    """Least weight of the reward model's own hidden state. Default: 0.6."""
    r2m_entropy_weight: float | None = None
    """Share of the group entropy in its loss. Default: 0.3."""
    r2m_lr: float | None = None
    """Learning rate of attention and head. Default: 0.0041 / the reward model's hidden size, 1e-6 for 4096."""
    retrain_every: int | None = None
    """The expensive comparator: train the whole reward model on best against worst every so many steps."""
    retrain_lr: float | None = None
    """Its learning rate. Default: 1e-6."""

    def chosen_feedback(self) -> PolicyFeedback | None:
        """The settings of R2M; None without it.

        Raises:
            ValueError: When an option is out of range, or would do nothing.
        """
        import dataclasses

        from rewarden.methods.policy_feedback import COMPARATORS

        given = {
            "width": self.r2m_width,
            "floor": self.r2m_floor,
            "entropy_weight": self.r2m_entropy_weight,
            "learning_rate": self.r2m_lr,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if not self.r2m:
            if changes or self.r2m_variant is not None:
                raise ValueError("options of R2M would do nothing without --r2m; add it or leave them out")
            return None
        return dataclasses.replace(COMPARATORS[self.r2m_variant or "r2m"], **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """What is watched on the way, and what is kept."""

    detector: str | None = None
    """A model whose latents are watched (an InfoRM), where the reward has none of its own."""
    reference_responses: int | None = None
    """Responses of the starting policy that monitors and the latent penalty compare with. Default: 1,024 where there are
    latents or an endogenous reward, 64 for the report otherwise."""
    stop_on: MonitorName | None = None
    """End the run at the first alarm of this monitor; --resume without it goes on."""
    held_out: int = 0
    """Prompts set aside and answered every --eval-every steps."""
    gold: str | None = None
    """An independent reward for the held-out completions; the checkpoint that it likes best is kept as best."""
    eval_every: int = 25
    """Steps between held-out evaluations."""
    save_every: int = 25
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, beside the best one and the one that an alarm would fall back to."""
    report_every: int = 25
    """Steps between drafts of the report."""


@dataclass(frozen=True, kw_only=True)
class AlignMachineOptions:
    """Memory and speed, and where numbers go."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 samples with bfloat16 weights and computes the policy's body under autocast; auto where the machine is made for it."""
    layout: Literal["auto", "tree", "padded"] = "auto"
    """Prompt trees process each prompt once; auto takes them wherever they are exact."""
    batch_tokens: int | None = None
    """Tokens per forward pass of the policy and the reward model. Default: 4096 on a CPU, 16384 on a GPU."""
    report_to: tuple[str, ...] = ()
    """Trackers that accelerate knows, such as tensorboard, wandb, trackio."""


@dataclass(frozen=True, kw_only=True)
class Align(
    AlignMachineOptions,
    MonitorOptions,
    FeedbackOptions,
    AdapterOptions,
    AlgorithmOptions,
    RewardOptions,
    ShapingOptions,
    RolloutOptions,
    AlignRunOptions,
):
    """Train a policy against a reward model, an ensemble, or a Python function.

    rewarden align --policy MODEL --reward FOLDER --prompts prompts.jsonl --output run --algorithm grpo --shaping worst

    The run folder holds metrics.jsonl (a line per step), rollouts/ (every completion), checkpoints/, report.html, the policy of
    the last step as a Hugging Face folder, and in best/ the policy that is to be trusted: that of the last checkpoint before the
    first alarm, or the best by --gold.
    """

    basic: ClassVar[tuple[str, ...]] = (
        "policy", "reward", "prompts", "output", "steps", "prompts_per_step", "group_size", "max_new_tokens", "algorithm",
        "kl_weight", "lr", "shaping", "lora", "stop_on", "gold", "held_out", "seed", "resume", "overwrite",
    )  # fmt: skip
