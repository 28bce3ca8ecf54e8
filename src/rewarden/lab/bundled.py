"""The judge of quality made from the sample data of the package, and the held-out completions to test it on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from rewarden.assets import DATA
from rewarden.data import Pair, load_pairs, prompt_key
from rewarden.lab.damage import first_tokens
from rewarden.lab.gold import Originals, Quality
from rewarden.lab.ngram import NgramModel
from rewarden.lab.relevance import Relevance
from rewarden.messages import Text

LEAST_WORDS = 8
"""Completions with fewer words are not tested: a shuffle of "Yes, it is." is no test of anything."""
ENOUGH = 32
"""Words and marks that 48 tokens of rewarden-tiny usually hold; the default length at which completions are judged."""


def plain(text: Text | None) -> str:
    """A text as one string; of turns the contents, one below the other."""
    if text is None:
        return ""
    return text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)


def originals(pairs: Iterable[Pair], *, at_most: int | None = ENOUGH) -> Originals:
    """The distinct completions of pairs, the better and the worse alike, that have `LEAST_WORDS` words or more.

    Args:
        pairs: Preference pairs.
        at_most: Completions are cut after so many tokens. None leaves them whole.
    """
    found: dict[tuple[str, str, str], None] = {}
    for pair in pairs:
        for completion in (pair.chosen, pair.rejected):
            text = plain(completion) if at_most is None else first_tokens(plain(completion), at_most)
            if len(text.split()) >= LEAST_WORDS:
                found[prompt_key(pair.prompt), plain(pair.prompt), text] = None
    keys, prompts, texts = zip(*found, strict=True)
    return Originals(list(prompts), list(texts), list(keys))


def quality(*, enough: int = ENOUGH, seed: int = 0) -> Quality:
    """The judge fitted on the bundled training pairs, without their labels; takes some seconds and is always the same.

    Four fifths of the prompts, with all their completions, teach it words; the last fifth sets the weights. The held-out
    pairs, `held_out`, take no part.
    """
    pairs = load_pairs(DATA / "train.jsonl.gz")
    read = [pair for pair in pairs if not _sets_weights(pair)]
    completions = list(dict.fromkeys(plain(text) for pair in read for text in (pair.chosen, pair.rejected)))
    prompts = list(dict.fromkeys(plain(pair.prompt) for pair in read))
    rest = originals((pair for pair in pairs if _sets_weights(pair)), at_most=enough)
    ngrams, relevance = NgramModel.fit(completions), Relevance.fit([*completions, *prompts])
    return Quality.fit(ngrams, relevance, rest, enough=enough, seed=seed)


def held_out(name: str = "eval", *, at_most: int | None = ENOUGH) -> Originals:
    """Completions that `quality` was not fitted to.

    Args:
        name: "eval", from the same sources as the training pairs; or "llmbar", from others.
        at_most: As for `originals`.
    """
    return originals(load_pairs(DATA / f"{name}.jsonl.gz"), at_most=at_most)


def _sets_weights(pair: Pair) -> bool:
    return zlib.crc32(prompt_key(pair.prompt).encode()) % 5 == 0
