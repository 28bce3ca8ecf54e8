"""Train a reward model with `transformers.Trainer`: the batch is pairs, the loss is the method's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EvalPrediction, Trainer, TrainingArguments

from rewarden.core import Method, PairInfo, RewardOutput, select
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.training import throughput
from rewarden.hf.training.pairs import LengthGroups, PairCollator, PairDataset, chosen_and_rejected


class RewardTrainer(Trainer):
    """`Trainer` with pairs as its unit: batch size, samples per second and the loss all count pairs.

    The loss of a step is the sum over its pairs divided by the pairs of the whole accumulated step, on all processes. The head
    has a learning rate of its own, because it starts from nothing while the backbone does not.
    """

    def __init__(self, model: RewardModel, args: TrainingArguments, *, head_lr: float, **kwargs: Any) -> None:
        if args.remove_unused_columns or getattr(args.accelerator_config, "dispatch_batches", None):
            raise ValueError("pairs are objects: remove_unused_columns and dispatch_batches must both be False")
        if args.n_gpu > 1:
            raise ValueError("several devices need one process each (accelerate launch), not DataParallel")
        self.head_lr = head_lr
        self._sums: dict[str, dict[str, Tensor]] = {"train": defaultdict(_zero), "eval": defaultdict(_zero)}
        super().__init__(
            model,
            args,
            data_collator=PairCollator(model.layout, model.config.pad_token_id or 0, model.method.uses_language_model),
            compute_metrics=pair_metrics,
            **kwargs,
        )
        self.clock = throughput.Clock()
        self.add_callback(self.clock)
        # compute_loss divides by the pairs of the accumulated step; older transformers read that from the second name.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the method's pair losses over the pairs of the step; with outputs, rewards as (pairs, 2)."""
        info = PairInfo(**inputs["info"])
        if not model.training:
            info = info._replace(row=None)  # row numbers are for what belongs to training, such as the bootstrap
        output: RewardOutput = model(**{name: value for name, value in inputs.items() if name not in ("info", "real")})
        chosen, rejected = chosen_and_rejected(output)
        method = self.accelerator.unwrap_model(model).method
        real = inputs.get("real", len(chosen.reward))  # fillers stand behind the real pairs and count for nothing
        losses = method.loss(chosen, rejected, info)[:real]
        self._record(method, chosen, rejected, info, real, "train" if model.training else "eval")
        if model.training:
            for name, count in throughput.counts(inputs).items():
                self._sums["train"][name] += count
        if num_items_in_batch is None:
            loss = losses.mean()
        else:
            # Distributed training averages gradients over processes; the count is that of all of them.
            loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        if return_outputs:
            return loss, torch.stack([chosen.reward, rejected.reward], dim=-1)
        return loss

    @torch.no_grad()
    def _record(
        self, method: Method, chosen: RewardOutput, rejected: RewardOutput, info: PairInfo, real: int, mode: str
    ) -> None:
        """Add the batch to the sums behind the next log entry."""
        if real == 0:
            return
        if real < len(chosen.reward):
            index = slice(0, real)
            chosen, rejected = select(chosen, index), select(rejected, index)
            info = PairInfo(*(None if column is None else column[index] for column in info))
        gap, sums = chosen.reward - rejected.reward, self._sums[mode]
        sums["pairs"] += real
        found = {"accuracy": (gap > 0).float().mean(), "gap": gap.mean(), **method.metrics(chosen, rejected, info)}
        for name, value in found.items():
            sums[name] += value.detach().cpu() * real

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was recorded since the last log, averaged over the pairs of all processes, under the names of the field."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        if mode == "train" and self._sums[mode]:
            self._sums[mode]["seconds"] += self.clock.take()
        sums = self._over_processes(self._sums[mode])
        self._sums[mode].clear()
        counted: dict[str, float] = {
            name: sums.pop(name) for name in ("tokens", "unshared", "padded", "seconds") if name in sums
        }
        if counted.get("seconds"):
            logs |= self._throughput(counted)
        if pairs := sums.pop("pairs", 0.0):
            prefix = "eval_" if mode == "eval" else ""
            found = {prefix + name: total / pairs for name, total in sums.items()}
            logs |= {name: value for name, value in found.items() if name not in logs}
        super().log(logs, start_time)

    def _throughput(self, counted: Mapping[str, float]) -> dict[str, float]:
        model = self.accelerator.unwrap_model(self.model)
        peak = throughput.peak_flops(self.args.device, is_bf16=self.args.bf16)
        flops = throughput.flops_per_token(model)
        return throughput.report(counted, processes=self.accelerator.num_processes, flops=flops, peak=peak)

    def _over_processes(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The sums of all processes; one that had no pair since the last log has no names to add."""
        own = {name: total.item() for name, total in sums.items()}
        if self.accelerator.num_processes == 1:
            return own
        added: dict[str, float] = {}
        for part in gather_object([own]):
            for name, total in part.items():
                added[name] = added.get(name, 0.0) + total
        return added

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Mean loss and rewards (pairs, 2): one row per pair, since the Trainer trims the last batch by rows."""
        inputs = self._prepare_inputs(inputs)
        assert isinstance(self.eval_dataset, PairDataset)
        inputs["real"] = self._real_pairs(inputs, len(self.eval_dataset), self.args.per_device_eval_batch_size)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, rewards = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), rewards, torch.zeros(len(rewards), device=rewards.device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, or what the arguments name, with a group of its own for the head."""
        if self.optimizer is None:
            assert isinstance(self.model, RewardModel)
            named = [(n, p) for n, p in (model or self.model).named_parameters() if p.requires_grad]
            decayed = set(self.get_decay_parameter_names(self.model))
            head = [p for n, p in named if ".head." in f".{n}"]
            rest = [(n, p) for n, p in named if ".head." not in f".{n}"]
            groups = [
                {"params": [p for n, p in rest if n in decayed], "weight_decay": self.args.weight_decay},
                {"params": [p for n, p in rest if n not in decayed], "weight_decay": 0.0},
                {"params": head, "weight_decay": self.args.weight_decay, "lr": self.head_lr},
            ]
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class([group for group in groups if group["params"]], **kwargs)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        """Pairs of the accumulated step, over all processes."""
        if batch_samples:
            assert isinstance(self.train_dataset, PairDataset)
            last = batch_samples[-1]
            last["real"] = self._real_pairs(last, len(self.train_dataset), self.args.train_batch_size)
        pairs = sum(batch.get("real", len(batch["info"]["row"])) for batch in batch_samples)
        return self.accelerator.gather(torch.tensor(pairs, device=device)).sum()

    def _real_pairs(self, batch: Mapping[str, Any], pairs: int, size: int) -> int:
        """Pairs of a batch that are not fillers.

        Where the last batch of an epoch is too small for all processes, accelerate fills it up with pairs from the beginning,
        which would count twice. They follow the real ones in the order of processes.
        """
        here, accelerator = len(batch["info"]["row"]), self.accelerator
        if accelerator.num_processes == 1 or not accelerator.gradient_state.end_of_dataloader:
            return here
        together = size * accelerator.num_processes
        real = pairs % together or together
        return min(max(real - accelerator.process_index * size, 0), here)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Weights that do not train are left out of checkpoints; a resumed run has them already."""
        assert self.model is not None
        if state_dict is None and not all(p.requires_grad for p in self.model.parameters()):
            named = self.model.named_parameters(remove_duplicate=False)
            kept = {name for name, p in named if p.requires_grad} | {name for name, _ in self.model.named_buffers()}
            state_dict = {name: tensor for name, tensor in self.model.state_dict().items() if name in kept}
        super()._save(output_dir, state_dict)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """Random batches of pairs of similar length."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        assert isinstance(dataset, PairDataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroups(dataset.lengths(), batch_size=size * self.args.world_size, seed=self.args.seed)


def _zero() -> Tensor:
    return torch.zeros(())


def pair_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Strict accuracy and negative log-likelihood (nats) of the rewards (pairs, 2) under Bradley-Terry."""
    rewards = torch.as_tensor(prediction.predictions, dtype=torch.float64)
    gap = rewards[:, 0] - rewards[:, 1]
    return {
        "accuracy": (gap > 0).double().mean().item(),
        "nll": -torch.nn.functional.logsigmoid(gap).mean().item(),
    }
