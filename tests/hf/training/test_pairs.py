import numpy as np
import pytest
import torch

from rewarden.data import Pair
from rewarden.files import DataError
from rewarden.hf.tokens import Limits, TokenGroup
from rewarden.hf.training.pairs import (
    LengthGroups,
    PairCollator,
    PairDataset,
    TokenPair,
    chosen_and_rejected,
    pair_rewards,
    training_pairs,
)
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.tree.layout import Tree

LIMITS = Limits(max_length=30, max_completion_length=8)


def pair(chosen: str, rejected: str, *, row: int = 1, margin: float | None = None, agreement: float | None = None):
    return Pair("hi", chosen, rejected, "set", margin, agreement, f"a.jsonl, row {row}")


def test_every_pair_is_accounted_for(tokenizer):
    pairs = [
        pair("yes", "no"),
        pair("same", "same"),  # identical
        pair("abcdefghij1", "abcdefghij2"),  # identical once cut
        pair("klmnopqrstuvw", "no"),  # cut
        pair("x", "y"),
    ]
    found = training_pairs(tokenizer, pairs, LIMITS, method=BradleyTerry())
    assert found.counts.as_dict() == {
        "read": 5,
        "used": 3,
        "identical": 1,
        "identical_when_cut": 1,
        "identical_once_rendered": 0,
        "too_long": 0,
        "truncated": 1,
        "lost_text": 0,
    }
    assert [pair.row for pair in found.pairs] == [0, 3, 4]
    assert [pair.group.is_truncated for pair in found.pairs] == [(False, False), (True, False), (False, False)]
    assert {(pair.margin, pair.agreement) for pair in found.pairs} == {(None, None)}


def test_what_the_template_leaves_out_is_counted_apart(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}<end>{% endfor %}"
    )
    pairs = [
        pair("<think>a</think>yes", "<think>b</think>yes"),  # identical once rendered
        pair("abcdefghij1", "abcdefghij2"),  # identical once cut
        pair("<think>a</think>yes", "no"),
    ]
    counts = training_pairs(tokenizer, pairs, LIMITS, method=BradleyTerry()).counts
    assert (counts.identical_once_rendered, counts.identical_when_cut, counts.used, counts.lost_text) == (1, 1, 1, 1)


def test_chosen_comes_first(tokenizer):
    (found,) = training_pairs(tokenizer, [pair("yes", "no")], LIMITS, method=BradleyTerry()).pairs
    assert [tokenizer.decode(sequence[-4:-2]) for sequence in found.group.sequences] == ["es", "no"]


def test_dropped_pairs_are_counted(tokenizer):
    limits = Limits(max_length=30, max_completion_length=8, over_long="drop")
    counts = training_pairs(
        tokenizer, [pair("yes", "no"), pair("x" * 9, "no"), pair("x" * 9, "x" * 9)], limits, method=BradleyTerry()
    ).counts
    assert (counts.read, counts.used, counts.too_long, counts.identical, counts.truncated) == (3, 1, 1, 1, 0)


def test_columns_only_when_asked_for(tokenizer):
    pairs = [pair("yes", "no", margin=2.0, agreement=0.9), pair("x", "y", margin=-1.0, agreement=0.5)]

    def columns(**options):
        found = training_pairs(tokenizer, pairs, LIMITS, method=BradleyTerry(), **options).pairs
        return [(pair.margin, pair.agreement) for pair in found]

    assert columns() == [(None, None), (None, None)]
    assert columns(margin_scale=0.5) == [(1.0, None), (-0.5, None)]
    assert columns(margin_scale=0.0) == [(0.0, None), (0.0, None)]
    assert columns(use_agreement=True) == [(None, 0.9), (None, 0.5)]


@pytest.mark.parametrize(
    ("options", "name"), [({"margin_scale": 1.0}, "margin"), ({"use_agreement": True}, "agreement")]
)
def test_missing_column_is_named(tokenizer, options, name):
    pairs = [pair("yes", "no", margin=1.0, agreement=1.0), pair("x", "y", row=2)]
    with pytest.raises(DataError, match=f"a.jsonl, row 2: no {name}, but it was asked for"):
        training_pairs(tokenizer, pairs, LIMITS, method=BradleyTerry(), **options)
    with pytest.raises(ValueError, match=f"BayesianEnsemble has no use for the {name} column"):
        training_pairs(tokenizer, pairs, LIMITS, method=BayesianEnsemble(), **options)


def test_nothing_left(tokenizer):
    pairs = [pair("same", "same"), pair("abcdefghij1", "abcdefghij2")]
    message = "no pair is left to train on: 2 read, 1 with identical completions, 1 identical once cut, 0 too long"
    with pytest.raises(DataError, match=message):
        training_pairs(tokenizer, pairs, LIMITS, method=BradleyTerry())


