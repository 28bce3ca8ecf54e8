import time

import pytest
import torch

from rewarden.hf.training import throughput
from rewarden.hf.training.fit import Schedule, fit
from rewarden.hf.training.pairs import PairCollator
from rewarden.tree.layout import Forest, Tree


def test_counts_by_hand():
    # Two prompts: 5 shared tokens with branches of 3 and 1, and 2 shared tokens with branches of 4 and 4.
    forest = Forest((Tree(5, (3, 1)), Tree(2, (4, 4))))
    found = throughput.counts({"tree": forest})
    assert found == {"tokens": 9 + 10, "unshared": (8 + 6) + (6 + 6), "padded": 4 * 8}
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert throughput.counts({"attention_mask": mask}) == {"tokens": 8, "unshared": 4, "padded": 8}


def test_report_by_hand():
    summed = {"tokens": 60.0, "unshared": 80.0, "padded": 100.0, "seconds": 4.0}
    found = throughput.report(summed, processes=2, flops=10.0, peak=None)
    assert found == pytest.approx({"tokens_per_second": 30, "tokens_saved": 0.25, "padding_avoided": 0.2})
    # Two devices of 50 operations a second each, 30 tokens a second at 10 operations.
    assert throughput.report(summed, processes=2, flops=10.0, peak=500.0)["mfu"] == pytest.approx(0.3)
    padded = throughput.report(summed | {"tokens": 100.0}, processes=1, flops=1.0, peak=None)
    assert (padded["tokens_saved"], padded["padding_avoided"]) == (0.0, 0.0)


def test_operations_per_token_count_weights_once_per_use(build):
    model = build("llama")
    embedding = model.backbone.get_input_embeddings().weight.numel()
    weights = sum(parameter.numel() for parameter in model.backbone.parameters()) - embedding
    assert throughput.flops_per_token(model) == 6 * weights
    model.backbone.requires_grad_(False)
    assert throughput.flops_per_token(model) == 2 * weights
    first = model.backbone.layers[0].mlp.up_proj.weight.requires_grad_(True)
    assert throughput.flops_per_token(model) == 4 * weights + 2 * first.numel()


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert throughput.peak_flops(torch.device("cuda"), is_bf16=True) == peak
    assert throughput.peak_flops(torch.device("cuda"), is_bf16=False) is None


def test_a_processor_has_no_known_peak():
    assert throughput.peak_flops(torch.device("cpu"), is_bf16=True) is None


def test_the_clock_runs_inside_steps_only():
    clock = throughput.Clock()
    begun = time.perf_counter()
    for _ in range(2):
        clock.on_step_begin(None, None, None)
        time.sleep(0.01)
        clock.on_step_end(None, None, None)
        time.sleep(0.05)
    whole = time.perf_counter() - begun
    assert 0.02 <= clock.take() <= whole - 0.1  # a sleep takes at least as long as asked
    assert clock.take() == 0.0


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_training_logs_what_the_layout_spares(build, make_pairs, tmp_path, layout):
    pairs = make_pairs(8)
    log = fit(
        build("llama", layout=layout), pairs, [], Schedule(batch_size=8, max_steps=1, precision="fp32"), work=tmp_path
    )
    batch = PairCollator("tree", 0)(pairs)
    forest = batch["tree"]
    saved = 1 - len(forest) / forest.num_unshared_tokens
    avoided = 1 - forest.num_unshared_tokens / (16 * forest.longest)
    assert saved > 0
    expected = (saved, avoided) if layout == "tree" else (0.0, 0.0)
    assert (log[0]["tokens_saved"], log[0]["padding_avoided"]) == pytest.approx(expected)
    assert log[0]["tokens_per_second"] > 0
