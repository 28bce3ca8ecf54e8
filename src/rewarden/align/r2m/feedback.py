"""R2M in the loop: a reward that reads the policy's hidden states, updated once after every step of the policy."""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from rewarden.core import RewardOutput
from rewarden.methods.policy_feedback import (
    PolicyFeedback,
    PolicyStates,
    SequenceToTokenAttention,
    best_versus_worst,
    extremes,
    gap,
    group_entropy,
    group_loss,
    mix,
    noise_like,
    omega,
)

_MOMENTS = "optimizer."


class FeedbackReward:
    """The reward of `PolicyFeedback` on top of a reward model whose backbone is frozen.

    The reward model gives the pooled hidden states, the policy's forward pass gives its states. The head is a copy of the reward
    model's, of whatever method, so the reward model itself stays as it was. It runs in evaluation mode, also while it learns:
    InfoRM decodes the mean of its latent, BRME takes the mean of its most certain head, and dropout is off.

    With several processes each one calls `update` at the same step with groups of its own, any number of them; attention and
    head then learn as one process would from all groups.

    Reference: Huang et al. 2026, arXiv:2601.22664, Algorithm 1.
    """

    def __init__(
        self,
        settings: PolicyFeedback,
        head: nn.Module,
        *,
        hidden_size: int,
        policy_hidden_size: int,
        total_steps: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings, self.total_steps, self.seed = settings, total_steps, seed
        self.device = torch.device(device)
        self.modules = nn.ModuleDict({"head": copy.deepcopy(head)})
        if settings.feedback != "none":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.modules["attention"] = SequenceToTokenAttention(
                    hidden_size, policy_hidden_size, settings.width, zero_output=settings.zero_output
                )
        self.modules.float().to(self.device).eval().requires_grad_(settings.train)
        self.optimizer: torch.optim.AdamW | None = None
        if settings.train:
            # Fused: one pass over the weights instead of a dozen, and most of an update's time is not arithmetic.
            self.optimizer = torch.optim.AdamW(
                self.modules.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True
            )

    @torch.no_grad()
    def score(
        self, embedding: Float[Tensor, "rows hidden"], states: PolicyStates | None, step: int, *, first_row: int = 0
    ) -> RewardOutput:
        """Output of the head on the mix of each row: reward, and the uncertainty, latent and members that the method has.

        Args:
            embedding: What the reward model's head reads, `RewardModel.encode`.
            states: The policy's, of the same rows; not read, and may be None, when the settings take no feedback.
            step: Of the policy, from 1 to `total_steps`; the last one is the one to take outside a run.
            first_row: Number of the first row in the step, over all processes; noise is drawn by it.

        Raises:
            ValueError: When the rows of states and embeddings do not match, or states are needed and missing.
        """
        return self._output(embedding, states, step, first_row)

    def update(
        self,
        embedding: Float[Tensor, "rows hidden"],
        states: PolicyStates | None,
        annotated: Float[Tensor, "groups size"],
        step: int,
        *,
        first_row: int = 0,
    ) -> dict[str, float]:
        """One optimiser step on the mean loss over the groups; rows are the groups' completions, group after group.

        Args:
            embedding: As scored in this step: the backbone is frozen, so they are still what they were.
            states: The policy's, of the last epoch of its update.
            annotated: Rewards that `score` gave at this step, by group.
            step: As in `score`.
            first_row: As in `score`.

        Returns:
            Means over all groups, from before the step: `loss`, `bt` and `gre` in nats, `gap` in reward units; `same_pair`, the
            share of groups whose best and worst completion are the same by annotated and by recomputed rewards; `omega`; and
            `grad_norm` before clipping, when there is something to train.

        Raises:
            ValueError: When the shapes do not match, groups are too small for the loss, or the gradient is not finite; nothing
                is changed then.
        """
        self._check(embedding, annotated)
        annotated = annotated.to(self.device)
        with torch.set_grad_enabled(self.optimizer is not None):
            rewards = self._output(embedding, states, step, first_row).reward.view_as(annotated)
            recomputed = extremes(rewards.detach())
            pair = extremes(annotated) if self.settings.pairs_from == "annotation" else recomputed
            losses = group_loss(rewards, *pair, entropy_weight=self.settings.entropy_weight)
        found, groups = self._means(rewards.detach(), annotated, losses.detach(), pair, recomputed)
        found["omega"] = self._omega(step)
        if self.optimizer is not None:
            found["grad_norm"] = self._learn(losses.sum() / groups, step)
        return found

    def _omega(self, step: int) -> float:
        """Weight of the embedding: all of it, where nothing is fed back."""
        return 1.0 if self.settings.feedback == "none" else omega(step, self.total_steps, self.settings.floor)

    def _output(self, embedding: Tensor, states: PolicyStates | None, step: int, first_row: int) -> RewardOutput:
        embedding = embedding.detach().to(self.device, torch.float32)
        with torch.autocast(self.device.type, enabled=False):
            if self.settings.feedback == "none":
                return self.modules["head"](embedding)
            if states is None:
                raise ValueError(
                    f"got no policy states, but feedback is {self.settings.feedback!r}, which reads them; "
                    "hand over those of the policy's forward pass, or set feedback='none'"
                )
            states = PolicyStates(*(tensor.to(self.device) for tensor in states))
            if self.settings.feedback == "noise":
                states = noise_like(states, seed=self.seed, step=step, first_row=first_row)
            aggregated = self.modules["attention"](embedding, states)
            return self.modules["head"](mix(embedding, aggregated, self._omega(step)))

    def _check(self, embedding: Tensor, annotated: Tensor) -> None:
        groups, size = annotated.shape
        if len(embedding) != groups * size:
            raise ValueError(
                f"got {len(embedding)} embeddings and rewards of {groups} groups of {size}; expected {groups * size}; "
                "hand over all completions of the step, group after group"
            )
        least = 3 if self.settings.entropy_weight == 1 else 2
        if size < least:
            raise ValueError(
                f"groups have {size} completions; a loss with entropy_weight {self.settings.entropy_weight} teaches nothing "
                f"from fewer than {least}; sample larger groups"
            )

    def _means(
        self,
        rewards: Tensor,
        annotated: Tensor,
        losses: Tensor,
        pair: tuple[Tensor, Tensor],
        recomputed: tuple[Tensor, Tensor],
    ) -> tuple[dict[str, float], float]:
        """Means over the groups of all processes, and how many groups there are."""
        same = [mine == theirs for mine, theirs in zip(extremes(annotated), recomputed, strict=True)]
        per_group = {
            "loss": losses,
            "bt": best_versus_worst(rewards, *pair),
            "gre": group_entropy(rewards),
            "gap": gap(rewards, *pair),
            "same_pair": (same[0] & same[1]).float(),
        }
        sums = torch.stack([*(values.sum() for values in per_group.values()), losses.new_tensor(float(len(losses)))])
        _add_over_processes(sums)
        *totals, groups = sums.tolist()
        if not groups:
            raise ValueError("got no group in any process; expected at least one; update after a step that had prompts")
        return {name: total / groups for name, total in zip(per_group, totals, strict=True)}, groups

    def _learn(self, loss: Float[Tensor, ""], step: int) -> float:
        """One step down the sum of all processes' losses; the norm of its gradient."""
        assert self.optimizer is not None
        parameters = list(self.modules.parameters())
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in parameters:
            # A head may have weights that its reward does not read, such as BRME's sigmas.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            _add_over_processes(parameter.grad)
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm).item()
        if not math.isfinite(norm):
            raise ValueError(
                f"the gradient of R2M's update at step {step} has norm {norm}; expected a finite one; "
                "look for embeddings, policy states or rewards of this step that are not finite"
            )
        self.optimizer.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything that learning changes, as copies: weights of head and attention, and the optimiser's moments and steps."""
        tensors = dict(self.modules.state_dict())
        if self.optimizer is not None:
            for name, parameter in self.modules.named_parameters():
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    tensors[f"{_MOMENTS}{key}.{name}"] = value
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned, to the last bit.

        Raises:
            ValueError: When the tensors are not those of these settings, head and sizes; nothing is changed then.
        """
        weights = {name: tensor for name, tensor in state.items() if not name.startswith(_MOMENTS)}
        expected = {name: tuple(tensor.shape) for name, tensor in self.modules.state_dict().items()}
        got = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        moments = self._moments({name.removeprefix(_MOMENTS): state[name] for name in state.keys() - weights.keys()})
        if got != expected or moments is None:
            differs = sorted(str(item) for item in got.items() ^ expected.items()) or ["the optimiser's tensors"]
            raise ValueError(
                f"this state does not fit R2M as it is set up: {', '.join(differs[:4])}; "
                f"expected the tensors of {self.settings}; resume with the reward model, policy and settings that wrote it"
            )
        self.modules.load_state_dict(weights)
        if self.optimizer is not None:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _moments(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]] | None:
        """The optimiser's tensors by number of the parameter; none at all before the first step, None when some are missing."""
        names = [name for name, _ in self.modules.named_parameters()]
        found: dict[int, dict[str, Tensor]] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            for number, name in enumerate(names):
                if f"{key}.{name}" in tensors:
                    found.setdefault(number, {})[key] = tensors[f"{key}.{name}"].clone()
        complete = 3 * len(names) if self.optimizer is not None else 0
        count = sum(map(len, found.values()))
        return found if count == len(tensors) and count in (0, complete) else None


def _add_over_processes(tensor: Tensor) -> None:
    """Replace the tensor by the sum of those of all processes; alone, it is that sum."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
