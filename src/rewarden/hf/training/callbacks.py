"""What watches a training run: one progress bar, and a stop when the loss is no longer a number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewarden.hf.progress import progress

if TYPE_CHECKING:
    from tqdm import tqdm


class Progress(TrainerCallback):
    """One progress bar on stderr with time left, loss and accuracy."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar where a resumed run stands."""
        if state.is_world_process_zero:
            self.bar = progress(state.max_steps, self.label, "step", done=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """One step further."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Show the numbers that matter."""
        shown = {k: f"{logs[k]:.3f}" for k in ("loss", "accuracy", "eval_accuracy", "eval_nll") if k in (logs or {})}
        if self.bar is not None and shown:
            self.bar.set_postfix(shown)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class StopWhenNotFinite(TrainerCallback):
    """Stop with a clear message instead of training on after the loss has become infinite or NaN."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Check every logged loss."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(
                f"the training loss is {loss} at step {state.global_step}; lower --lr, or check margins for extreme values"
            )
