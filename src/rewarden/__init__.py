"""Reward models that hold up when a policy optimises against them.

The maths (torch only):
    core             RewardOutput, PairInfo, Method: the types everything else speaks
    losses           losses and penalties, one number per pair
    methods          one paper, one file: Bradley-Terry, InfoRM, BRME, ODIN, and wrappers: ensemble, centred, smoothed
    shaping          from a RewardOutput to what a policy is paid
    tree             a prompt with its completions as one row without padding
    evaluation       metrics (pure functions), best-of-n, and the report
    overoptimization best-of-n estimator, its KL, and the laws of over-optimisation
    benchmarks       RM-Bench, RewardBench, JudgeBench and others by their official metrics
    merging          averages of weights
    endogenous       the reward inside a language model
    rl               advantages, KL estimators, policy and value losses
    monitors         signals of over-optimisation along a run: CSI, Mahalanobis outliers
    lab              an independent measure of quality, for studies

On Hugging Face:
    data             preference files: read, validate, say exactly which row is wrong
    hf               attention, encoding, RewardModel, RewardTrainer, Scorer, sampler
    align            the policy-optimisation loop: rollouts, payment, update, R2M, monitors
    commands, cli    `rewarden train | score | evaluate | align | sample | merge | data | quickstart | path`

Importing this package imports nothing else; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rewarden.commands.evaluate import Evaluate, evaluate
    from rewarden.commands.options.align import Align
    from rewarden.commands.options.train import Train
    from rewarden.commands.score import Score, score
    from rewarden.commands.train import train
    from rewarden.hf.model.reward_model import RewardModel
    from rewarden.hf.scoring.endogenous import EndogenousScorer
    from rewarden.hf.scoring.ensemble import ScorerEnsemble
    from rewarden.hf.scoring.scorer import Scorer
    from rewarden.methods.bayesian_ensemble import BayesianEnsemble, BayesianEnsembleNLL
    from rewarden.methods.bradley_terry import BradleyTerry
    from rewarden.methods.centered import Centered
    from rewarden.methods.ensemble import Ensemble
    from rewarden.methods.generalizable import GeneralizableReward
    from rewarden.methods.info_bottleneck import InfoBottleneck
    from rewarden.methods.length_disentangled import LengthDisentangled
    from rewarden.methods.smoothed import Smoothed

_HOME = {
    "Align": "rewarden.commands.options.align",
    "BayesianEnsemble": "rewarden.methods.bayesian_ensemble",
    "BayesianEnsembleNLL": "rewarden.methods.bayesian_ensemble",
    "BradleyTerry": "rewarden.methods.bradley_terry",
    "Centered": "rewarden.methods.centered",
    "EndogenousScorer": "rewarden.hf.scoring.endogenous",
    "Ensemble": "rewarden.methods.ensemble",
    "Evaluate": "rewarden.commands.evaluate",
    "GeneralizableReward": "rewarden.methods.generalizable",
    "InfoBottleneck": "rewarden.methods.info_bottleneck",
    "LengthDisentangled": "rewarden.methods.length_disentangled",
    "RewardModel": "rewarden.hf.model.reward_model",
    "Score": "rewarden.commands.score",
    "Scorer": "rewarden.hf.scoring.scorer",
    "ScorerEnsemble": "rewarden.hf.scoring.ensemble",
    "Smoothed": "rewarden.methods.smoothed",
    "Train": "rewarden.commands.options.train",
    "evaluate": "rewarden.commands.evaluate",
    "score": "rewarden.commands.score",
    "train": "rewarden.commands.train",
}

__all__ = [
    "Align",
    "BayesianEnsemble",
    "BayesianEnsembleNLL",
    "BradleyTerry",
    "Centered",
    "EndogenousScorer",
    "Ensemble",
    "Evaluate",
    "GeneralizableReward",
    "InfoBottleneck",
    "LengthDisentangled",
    "RewardModel",
    "Score",
    "Scorer",
    "ScorerEnsemble",
    "Smoothed",
    "Train",
    "__version__",
    "align",
    "evaluate",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    import importlib

    if name == "align":  # a folder that can be called
        return importlib.import_module("rewarden.align")
    if name not in _HOME:
        raise AttributeError(f"module 'rewarden' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted(__all__)