def order(lengths, *, epoch: int = 0, seed: int = 0, batch_size: int = 4) -> list[int]:
    sampler = LengthGroups(lengths, batch_size=batch_size, seed=seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(lengths)
    return list(sampler)


LENGTHS = np.random.default_rng(0).integers(10, 500, 1003).tolist()


def test_order_is_a_permutation_that_seed_and_epoch_decide():
    found = order(LENGTHS, epoch=3)
    assert sorted(found) == list(range(1003))
    assert found == order(LENGTHS, epoch=3)
    assert found != order(LENGTHS, epoch=4)
    assert found != order(LENGTHS, epoch=3, seed=1)
    assert found != order(LENGTHS, epoch=0, seed=3)


def test_batches_are_of_similar_length():
    found = order(LENGTHS)
    spreads = [np.ptp([LENGTHS[index] for index in found[start : start + 4]]) for start in range(0, 1000, 4)]
    rng = np.random.default_rng(1)
    shuffled = [np.ptp(rng.choice(LENGTHS, 4)) for _ in range(250)]
    assert np.mean(spreads) < 0.1 * np.mean(shuffled)


def test_batches_are_not_sorted():
    found = order(list(range(200)))
    firsts = found[::4]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


def test_incomplete_batch_comes_last():
    # 10 pairs of lengths 0 to 9 in batches of 4: what is left over is the two longest.
    for epoch in range(5):
        found = order(list(range(10)), epoch=epoch)
        assert sorted(sorted(found[i : i + 4]) for i in (0, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert sorted(found[8:]) == [8, 9]


def token_pair(row: int, **columns: float) -> TokenPair:
    sequences = np.array([5, 6, 10 + row], dtype=np.int32), np.array([5, 6, 7, 20 + row], dtype=np.int32)
    return TokenPair(TokenGroup(sequences, (1, 2), (False, False)), row, **columns)


def test_collator_by_hand():
    pairs = [token_pair(7, margin=0.5, agreement=0.25), token_pair(3, margin=-1.0, agreement=1.0)]
    batch = PairCollator("tree", 0)(pairs)
    assert batch["input_ids"].tolist() == [[5, 6, 17, 7, 27, 5, 6, 13, 7, 23]]
    assert batch["tree"].trees == (Tree(2, (1, 2)), Tree(2, (1, 2)))
    assert batch["info"]["row"].tolist() == [7, 3]
    assert batch["info"]["margin"].tolist() == [0.5, -1.0]
    assert batch["info"]["agreement"].tolist() == [0.25, 1.0]
    assert batch["info"]["margin"].dtype == torch.float32
    assert (batch["info"]["chosen_length"].tolist(), batch["info"]["rejected_length"].tolist()) == ([1, 1], [2, 2])
    padded = PairCollator("padded", 9)(pairs)
    assert padded["input_ids"].tolist() == [[5, 6, 17, 9], [5, 6, 7, 27], [5, 6, 13, 9], [5, 6, 7, 23]]


def test_collator_names_the_tokens_of_completions_only_when_asked():
    pairs = [token_pair(7), token_pair(3)]
    batch = PairCollator("tree", 0, with_tokens=True)(pairs)
    assert batch["predictors"].tolist() == [[1, -1], [1, 3], [6, -1], [6, 8]]
    assert batch["targets"].tolist() == [[17, -1], [7, 27], [13, -1], [7, 23]]
    assert batch.keys() - PairCollator("tree", 0)(pairs).keys() == {"predictors", "targets"}


def test_collator_without_columns():
    info = PairCollator("tree", 0)([token_pair(0), token_pair(1)])["info"]
    assert info["margin"] is None
    assert info["agreement"] is None


def test_dataset():
    pairs = [token_pair(0), token_pair(1)]
    dataset = PairDataset(pairs)
    assert (len(dataset), dataset[1], dataset.lengths()) == (2, pairs[1], [7, 7])


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_pair_rewards_keep_the_order(build, make_group, layout):
    model = build("llama", InfoBottleneck(latent_size=4), layout=layout).train()
    groups = [make_group(3 + size % 4, (2 + size, 5), seed=size) for size in range(11)]
    found = pair_rewards(model, groups, pad_token_id=0, budget=40)
    assert not model.training
    model.use_layout("padded")
    alone = [model(torch.tensor(each[None]).long()).reward for group in groups for each in group.sequences]
    torch.testing.assert_close(found, torch.cat(alone).view(11, 2).detach(), rtol=1e-4, atol=1e-5)


def test_chosen_and_rejected_undo_what_the_collator_lays_out(build, make_group):
    model, pairs = (
        build("llama", layout="padded"),
        [TokenPair(make_group(4, (3, 5), seed=seed), seed) for seed in range(3)],
    )
    batch = PairCollator("padded", 0)(pairs)
    batch.pop("info")
    chosen, rejected = chosen_and_rejected(model(**batch))
    expected = pair_rewards(model, [pair.group for pair in pairs], pad_token_id=0)
    torch.testing.assert_close(torch.stack([chosen.reward, rejected.reward], dim=-1), expected, rtol=1e-4, atol=1e-5)
