import torch

from rewarden.align.guards import LeaveOutTruncated, Lesson, Sight
from rewarden.align.rollouts import Rollouts
from rewarden.hf.tokens import TokenGroup


def test_truncated_completions_are_left_out_and_those_that_were_stay_so() -> None:
    groups = [TokenGroup((torch.arange(9).numpy(),) * 2, (3, 4), flags) for flags in ((False, True), (False, False))]
    lesson = Lesson(None, torch.tensor([True, True, False, True]))
    found = LeaveOutTruncated()(Sight(Rollouts([], groups, []), None, None), lesson)
    assert found.counts.tolist() == [True, False, False, True]
    assert lesson.counts.tolist() == [True, True, False, True]
