"""Options of adapters, for reward models and for policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewarden.hf.model.adapters import Lora


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Adapters instead of all weights; what is saved is a plain model."""

    lora: bool = False
    """Train low-rank adapters (and the head of a reward model, which is always trained), and fold them into the weights at the
    end."""
    lora_rank: int | None = None
    """Rank of the adapters. Default: 16."""
    lora_alpha: int | None = None
    """Their update is multiplied by alpha / rank. Default: twice the rank."""
    lora_targets: tuple[str, ...] = ()
    """Ends of the names of the layers to adapt, such as q_proj v_proj. Default: every linear layer."""

    def plain_adapters(self) -> Lora | None:
        """What `rewarden.hf.model.adapters` needs to know; None without --lora.

        Raises:
            ValueError: When options of adapters are given without --lora.
        """
        given = {
            "--lora-rank": self.lora_rank is not None,
            "--lora-alpha": self.lora_alpha is not None,
            "--lora-targets": bool(self.lora_targets),
        }
        _refuse_without_lora(given, has_lora=self.lora)
        if not self.lora:
            return None
        from rewarden.hf.model.adapters import Lora  # and peft with it, which takes seconds

        rank = 16 if self.lora_rank is None else self.lora_rank
        alpha = 2 * rank if self.lora_alpha is None else self.lora_alpha
        return Lora(rank=rank, alpha=alpha, targets=self.lora_targets)


@dataclass(frozen=True, kw_only=True)
class LoraOptions(AdapterOptions):
    """Adapters of a reward model."""

    lora_dropout: float | None = None
    """Dropout in front of the adapters. Default: none."""
    four_bit: bool = False
    """Keep the frozen weights in four bits (QLoRA); needs --lora and the package bitsandbytes."""

    def adapters(self) -> Lora | None:
        """What `rewarden.hf.model.adapters` needs to know; None without --lora.

        Raises:
            ValueError: When options of adapters are given without --lora, or a package is missing.
        """
        import dataclasses
        import importlib.util

        _refuse_without_lora(
            {"--lora-dropout": self.lora_dropout is not None, "--four-bit": self.four_bit}, has_lora=self.lora
        )
        if self.four_bit and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "--four-bit needs the package bitsandbytes, which is not installed; pip install bitsandbytes, or use --lora alone"
            )
        plain = self.plain_adapters()
        if plain is None:
            return None
        return dataclasses.replace(plain, dropout=self.lora_dropout or 0.0, four_bit=self.four_bit)


def _refuse_without_lora(given: Mapping[str, bool], *, has_lora: bool) -> None:
    orphans = [name for name, is_given in given.items() if is_given]
    if orphans and not has_lora:
        raise ValueError(f"{', '.join(orphans)} would do nothing without --lora; add --lora or leave it out")
