"""The text of each token of a completion, so that the pieces together are the completion."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_CONTEXT = 4  # tokens of the prompt: some decoders strip the space of whatever comes first
_BROKEN = "\ufffd"  # what bytes become that are no whole character


def token_pieces(tokenizer: PreTrainedTokenizerBase, sequence: Sequence[int], completion: int) -> list[str]:
    """The pieces of text that the last `completion` tokens of a sequence add, special tokens included.

    A token that ends inside a character adds nothing; the one that completes the character adds all of it. Bytes that never
    become one are shown as U+FFFD where the completion ends. Joined, the pieces are the text of the completion.
    """
    start = len(sequence) - completion
    kept = max(start - _CONTEXT, 0)  # decoded again and again, but short: it moves on with every whole character
    done = start
    pieces = []
    before = _text(tokenizer, sequence[kept:done])
    for stop in range(start + 1, len(sequence) + 1):
        text = _text(tokenizer, sequence[kept:stop])
        if text.endswith(_BROKEN) and stop < len(sequence):
            pieces.append("")
            continue
        # What was there before can change at the boundary only, where it may end inside a character.
        known = before if text.startswith(before) else before.rstrip(_BROKEN)
        pieces.append(text[len(known) :])
        kept, done = max(kept, done - _CONTEXT), stop
        before = _text(tokenizer, sequence[kept:done])
    return pieces


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
