"""`rewarden sample`: completions of prompts by a language model, for a file, for one prompt, or in conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rewarden.hf.generation.token_choice import Sampling
    from rewarden.hf.model.context import Context
    from rewarden.messages import Message, Text

# Rows of a forward pass: about where a CPU has the most tokens per second, and an accelerator still has room.
_ROWS = {"cpu": 128}
_ROWS_ELSEWHERE = 512

# Columns that would contradict what is written; a row has either "completion" or "completions".
_REPLACED = ("completion", "completions", "truncated")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample completions from a language model, such as the policy that `rewarden align` wrote.

    With --prompts, rows {"prompt": text or turns} become rows {"prompt", "completions": [...], "truncated": [...]}, which
    `rewarden score` reads. Other columns are kept; what is replaced is named. With --prompt, the completions are printed. With
    neither, and on a terminal, the model converses: /reset starts over, Ctrl-D ends.
    """

    model: str
    """Folder of a causal language model, hub id, or the name of an embedded model."""
    prompts: Path | None = None
    """.jsonl, .jsonl.gz or .parquet; needs --output."""
    prompt: str | None = None
    """One prompt as plain text."""
    system: str | None = None
    """A system turn before prompts that have none; it becomes part of the prompts that are written."""
    output: Path | None = None
    """Where rows go, .jsonl, .jsonl.gz or .parquet; written whole or not at all."""
    samples: int = 1
    """Completions of each prompt."""
    temperature: float = 1.0
    """What logits are divided by; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the smallest set of likeliest tokens with at least this probability."""
    max_new_tokens: int = 256
    """Tokens of a completion at most; longer ones are cut and marked as truncated."""
    raw: bool = False
    """Use plain text as it is, without the chat template."""
    seed: int = 0
    """The same seed gives the same completions."""
    json: bool = False
    """Print the row of --prompt, or a summary of --prompts, as JSON on stdout."""


class Answers(NamedTuple):
    """Completions of one prompt."""

    completions: list[str]
    truncated: list[bool]
    """Whether each was cut at the limit."""
    is_prompt_cut: bool
    """Whether the prompt lost its beginning, so that prompt and completion fit the model."""


