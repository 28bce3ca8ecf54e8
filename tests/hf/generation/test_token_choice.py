import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarden.hf.generation.token_choice import (
    Sampling,
    choose_tokens,
    inverse_cdf,
    likeliest,
    probabilities,
    row_uniforms,
)

BELOW_ONE = 1 - 2.0**-53


def repeated(weights: list[float], uniforms: list[float]) -> list[int]:
    numbers = torch.tensor(uniforms, dtype=torch.float64)
    return inverse_cdf(torch.tensor([weights] * len(uniforms)), numbers).tolist()


def test_cut_points_by_hand():
    """Weights 2, 0, 1, 1 of 4: the first has [0, 1/2), the third [1/2, 3/4), the fourth [3/4, 1)."""
    edges = [0.0, 0.5 - 2.0**-53, 0.5, 0.75 - 2.0**-53, 0.75, BELOW_ONE]
    assert repeated([2.0, 0.0, 1.0, 1.0], edges) == [0, 0, 2, 2, 3, 3]


def test_one_and_zero_never_take_what_has_no_weight():
    assert repeated([0.0, 0.0, 1.0, 3.0, 0.0], [0.0, BELOW_ONE, 1.0]) == [2, 3, 3]
    # Also where the last block is empty, and where weights do not fill a block.
    wide = [0.0] * 70 + [1.0] + [0.0] * 130
    assert repeated(wide, [0.0, 0.5, BELOW_ONE, 1.0]) == [70] * 4


