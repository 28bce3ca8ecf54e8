"""The `rewarden` command: finds the sub-command and imports it only then, so that help is instant."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

COMMANDS = {
    "train": "train a reward model on preference pairs",
    "score": "score completions with a trained model",
    "evaluate": "accuracy, calibration, length bias and best-of-n, with a report",
    "align": "train a policy against a reward, with monitors that say when the reward stops meaning anything",
    "sample": "completions of any causal language model, from a file of prompts or in conversation",
    "quickstart": "the whole story on bundled data: train three methods, compare them, write a report",
    "merge": "average the weights of several trained models into one (WARM)",
    "data": "look at preference data before training on it: `rewarden data inspect FILE`",
    "path": "where an embedded model is on disk",
}

INTERRUPTED = {
    "train": "the same command with `--resume` continues from the last checkpoint",
    "align": "the same command with `--resume` continues from the last checkpoint",
    "evaluate": "the same command with `--resume` takes the scores that are finished",
    "score": "nothing was written; answers of a judge's endpoint are kept by the output, and the same command goes on from there",
    "quickstart": "the same command continues, and keeps the models that are finished",
}
"""How an interrupted command goes on; the others have written nothing."""

USAGE = "usage: rewarden COMMAND [options]\n\nReward models that hold up when a policy optimises against them.\n\ncommands:\n"
CLOSED = 141
"""Exit code after the reader of our output has gone, as if the signal had ended us."""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0; 2 with one message on stderr for bad input; 130 after an interruption; 141 when nobody reads any more.
    """
    from rewarden.commands.output.terminal import give_up_output, write_anything

    write_anything()
    arguments = sys.argv[1:] if argv is None else argv
    try:
        code = _chosen(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        give_up_output()
        return CLOSED
    except KeyboardInterrupt:
        way_on = INTERRUPTED.get(arguments[0] if arguments else "", "nothing was written")
        print(f"rewarden: interrupted; {way_on}", file=sys.stderr)
        return 130
    return code


def _chosen(arguments: list[str]) -> int:
    """What is answered at once, or the command."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if "--version" in arguments or arguments[:1] == ["-V"]:
        from rewarden import __version__

        print(f"rewarden {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "--help-all"):
        rows = "".join(f"  {name:<12}{text}\n" for name, text in COMMANDS.items())
        print(f"{USAGE}{rows}\n`rewarden COMMAND --help` explains a command; `rewarden --version` prints the version.")
        return 0
    if arguments[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        return _fail(f"unknown command {arguments[0]!r}; {hint}")
    return _run(arguments[0], arguments[1:])


def _run(command: str, arguments: Sequence[str]) -> int:
    import importlib

    from rewarden.commands.options.help_text import help_text
    from rewarden.commands.options.parse import HelpAsked, parse

    try:
        with _interrupted_at_once():
            module = importlib.import_module(f"rewarden.commands.{command}")
            options: Any = parse(getattr(module, command.capitalize()), arguments, command=f"rewarden {command}")
            if command != "path":
                _quiet()
        module.main(options)
    except HelpAsked as asked:
        print(help_text(asked.about, asked.command, is_all=asked.is_all), end="")
    except BrokenPipeError:
        raise
    except OSError as error:
        is_about_file = error.filename is not None and error.strerror is not None
        return _fail(f"{error.filename}: {error.strerror}" if is_about_file else error)
    except ValueError as error:
        return _fail(error)
    except Exception as error:
        # Writing weights reports a full disk in classes of its own.
        if "No space left" in str(error) or "file write failed" in str(error):
            return _fail(error)
        raise
    return 0


def _fail(error: object) -> int:
    from rewarden.commands.output.terminal import visible

    print(f"rewarden: {visible(error)}", file=sys.stderr)
    return 2


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """While libraries are being imported, Ctrl-C ends the process: an exception would surface as an error of theirs."""
    import os
    import signal
    import threading

    def leave(*_: object) -> None:
        os.write(2, b"rewarden: interrupted\n")
        os._exit(130)

    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if is_ours:
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _quiet() -> None:
    """Commands speak for themselves; the libraries under them speak only of errors."""
    import logging
    import os

    from rewarden.commands.output.terminal import visible

    class OneLine(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return visible(super().format(record))

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("rewarden: %(message)s"))
    logging.getLogger("rewarden").handlers = [handler]  # one, however often `main` is called
    logging.getLogger("rewarden").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