@dataclass(frozen=True)
class Speaker:
    """A language model with how it is sampled."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    seed: int
    raw: bool

    @classmethod
    def load(cls, args: Sample) -> Speaker:
        """The model that the options describe.

        Raises:
            ValueError: When there is none, it is no causal language model, or options are out of range.
        """
        from rewarden.hf.generation.token_choice import Sampling
        from rewarden.hf.model.causal_model import load_trainable
        from rewarden.hf.model.loading import load_tokenizer

        sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p)
        tokenizer = load_tokenizer(args.model)
        model = load_trainable(args.model, "padded")[0].requires_grad_(False)
        speaker = cls(model, tokenizer, sampling, args.seed, args.raw)
        if speaker.room < 1:
            raise ValueError(
                f"--max-new-tokens {args.max_new_tokens} leaves no room for a prompt in the "
                f"{speaker.room + args.max_new_tokens} tokens that {args.model} was made for; lower it"
            )
        return speaker

    @property
    def room(self) -> int:
        """Tokens of a prompt at most."""
        return self.context.length - self.sampling.max_new_tokens

    @property
    def context(self) -> Context:
        """What the model can read."""
        from rewarden.hf.model.context import Context

        return Context.of(self.model.config._name_or_path, self.model)

    def __call__(
        self,
        prompts: Sequence[Text],
        samples: int,
        *,
        step: int = 0,
        rows: Sequence[int] | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> list[Answers]:
        """Completions of every prompt.

        Args:
            prompts: Plain text or turns.
            samples: Completions of each.
            step: Keys the random numbers, with the seed; the turn of a conversation.
            rows: Numbers of the prompts in their data, for messages; by default from 1.
            progress: Called with the number of completions that are done.

        Raises:
            ValueError: When the chat template refuses a prompt.
        """
        from rewarden.align.prompts import Prompt, encode_prompts

        numbers = range(1, len(prompts) + 1) if rows is None else rows
        asked = [Prompt(text, number, None, {}) for text, number in zip(prompts, numbers, strict=True)]
        # One at a time: which of them were cut is part of the answer.
        encoded = [encode_prompts(self.tokenizer, [one], max_length=self.room, raw=self.raw) for one in asked]
        self.context.check_ids(self.tokenizer, [one.ids[0] for one in encoded])
        found: list[Answers | None] = [None] * len(prompts)
        for batch in self._batches([len(one.ids[0]) for one in encoded], samples):
            for place, (texts, cut) in zip(
                batch, self._batch([encoded[place].ids[0] for place in batch], batch, samples, step), strict=True
            ):
                found[place] = Answers(texts, cut, bool(encoded[place].truncated))
                progress(samples)
        return [one for one in found if one is not None]

    def _batches(self, lengths: Sequence[int], samples: int) -> Iterator[list[int]]:
        """Places of prompts of similar length, as many as fit a pass."""
        order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
        size = max(1, _ROWS.get(self.model.device.type, _ROWS_ELSEWHERE) // samples)
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _batch(
        self, ids: list[list[int]], places: Sequence[int], samples: int, step: int
    ) -> Iterator[tuple[list[str], list[bool]]]:
        from rewarden.hf.generation.sampler import completion_text, end_tokens, sample
        from rewarden.hf.generation.token_choice import row_uniforms

        ends = end_tokens(self.model, self.tokenizer)
        rows = [place * samples + number for place in places for number in range(samples)]
        uniforms = row_uniforms(self.seed, step, rows, self.sampling.max_new_tokens)
        pad = self.tokenizer.pad_token_id or 0
        drawn = sample(self.model, ids, uniforms, group_size=samples, sampling=self.sampling, eos=ends, pad=pad)
        texts = [completion_text(self.tokenizer, tokens, ends=ends) for tokens in drawn.tokens]
        for start in range(0, len(rows), samples):
            yield texts[start : start + samples], [not ended for ended in drawn.ended[start : start + samples]]


def sample(args: Sample) -> dict[str, Any]:
    """Sample for --prompts or --prompt.

    Returns:
        For one prompt its row; for a file the counts of what was done.

    Raises:
        ValueError: On bad options or data, or a folder without a language model.
    """
    _check(args)
    return _of_file(args) if args.prompts is not None else _of_prompt(args)


def _check(args: Sample) -> None:
    """Refuse what cannot work before anything is loaded."""
    from rewarden.commands.output.computed_rows import check_destination

    is_chat = args.prompts is None and args.prompt is None
    if args.prompts is not None and args.prompt is not None:
        raise ValueError("got both --prompts and --prompt; give one of the two")
    if args.prompts is not None and args.output is None:
        raise ValueError(f"--prompts {args.prompts} needs a place for its completions; give --output FILE.jsonl")
    if args.output is not None and is_chat:
        raise ValueError("--output belongs to --prompts or --prompt; a conversation is not written down")
    if args.output is not None and not args.output.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise ValueError(f"--output {args.output}: unknown ending; use .jsonl, .jsonl.gz or .parquet")
    if args.output is not None:
        check_destination("--output", args.output, [] if args.prompts is None else [args.prompts])
    if args.samples < 1:
        raise ValueError(f"--samples is {args.samples}, expected at least 1 completion of each prompt")
    if not 0 <= args.seed < 2**64:
        raise ValueError(f"--seed is {args.seed}, expected a number from 0 to 2^64 - 1; choose another")
    if args.raw and (args.system is not None or is_chat):
        raise ValueError("--raw takes plain text as it is, without turns; leave it or --system out, and give a prompt")


def with_system(prompt: Text, system: str | None) -> Text:
    """The prompt behind a system turn, unless there is none to add or it has its own."""
    if system is None or (isinstance(prompt, list) and prompt[0]["role"] == "system"):
        return prompt
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *turns]


def _of_file(args: Sample) -> dict[str, Any]:
    from rewarden.align.prompts import prompt_of
    from rewarden.commands.output.carried_columns import carried
    from rewarden.commands.output.computed_rows import write_or_keep
    from rewarden.files import read_rows
    from rewarden.hf.progress import progress

    assert args.prompts is not None and args.output is not None
    rows = list(read_rows(args.prompts))
    prompts = [with_system(prompt_of(row, where), args.system) for where, row in rows]
    stays = [
        (where, {name: value for name, value in row.items() if name not in _REPLACED} | {"prompt": prompt})
        for (where, row), prompt in zip(rows, prompts, strict=True)
    ]
    kept = carried(stays, source=args.prompts, output=args.output, own={})
    numbers = [int(where.rpartition("row ")[2]) for where, _ in rows]
    speaker = Speaker.load(args)
    with progress(len(rows) * args.samples, "sample", "completion") as bar:
        found = speaker(prompts, args.samples, rows=numbers, progress=bar.update)
    computed = [{"completions": answers.completions, "truncated": answers.truncated} for answers in found]
    written = [row | new for row, new in zip(kept.rows, computed, strict=True)]
    write_or_keep(args.output, written, computed, kept.types)
    return {
        "output": str(args.output),
        "prompts": len(rows),
        "completions": len(rows) * args.samples,
        "truncated": sum(sum(answers.truncated) for answers in found),
        "prompts_cut": sum(answers.is_prompt_cut for answers in found),
        "replaced_columns": sorted({name for _, row in rows for name in _REPLACED if name in row}),
        "columns_as_text": kept.as_text,
    }


def _of_prompt(args: Sample) -> dict[str, Any]:
    from rewarden.align.prompts import prompt_of
    from rewarden.files import write_rows

    prompt = with_system(prompt_of({"prompt": args.prompt}, "--prompt"), args.system)
    (answers,) = Speaker.load(args)([prompt], args.samples)
    row = _row(prompt, answers)
    if args.output is not None:
        write_rows(args.output, [row])
    return row


def _row(prompt: Text, answers: Answers) -> dict[str, Any]:
    return {"prompt": prompt, "completions": answers.completions, "truncated": answers.truncated}


def converse(args: Sample, *, read: Callable[[str], str] = input) -> None:
    """A conversation that the model remembers, until the input ends.

    Args:
        args: Options.
        read: Asks for a line and returns it; raises EOFError at the end.

    Raises:
        ValueError: On bad options, or a folder without a language model.
    """
    _check(args)
    speaker = Speaker.load(args)
    print(f"{args.model}: /reset starts over, Ctrl-D ends", file=sys.stderr)
    turns: list[Message] = []
    asked = 0
    while True:
        try:
            text = read("> ").strip()
            if text == "/reset":
                turns = []
                print("(a new conversation)", file=sys.stderr)
            if not text or text == "/reset":
                continue
            turns.append({"role": "user", "content": text})
            (answers,) = speaker([with_system(turns, args.system)], 1, step=asked)
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        asked += 1
        turns.append({"role": "assistant", "content": answers.completions[0]})
        print(answers.completions[0])
        if answers.truncated[0]:
            print(f"(cut at {args.max_new_tokens} tokens; --max-new-tokens allows more)", file=sys.stderr)
        if answers.is_prompt_cut:
            print("(the beginning of the conversation no longer fits the model)", file=sys.stderr)


def main(args: Sample) -> None:
    """Sample, and say what was done; or converse."""
    _check(args)
    if args.prompts is None and args.prompt is None:
        if not sys.stdin.isatty():
            raise ValueError("nothing to sample for: give --prompts FILE or --prompt TEXT, or start it on a terminal")
        import readline  # noqa: F401  (lines can be edited once it is there)

        converse(args)
        return
    found = sample(args)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    elif args.prompts is None:
        print("\n\n".join(found["completions"]))
        cut = sum(found["truncated"])
        if cut:
            print(f"({cut} cut at {args.max_new_tokens} tokens; --max-new-tokens allows more)", file=sys.stderr)
    else:
        print(
            f"{found['output']}: {found['completions']:,} completions of {found['prompts']:,} prompts, "
            f"{found['truncated']:,} cut at {args.max_new_tokens:,} tokens"
            + (f"; {found['prompts_cut']:,} prompts lost their beginning to fit" if found["prompts_cut"] else "")
            + (f"; replaced columns: {', '.join(found['replaced_columns'])}" if found["replaced_columns"] else "")
            + "".join(f"; column {name} as {how}" for name, how in found["columns_as_text"].items())
        )
