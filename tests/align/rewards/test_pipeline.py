import pytest
import torch

from rewarden import shaping
from rewarden.align import agreement
from rewarden.align.gather import Gather
from rewarden.align.rewards.components import Component, latent_penalty, length_penalty, shaped, truncation_penalty
from rewarden.align.rewards.functions import RewardError
from rewarden.align.rewards.pipeline import RewardPipeline, whitened
from rewarden.core import RewardOutput

from .four_completions import FOUR, UNIT, Fixed, rewarded


def test_components_add_up_to_the_reward_before_clip_and_whitening():
    components = [shaped(shaping.worst), latent_penalty(UNIT, 0.5), truncation_penalty(2.0)]
    plain = rewarded(components)
    later = rewarded(components, clip=3.0, whiten=True)
    assert plain.reward.tolist() == sum(plain.components.values()).tolist() == [-2.5, 2.0, -8.0, -6.75]
    assert {name: value.tolist() for name, value in later.components.items()} == {
        name: value.tolist() for name, value in plain.components.items()
    }


def test_first_the_sum_then_the_clip_then_whitening():
    components = [shaped(), truncation_penalty(2.0)]  # sums 1, 2, -5, -1.5
    clipped = rewarded(components, clip=1.5)
    assert clipped.reward.tolist() == [1.0, 1.5, -1.5, -1.5]
    assert clipped.is_clipped.tolist() == [False, True, True, False]
    whitened_rows = rewarded(components, clip=1.5, whiten=True)
    # Mean -1/8; squares of 9/8, 13/8 and twice 11/8 are 81, 169, 121 and 121 in 64ths, mean 123/64.
    expected = [value / (123 / 64) ** 0.5 for value in (9 / 8, 13 / 8, -11 / 8, -11 / 8)]
    assert whitened_rows.reward.tolist() == pytest.approx(expected, rel=1e-6)
    assert whitened_rows.is_clipped.tolist() == [False, True, True, False]


def test_whitened_by_hand():
    rows = torch.tensor([1.0, 3.0])
    assert whitened(rows, rows).tolist() == [-1.0, 1.0]  # population: unbiased would be 0.71
    assert whitened(rows, torch.tensor([1.0, 3.0, 5.0, 7.0])).tolist() == pytest.approx([-3 / 5**0.5, -1 / 5**0.5])
    assert whitened(rows, rows).dtype == torch.float32


@pytest.mark.parametrize("rows", [[0.1] * 7, [0.0, 0.0], [5.0], [1e6, 1e6 + 0.0625], [1.0, 1.0 + 2**-23]], ids=str)
def test_rewards_without_spread_become_nothing(rows):
    assert whitened(torch.tensor(rows), torch.tensor(rows)).tolist() == [0.0] * len(rows)


def test_small_rewards_have_spread_too():
    rows = torch.tensor([1e-12, 3e-12])
    assert whitened(rows, rows).tolist() == pytest.approx([-1.0, 1.0])


class OneOfTwo:
    """A process of two, as accelerate shows it; the other one has four rows of its own."""

    num_processes, device = 2, torch.device("cpu")
    others = torch.tensor([10.0, 20.0, 30.0, 40.0])

    def __init__(self) -> None:
        self.gathered = 0

    def gather(self, rows):
        self.gathered += 1
        return torch.cat([rows, self.others])


@pytest.fixture
def other_says(monkeypatch):
    """other_says(message): what the other process says of its own work, None where all is well."""

    def says(message):
        monkeypatch.setattr(agreement, "gather_object", lambda mine: [*mine, message])

    return says


def test_statistics_are_of_the_rows_of_all_processes(other_says):
    other_says(None)
    found = rewarded([shaped()], clip=1.5, whiten=True, gather=Gather(OneOfTwo()))
    mine = torch.tensor([1.0, 1.5, -1.5, 0.5])
    both = torch.cat([mine, OneOfTwo.others]).double()
    expected = (mine.double() - both.mean()) / both.std(correction=0)
    assert found.reward.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_processes_meet_for_whitening_alone_and_once(other_says):
    other_says(None)
    for whiten in (False, True):
        process = OneOfTwo()
        rewarded([shaped()], clip=1.0, whiten=whiten, gather=Gather(process))
        assert process.gathered == whiten


def test_what_fails_in_one_process_fails_in_all_before_any_waits_for_whitening(other_says):
    other_says("out of paper")
    process = OneOfTwo()
    with pytest.raises(RewardError, match="process 2 of 2: out of paper"):
        rewarded([shaped()], whiten=True, gather=Gather(process))
    assert process.gathered == 0


def test_nothing_is_computed_twice(other_says):
    """Neither the source nor a component, with whitening or without."""
    other_says(None)
    calls = []
    counting = Component("counting", 1.0, lambda each: calls.append(1) or each.length.float())
    source = Fixed(FOUR.output)
    RewardPipeline(source, [counting], clip=15.0, whiten=True, gather=Gather(OneOfTwo()))(*FOUR[:4])
    assert len(calls) == len(source.asked) == 1


def test_the_source_is_asked_with_texts_and_columns():
    source = Fixed(FOUR.output, torch.eye(4), 3)
    found = RewardPipeline(source, [shaped()])(*FOUR[:4])
    assert source.asked == [([p.text for p in FOUR.prompts], FOUR.texts, [{"id": n} for n in range(4)])]
    assert found.embedding is source.scores.embedding
    assert (found.cut, found.output) == (3, FOUR.output)


def test_what_is_read_anew_keeps_the_latents_of_the_source():
    """Monitors compare them with latents of the source alone."""

    def reread(scores):
        return RewardOutput(scores.output.reward * 10, latent=torch.full((4, 2), 7.0))

    found = rewarded([shaped(), latent_penalty(UNIT, 0.0)], reread=reread)
    assert found.reward.tolist() == [10.0, 20.0, -30.0, 5.0]
    assert torch.equal(found.output.latent, FOUR.output.latent)
    assert found.raw["latent_distance"].tolist() == [5.0, 0.0, 4.0, 10.0]


def test_completions_that_stand_alone_are_clipped_and_not_whitened():
    pipeline = RewardPipeline(Fixed(FOUR.output), [shaped(), truncation_penalty(2.0)], clip=1.5, whiten=True)
    found = pipeline.unwhitened(*FOUR[:4])
    assert found.reward.tolist() == [1.0, 1.5, -1.5, -1.5]
    assert found.total.tolist() == [1.0, 2.0, -5.0, -1.5]


def test_a_sum_that_overflows_is_refused():
    with pytest.raises(
        RewardError, match=r"the sum of odd is not finite in 1 of 4 rows, expected a finite reward; lower"
    ):
        rewarded([Component("odd", 1e37, lambda each: each.length)], clip=1.0)


@pytest.mark.parametrize(
    ("components", "got"),
    [([], "none at all"), ([shaped(), shaped()], "nominal, nominal"), ([length_penalty(1.0)] * 2, "length, length")],
)
def test_components_have_names_of_their_own(components, got):
    with pytest.raises(ValueError, match=f"got components {got}, expected at least one, each with a name of its own"):
        rewarded(components)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_range_is_a_range(clip):
    with pytest.raises(ValueError, match=r"clip is .*, expected more than 0; raise it, or leave it out"):
        rewarded([shaped()], clip=clip)
