"""How much a text says again. Texts come as lists of tokens; all measures are shares of the text, from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(tokens: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams; higher is more varied.

    Reference: Li et al. 2016, arXiv:1510.03055. Deviation: they divide by the number of tokens.

    Args:
        tokens: A text.
        n: Length of the n-grams, at least 1.

    Returns:
        From 1 / number of n-grams (all the same) to 1 (all different). 1 for a text shorter than n: nothing is said twice.

    Raises:
        ValueError: If n is below 1.
    """
    grams = _grams(tokens, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def seq_rep_n(tokens: Sequence[str], n: int = 4, *, before: Sequence[str] = ()) -> float:
    """Share of the text's n-grams that were there already; lower is better.

    Without `before` it is 1 - `distinct_n`: seq-rep-n of Welleck et al. 2020, arXiv:1908.04319, section 6. With it, n-grams
    of `before` count as said too, which catches a completion that repeats its prompt.

    Args:
        tokens: A text.
        n: Length of the n-grams, at least 1.
        before: What was said before the text; n-grams that begin there and end in the text are not looked at.

    Returns:
        From 0 to 1; 0 for a text shorter than n.

    Raises:
        ValueError: If n is below 1.
    """
    grams = _grams(tokens, n)
    new = set(grams).difference(_grams(before, n))
    return 1 - len(new) / len(grams) if grams else 0.0


def _grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"got n-grams of {n} tokens, expected at least 1; 4 is usual")
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