@given(st.integers(1, 300), st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_blocks_agree_with_a_plain_search(vocabulary, seed, uniform):
    """Integers below 2^10 are summed exactly in any order, so both must agree to the token."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, 1024, (1, vocabulary), generator=generator) * (
        torch.rand(1, vocabulary, generator=generator) < 0.5
    )
    weights[0, seed % vocabulary] += 1
    (found,) = inverse_cdf(weights.float(), torch.tensor([uniform], dtype=torch.float64)).tolist()
    mass = weights[0].cumsum(0).tolist()
    aim = min(uniform * mass[-1], math.nextafter(mass[-1], 0))
    assert found == next(place for place, total in enumerate(mass) if total > aim)
    assert weights[0, found] > 0


def test_shares_are_the_probabilities():
    """An even grid of uniforms must hit each token in proportion; 1/16 steps resolve these weights exactly."""
    grid = ((torch.arange(16, dtype=torch.float64) + 0.5) / 16).tolist()
    counts = np.bincount(repeated([1.0, 5.0, 0.0, 8.0, 2.0], grid), minlength=5)
    assert counts.tolist() == [1, 5, 0, 8, 2]


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_broken_logits_are_refused(bad):
    for temperature, numbers in ((1.0, torch.zeros(1, dtype=torch.float64)), (0.0, None)):
        with pytest.raises(ValueError, match="not finite"):
            choose_tokens(torch.tensor([bad]), numbers, Sampling(1, temperature=temperature))


PROBABILITY = torch.tensor([[0.125, 0.5, 0.25, 0.0625, 0.0625], [0.25, 0.25, 0.25, 0.125, 0.125]])


@pytest.mark.parametrize(
    ("top_p", "top_k", "expected"),
    [
        (0.5, None, [{1}, {0, 1}]),  # exactly reached
        (0.51, None, [{1, 2}, {0, 1, 2}]),
        (0.76, None, [{0, 1, 2}, {0, 1, 2, 3}]),  # of equal ones the lowest id
        (0.9, None, [{0, 1, 2, 3}, {0, 1, 2, 3, 4}]),
        (1e-9, None, [{1}, {0}]),  # never none
        (1.0, 2, [{1, 2}, {0, 1}]),
        (1.0, 9, [{0, 1, 2, 3, 4}] * 2),
        (0.6, 2, [{1}, {0, 1}]),  # 1/2 of 3/4 is enough for the first row; 1/4 of 1/2 is not for the second
        (0.7, 2, [{1, 2}, {0, 1}]),
    ],
)
def test_nucleus_by_hand(top_p, top_k, expected):
    kept = likeliest(PROBABILITY, top_p, top_k)
    assert [set(row.nonzero()[:, 0].tolist()) for row in kept] == expected


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_wide_nucleus_equals_a_full_sort(top_p):
    """Some rows need more tokens than the first look takes, and many are equally likely."""
    counts = torch.randint(1, 9, (6, 1000), generator=torch.Generator().manual_seed(0)).double()
    counts[0, 7], counts[1, :40] = 8e3, 800.0  # two rows that need few
    kept = likeliest((counts / 2**16).float(), top_p)
    for row, found in zip(counts.tolist(), kept.tolist(), strict=True):
        order = sorted(range(1000), key=lambda token: (-row[token], token))
        mass, size = 0.0, 0
        while mass < top_p * sum(row):
            mass, size = mass + row[order[size]], size + 1
        assert {token for token, is_kept in enumerate(found) if is_kept} == set(order[:size])


def test_temperature_comes_first():
    logits = torch.tensor([[0.0, math.log(4), math.log(2)]], dtype=torch.float64)
    found = probabilities(logits, Sampling(1, temperature=0.5))
    torch.testing.assert_close(found, torch.tensor([[1.0, 16.0, 4.0]], dtype=torch.float64) / 21)
    # At 1/2 the first two have 20/21 > 0.9 of the mass, at 1 only 6/7.
    assert (probabilities(logits, Sampling(1, temperature=0.5, top_p=0.9)) > 0).tolist() == [[False, True, True]]
    assert (probabilities(logits, Sampling(1, top_p=0.9)) > 0).all()


def test_no_temperature_is_too_small_and_half_precision_is_widened():
    found = probabilities(torch.tensor([[1.0, 3.0, 2.0]]), Sampling(1, temperature=1e-300))
    assert found.tolist() == [[0.0, 1.0, 0.0]]
    assert probabilities(torch.zeros(1, 3, dtype=torch.bfloat16), Sampling(1)).dtype == torch.float32


def test_greedy_takes_the_first_of_the_largest():
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, -1.0, 2.0]])
    numbers = torch.full((2,), 0.999, dtype=torch.float64)
    assert choose_tokens(logits, numbers, Sampling(1, temperature=0)).tolist() == [1, 0]
    assert choose_tokens(logits, numbers, Sampling(1, top_k=1)).tolist() == [1, 0]


def test_numbers_belong_to_rows():
    everything = row_uniforms(3, 5, range(8), 12)
    assert everything.dtype == torch.float64
    assert torch.equal(row_uniforms(3, 5, [6, 1], 12), everything[[6, 1]])
    assert torch.equal(row_uniforms(3, 5, range(8), 7), everything[:, :7])
    assert everything.min() >= 0
    assert everything.max() < 1
    others = [row_uniforms(4, 5, range(8), 12), row_uniforms(3, 6, range(8), 12), row_uniforms(3, 5, range(8, 16), 12)]
    values = torch.cat([everything, *others]).flatten()
    assert len(values.unique()) == len(values)


def test_numbers_are_uniform():
    """960 numbers in ten bins: chi-squared with 9 degrees of freedom exceeds 35 once in 17,000 seeds, and this one is fixed."""
    counts = torch.histc(row_uniforms(0, 0, range(40), 24).float(), bins=10, min=0, max=1)
    assert ((counts - 96) ** 2 / 96).sum() < 35


def test_numbers_are_pinned():
    """Philox 4x64-10 with key (1, 2) and a counter from (0, 3, 0, 0), 53 bits of each word: resumed runs depend on it."""
    assert row_uniforms(1, 2, [3], 3)[0].tolist() == [0.13732203113233543, 0.22522750207501308, 0.2552256935564018]
    generator = np.random.Generator(np.random.Philox(key=[1, 2], counter=[0, 3, 0, 0]))
    assert row_uniforms(1, 2, [3], 5)[0].tolist() == generator.random(5).tolist()


@pytest.mark.parametrize("wrong", [(-1, 0, [0], 1), (0, 2**64, [0], 1), (0, 0, [-2], 1), (0, 0, [0], 0)])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="from 0 to 2\\^64"):
        row_uniforms(*wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**{"max_new_tokens": 4} | wrong)
