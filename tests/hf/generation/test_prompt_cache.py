import pytest
import torch
from torch import nn

from rewarden.hf.generation.prompt_cache import SharedCache, shared_attention

LENGTHS, GROUP, ROOM = (5, 3), 2, 6


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def reference(queries, keys, values, *, window, softcap, sinks) -> torch.Tensor:
    """The last query of one row against all of its keys, one head at a time: (heads, value size)."""
    heads = []
    for head in range(queries.shape[0]):
        source = head * keys.shape[0] // queries.shape[0]
        scores = keys[source] @ queries[head] * 0.3
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if window is not None:
            scores = scores[-window:]
        weights = scores.exp()
        total = weights.sum() + (0 if sinks is None else sinks[head].exp())
        heads.append(weights / total @ values[source][-len(weights) :])
    return torch.stack(heads)


class Rows:
    """A layer that has seen two prompts, and what each of their rows should remember of it."""

    def __init__(self, key_heads: int, **options: object) -> None:
        self.module, self.options = nn.Identity(), options
        self.cache = SharedCache(LENGTHS, GROUP, ROOM, torch.device("cpu"))
        total = sum(LENGTHS)
        q, k, v = (
            draw(1, 4, total, 8, seed=1),
            draw(1, key_heads, total, 8, seed=2),
            draw(1, key_heads, total, 6, seed=3),
        )
        self.prompt_output = self.attend(q, k, v)
        self.cache.start()
        parts = [(k[0, :, at : at + size], v[0, :, at : at + size]) for at, size in ((0, 5), (5, 3))]
        self.seen = [parts[row // GROUP] for row in range(len(LENGTHS) * GROUP)]
        self.prompt_states = (q, k, v)

    def attend(self, query, key, value) -> torch.Tensor:
        found, weights = shared_attention(
            self.module, query, key, value, None, scaling=0.3, shared=self.cache, **self.options
        )
        assert weights is None
        return found

    def step(self, seed: int) -> None:
        """One more token for every row, compared with the reference."""
        rows, heads = len(self.seen), self.seen[0][0].shape[0]
        q, k, v = (
            draw(rows, 4, 1, 8, seed=seed),
            draw(rows, heads, 1, 8, seed=seed + 1),
            draw(rows, heads, 1, 6, seed=seed + 2),
        )
        self.seen = [
            (torch.cat([keys, k[row]], dim=1), torch.cat([values, v[row]], dim=1))
            for row, (keys, values) in enumerate(self.seen)
        ]
        found = self.attend(q, k, v)
        self.cache.advance()
        assert found.shape == (rows, 1, 4, 6)
        named = {"window": self.options.get("sliding_window"), "softcap": self.options.get("softcap")}
        for row, (keys, values) in enumerate(self.seen):
            expected = reference(q[row, :, 0], keys, values, sinks=self.options.get("s_aux"), **named)
            torch.testing.assert_close(found[row, 0], expected, rtol=1e-11, atol=1e-11)


SINKS = torch.tensor([-1.0, 0.0, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"sliding_window": 4}, {"sliding_window": 1}, {"softcap": 1.5}, {"s_aux": SINKS},
                {"sliding_window": 3, "softcap": 1.5, "s_aux": SINKS}],
    ids=["plain", "window", "itself", "softcap", "sinks", "all"],
)  # fmt: skip
def test_equals_a_softmax_over_prompt_and_own_tokens(key_heads, options):
    rows = Rows(key_heads, **options)
    for step in range(ROOM):
        rows.step(10 * step)


def test_prompts_do_not_see_each_other():
    rows = Rows(2)
    q, k, v = rows.prompt_states
    for at, size in ((0, 5), (5, 3)):
        for place in range(at, at + size):
            expected = reference(
                q[0, :, place], k[0, :, at : place + 1], v[0, :, at : place + 1], window=None, softcap=None, sinks=None
            )
            torch.testing.assert_close(rows.prompt_output[0, place], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("prompts", "kept"), [([0, 1], [[1], [0]]), ([1], [[1, 0]]), ([1], [[0]])], ids=["one each", "a prompt", "a row"]
)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 4}], ids=["plain", "window"])
def test_rows_that_stay_remember(prompts, kept, options):
    rows = Rows(2, **options)
    for step in range(2):
        rows.step(10 * step)
    rows.cache.select(torch.tensor(prompts), torch.tensor(kept))
    rows.seen = [rows.seen[prompt * GROUP + row] for prompt, each in zip(prompts, kept, strict=True) for row in each]
    for step in range(2, ROOM):
        rows.step(10 * step)


def test_half_precision_is_kept_in_float32_on_a_cpu():
    cache, module = SharedCache((4,), 2, 1, torch.device("cpu")), nn.Identity()
    prompt = [draw(1, 2, 4, 8, seed=seed, dtype=torch.bfloat16) for seed in (1, 2, 3)]
    found, _ = shared_attention(module, *prompt, None, shared=cache)
    cache.start()
    token = [draw(2, 2, 1, 8, seed=seed, dtype=torch.bfloat16) for seed in (4, 5, 6)]
    with torch.autocast("cpu", torch.bfloat16):  # must not reach the products inside
        after, _ = shared_attention(module, *token, None, shared=cache)
    assert found.dtype == after.dtype == torch.bfloat16
    keys, values = (
        torch.cat([states[0], own[1]], dim=1).float() for states, own in zip(prompt[1:], token[1:], strict=True)
    )
    scores = (keys @ token[0][1, :, 0].float()[..., None])[..., 0] * 8**-0.5
    expected = (scores.softmax(-1)[:, None] @ values)[:, 0].to(torch.bfloat16)
    torch.testing.assert_close(after[1, 0], expected, rtol=1e-2, atol=1e-2)


def test_refusals():
    states = [draw(1, 2, 4, 8, seed=seed) for seed in (1, 2, 3)]
    module = nn.Identity()
    with pytest.raises(ValueError, match="pass shared=SharedCache"):
        shared_attention(module, *states, None)
    cache = SharedCache((4,), 1, 1, torch.device("cpu"))
    shared_attention(module, *states, None, shared=cache)
    with pytest.raises(ValueError, match="more than once"):
        shared_attention(module, *states, None, shared=cache)
    with pytest.raises(ValueError, match="row of 5 tokens"):
        shared_attention(nn.Identity(), *states, None, shared=SharedCache((5,), 1, 1, torch.device("cpu")))
    with pytest.raises(ValueError, match="position_bias"):
        shared_attention(
            nn.Identity(), *states, None, shared=SharedCache((4,), 1, 1, torch.device("cpu")), position_bias=states[0]
        )
    with pytest.raises(ValueError, match="dropout"):
        shared_attention(nn.Identity(), *states, None, shared=SharedCache((4,), 1, 1, torch.device("cpu")), dropout=0.1)
