"""The `rewarden` command: finds the sub-command and imports it only then, so that help is instant."""

from __future__ import annotations

import sys

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

USAGE = "usage: rewarden COMMAND [options]\n\nReward models that hold up when a policy optimises against them.\n\ncommands:\n"


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 with one message on stderr for bad input."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--version" in arguments:
        from rewarden import __version__

        print(f"rewarden {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = "".join(f"  {name:<12}{text}\n" for name, text in COMMANDS.items())
        print(f"{USAGE}{rows}\n`rewarden COMMAND --help` explains a command; `rewarden --version` prints the version.")
        return 0
    if arguments[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(COMMANDS)}"
        print(f"rewarden: unknown command {arguments[0]!r}{hint}", file=sys.stderr)
        return 2
    return _run(arguments[0], arguments[1:])


def _run(command: str, arguments: list[str]) -> int:
    import importlib

    import tyro

    module = importlib.import_module(f"rewarden.commands.{command}")
    options = getattr(module, command.capitalize())
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    parsed = tyro.cli(options, prog=f"rewarden {command}", args=arguments, config=config)
    if command != "path":
        _quiet()
    try:
        module.main(parsed)
    except (ValueError, OSError) as error:
        return _fail(error)
    except Exception as error:
        # Writing weights reports a full disk in classes of its own.
        if "No space left" in str(error) or "file write failed" in str(error):
            return _fail(error)
        raise
    except KeyboardInterrupt:
        print("rewarden: interrupted; `--resume` continues a training run", file=sys.stderr)
        return 130
    return 0


def _fail(error: Exception) -> int:
    print(f"rewarden: {error}", file=sys.stderr)
    return 2


def _quiet() -> None:
    """Commands speak for themselves; the libraries under them speak only of errors."""
    import logging
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("rewarden: %(message)s"))
    logging.getLogger("rewarden").handlers = [handler]  # one, however often `main` is called
    logging.getLogger("rewarden").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
