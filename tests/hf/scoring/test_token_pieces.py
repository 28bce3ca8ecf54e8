from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rewarden.hf.scoring.token_pieces import token_pieces


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_pieces_of_single_bytes(tokenizer) -> None:
    sequence = ids(tokenizer, "<user>q<end>\n<assistant>né<end>")
    assert token_pieces(tokenizer, sequence, 4) == ["n", "", "é", "<end>"]


@pytest.mark.parametrize(
    "text", ["naïve café", "日本語 🙂🙂 mixed", "a\n\n  b\t", "\ufffd", "x\ufffd y\ufffd\ufffd", "", " a bc a"]
)
@pytest.mark.parametrize("prompt", ["", "p", "日本🙂"])
def test_pieces_make_up_the_completion(tokenizer, prompt: str, text: str) -> None:
    opening, rest = ids(tokenizer, prompt), ids(tokenizer, text + "<end>\n")
    pieces = token_pieces(tokenizer, opening + rest, len(rest))
    assert len(pieces) == len(rest)
    assert "".join(pieces) == text + "<end>\n"


def test_a_character_cut_off_at_the_end_is_shown_as_broken(tokenizer) -> None:
    sequence = ids(tokenizer, "ab🙂")[:-1]
    assert token_pieces(tokenizer, sequence, 4) == ["b", "", "", "\ufffd"]
    # In the middle, where a special token follows, the bytes before it are not lost either.
    assert token_pieces(tokenizer, [*sequence, 6], 5) == ["b", "", "", "", "\ufffd<end>"]


def test_a_completion_that_begins_inside_a_character(tokenizer) -> None:
    sequence = ids(tokenizer, "aé!")
    assert token_pieces(tokenizer, sequence, 2) == ["é", "!"]


def test_leading_spaces_survive_decoders_that_strip_them() -> None:
    """As Llama 2's: a space is the mark in front of a word, and the first one of a text is dropped."""
    vocab = {word: number for number, word in enumerate(["<unk>", "▁Hi", "▁there", "▁you", "!"])}
    fast = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    fast.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>")
    assert token_pieces(tokenizer, [1, 2, 3, 4], 2) == [" you", "!"]
    assert token_pieces(tokenizer, [1, 2, 3, 4] * 4, 15) == [" there", " you", "!", *[" Hi", " there", " you", "!"] * 3]
