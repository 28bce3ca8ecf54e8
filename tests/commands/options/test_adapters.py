from __future__ import annotations

import pytest

from rewarden.commands.options.adapters import LoraOptions
from rewarden.hf.model.adapters import Lora


def test_adapters_with_their_defaults() -> None:
    assert LoraOptions().adapters() is None
    assert LoraOptions(lora=True).adapters() == Lora(rank=16, alpha=32)
    assert LoraOptions(lora=True, lora_rank=4).adapters() == Lora(rank=4, alpha=8)
    given = LoraOptions(lora=True, lora_rank=4, lora_alpha=1, lora_dropout=0.5, lora_targets=("q_proj",))
    assert given.adapters() == Lora(rank=4, alpha=1, dropout=0.5, targets=("q_proj",))


@pytest.mark.parametrize(
    "options",
    [
        {"lora_rank": 16},
        {"lora_alpha": 32},
        {"lora_dropout": 0.0},
        {"lora_targets": ("q_proj",)},
        {"four_bit": True},
    ],
)
def test_what_would_do_nothing_without_lora_is_refused(options: dict) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} would do nothing without --lora"):
        LoraOptions(**options).adapters()


def test_four_bits_need_their_package(packages) -> None:
    packages(bitsandbytes=False)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        LoraOptions(lora=True, four_bit=True).adapters()
    packages(bitsandbytes=True)
    assert LoraOptions(lora=True, four_bit=True).adapters() == Lora(four_bit=True)
