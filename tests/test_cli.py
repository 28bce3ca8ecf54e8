import importlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rewarden
from rewarden.assets import model_path
from rewarden.cli import COMMANDS, _quiet, main

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: rewarden COMMAND")
    for name, text in COMMANDS.items():
        assert f"  {name} " in out
        assert text in out


@pytest.mark.parametrize(
    "arguments", [["--version"], ["-V"], ["train", "--version"], ["path", "nonsense", "--version"]]
)
def test_the_version_anywhere(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"rewarden {rewarden.__version__}\n"


def test_arguments_default_to_those_of_the_process(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sys, "argv", ["rewarden", "--version"])
    assert main() == 0
    assert rewarden.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("trian", "did you mean train?"),
        ("evalute", "did you mean evaluate?"),
        ("zzz", "there are train, score, evaluate, align, sample, quickstart, merge, data, path"),
        ("--seed", "there are train"),
    ],
)
def test_an_unknown_command_is_refused_with_a_hint(typed: str, hint: str, capsys: Captured) -> None:
    assert main([typed]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"rewarden: unknown command {typed!r}; {hint}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_options_of_its_name_and_a_main(command: str) -> None:
    module = importlib.import_module(f"rewarden.commands.{command}")
    options = getattr(module, command.capitalize())
    assert options.__doc__
    assert callable(module.main)


def test_path_prints_the_folder_of_the_embedded_model(capsys: Captured) -> None:
    assert main(["path"]) == 0
    folder = capsys.readouterr().out
    assert folder == f"{model_path('rewarden-tiny')}\n"
    assert Path(folder.strip()).parent == Path(rewarden.__file__).parent / "assets"
    assert main(["path", "rewarden-tiny"]) == 0
    assert capsys.readouterr().out == folder


def test_path_as_json(capsys: Captured) -> None:
    assert main(["path", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "rewarden-tiny",
        "path": str(model_path("rewarden-tiny")),
    }


def test_bad_input_exits_with_2_and_one_message(capsys: Captured) -> None:
    assert main(["path", "nonsense"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "rewarden: no embedded model is called 'nonsense'; there is rewarden-tiny\n"


def test_an_unknown_option_exits_with_2(capsys: Captured) -> None:
    assert main(["path", "--no-such-option"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "rewarden: there is no option --no-such-option (`rewarden path --help` explains)\n"


@pytest.mark.parametrize("arguments", [["path", "--help"], ["path", "-h"], ["help", "path"], ["path", "--help-all"]])
def test_help_of_a_command_exits_with_0(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "usage: rewarden path" in out
    assert "Print the folder of a model" in out


class Breaks:
    """A stand-in for the body of `rewarden path` that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, _args: object) -> None:
        raise self.error


@pytest.fixture
def path_command() -> ModuleType:
    return importlib.import_module("rewarden.commands.path")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("row 3 is empty"), 2, "rewarden: row 3 is empty\n"),
        (FileNotFoundError(2, "No such file", "x.jsonl"), 2, "rewarden: x.jsonl: No such file\n"),
        (RuntimeError("write: No space left on device"), 2, "rewarden: write: No space left on device\n"),
        (KeyboardInterrupt(), 130, "rewarden: interrupted; nothing was written\n"),
    ],
)
def test_expected_errors_become_exit_codes(
    path_command: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(path_command, "main", Breaks(error))
    assert main(["path"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("command", ["train", "align", "evaluate", "quickstart", "score", "sample", "merge", "data"])
def test_after_an_interruption_each_command_says_its_own_way_on(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    module = importlib.import_module(f"rewarden.commands.{command}")
    monkeypatch.setattr(module, "main", Breaks(KeyboardInterrupt()))
    monkeypatch.setattr("rewarden.commands.options.parse.parse", lambda *_, **__: None)
    assert main([command]) == 130
    said = capsys.readouterr().err
    assert said.startswith("rewarden: interrupted; ")
    assert ("--resume" in said) == (command in ("train", "align", "evaluate"))
    assert ("nothing was written" in said) == (command in ("score", "sample", "merge", "data"))


def test_what_data_smuggles_into_a_message_steers_no_terminal(
    path_command: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(
        path_command, "main", Breaks(ValueError("row 3: got \x1b]0;owned\x07 and \u202etxt\nnext line"))
    )
    assert main(["path"]) == 2
    assert capsys.readouterr().err == "rewarden: row 3: got \\x1b]0;owned\\x07 and \\u202etxt\nnext line\n"


def test_a_closed_pipe_ends_quietly() -> None:
    code = (
        "import os, subprocess, sys; child = subprocess.Popen([sys.executable, '-m', 'rewarden', 'path'], "
        "stdout=subprocess.PIPE, stderr=subprocess.PIPE); child.stdout.close(); "
        "print(child.stderr.read(), child.wait())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "b'' 141\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_with_few_characters_gets_escapes(encoding: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    words = [sys.executable, "-c", f"import sys; from rewarden.cli import main; sys.exit(main({['path', '≈']!r}))"]
    found = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 2
    assert found.stderr == "rewarden: no embedded model is called '\\u2248'; there is rewarden-tiny\n"


def test_an_interruption_while_libraries_load_ends_without_a_traceback(tmp_path: Path) -> None:
    slow = tmp_path / "transformers.py"
    wait = "print('loading', flush=True)\n    time.sleep(30)"
    slow.write_text(f"import time\ntry:\n    {wait}\nexcept KeyboardInterrupt:\n    raise ImportError\n")
    words = ["score", "--input", "a", "--output", "b"]
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also where it is ignored
        f"sys.path.insert(0, {str(tmp_path)!r}); from rewarden.cli import main; sys.exit(main({words!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "loading\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert (child.returncode, said) == (130, "rewarden: interrupted\n")


def test_an_unexpected_error_keeps_its_traceback(path_command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_command, "main", Breaks(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["path"])


def test_messages_are_printed_once_however_often_main_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    logger = logging.getLogger("rewarden")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    _quiet()
    _quiet()
    logging.getLogger("rewarden.hf.training.fit").info("epoch 1")
    assert capsys.readouterr().err == "rewarden: epoch 1\n"


def test_python_dash_m_passes_the_exit_code_on() -> None:
    done = subprocess.run([sys.executable, "-m", "rewarden", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean train?" in done.stderr
