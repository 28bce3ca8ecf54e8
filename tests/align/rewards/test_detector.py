import pytest
import torch

from rewarden.align.rewards.detector import DetectedSource
from rewarden.align.rewards.sources import FunctionSource
from rewarden.core import RewardOutput

from .four_completions import FOUR, Fixed


def test_the_source_s_word_with_the_detector_s_latents() -> None:
    source = FunctionSource(lambda completions: [float(len(text)) for text in completions], "length", None)
    detector = Fixed(RewardOutput(torch.full((2,), 9.0), latent=torch.arange(4.0).view(2, 2)))
    found = DetectedSource(source, detector)
    assert found.has_latents and found.record == source.record
    scores = found(["one"], [["x", "xx"]], [{"id": 5}])
    assert scores.output.reward.tolist() == [1, 2]
    assert scores.output.latent.tolist() == [[0, 1], [2, 3]]
    assert detector.asked == [(["one"], [["x", "xx"]], [{"id": 5}])]


def test_a_detector_has_latents() -> None:
    blind = FunctionSource(len, "blind", None)
    with pytest.raises(ValueError, match="this model has no latents to watch; train one with"):
        DetectedSource(Fixed(FOUR.output), blind)
