"""The sweep of latent size and price: what it recommends, and the nats it measures."""

from __future__ import annotations

import dataclasses
import json

import pytest

import complexity as sweep


def cell(kl: float, value: float, error: float) -> dict:
    """A cell whose accuracy has this standard error."""
    accuracy = {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}
    return {"latent_size": 4, "kl_weight": 0.1, "accuracy": accuracy, "ood": accuracy, "kl": kl}


def test_recommended_keeps_least_within_one_standard_error_of_the_best() -> None:
    cells = [cell(9.0, 0.70, 0.02), cell(3.0, 0.69, 0.02), cell(1.0, 0.685, 0.02), cell(0.1, 0.67, 0.02)]
    assert sweep.recommended(cells) is cells[2]
    assert sweep.recommended(cells[:1]) is cells[0]


@pytest.mark.slow
def test_the_sweep_trains_measures_and_keeps(tmp_path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n} it is, gladly.", "rejected": "no"} for n in range(40)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    args = sweep.Complexity(
        output=tmp_path / "out", train=str(pairs), ood=str(pairs), latent_sizes=(2,), kl_weights=(10.0, 0.0001)
    )
    sweep.main(args)
    first = capsys.readouterr().out
    found = json.loads((args.output / "complexity.json").read_text(encoding="utf-8"))
    dear, cheap = (one["kl"] for one in found["cells"])
    assert 0 <= dear < cheap  # a nat at a hundred thousand times the price
    assert first.count("**2**") == 1 and "recommended: latent_size 2" in first
    assert "latent 2" in (args.output / "complexity.html").read_text(encoding="utf-8")
    # What is kept is read, not trained again: a changed seed would change every number.
    sweep.main(dataclasses.replace(args, seed=1))
    assert json.loads((args.output / "complexity.json").read_text(encoding="utf-8")) == found
