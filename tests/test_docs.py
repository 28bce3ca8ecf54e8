"""The pages say what the code does: names, modules, links, commands, flags and one derivation."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from rewarden import cli, losses
from rewarden.commands.options.flags import flags_of
from rewarden.commands.options.parse import HELP
from rewarden.methods import HEADS, METHODS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rewarden"
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [page for page in (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS) if page.exists()]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(text: str, *languages: str) -> list[str]:
    """The code blocks of a page in the given languages."""
    return [code for language, code in FENCE.findall(text) if language in languages]


def command_lines(text: str) -> list[str]:
    """Lines of shell blocks that call the command, continuations joined, prompts and comments removed."""
    joined = "\n".join(blocks(text, "bash", "sh", "shell", "console")).replace("\\\n", " ")
    lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
    return [line for line in lines if line.startswith("rewarden ")]


def words_of(line: str) -> list[str]:
    """The arguments of the first command on the line, up to a pipe, a redirection or a second command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words = list(lexer)
    stop = next((at for at, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
    return words[1:stop]


def tables() -> list[list[str]]:
    """The modules of the map in the architecture page: one list per table, maths, Hugging Face, commands."""
    section = ARCHITECTURE.split("## Map of modules")[1].split("\n## ")[0]
    found = [re.findall(r"^\| `([\w/]+\.py)`", table, re.MULTILINE) for table in section.split("| module |")]
    return [modules for modules in found if modules]


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_and_a_paper(name: str) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "methods").glob("*.md")]
    assert any(f"`{name}`" in page or f"import {name}" in page or f"{name}(" in page for page in pages)
    assert f"`{name}`" in (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method_lists_its_fields_with_their_defaults(name: str) -> None:
    module = METHODS[name].__module__.rpartition(".")[2]
    page = (ROOT / "docs" / "methods" / f"{module}.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `?\"?([^|`\"]+?)\"?`? \|", page, re.MULTILINE))
    fields = [field for field in dataclasses.fields(METHODS[name]) if field.name != "member"]
    wanted = {field.name: str(field.default) for field in fields}
    assert {key: rows.get(key) for key in wanted} == wanted


def test_names_in_the_index_of_papers_exist() -> None:
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| .* \|$", page, re.MULTILINE)[2:]:
        _, _, names, files, _ = (cell.strip() for cell in row.strip("|").split("|"))
        paths = re.findall(r"`(src/[\w/]+\.py)`", files)
        code = "".join((ROOT / path).read_text(encoding="utf-8") for path in paths)
        for name in re.findall(r"`(?:\w+\.)?(\w+)", names):
            assert re.search(rf"(class|def) {name}\b", code), f"{name} is not in {paths}"


# --- Modules ------------------------------------------------------------------------------------


def test_module_paths_in_the_architecture_exist() -> None:
    paths = re.findall(r"`([\w/]+\.py)`", ARCHITECTURE)
    assert len(paths) > 30
    assert [path for path in paths if not (SOURCE / path).is_file() and not (ROOT / path).is_file()] == []


def test_every_module_stands_in_the_map_once() -> None:
    listed = sorted(module for modules in tables() for module in modules)
    assert listed == sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py"))


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports, as paths; names that only type checkers import do not count."""
    code = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    typing_only = {id(inner) for node in ast.walk(code) if is_typing_block(node) for inner in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import) and id(node) not in typing_only:
            names |= {alias.name for alias in node.names}
    inside = (name.removeprefix("rewarden.").replace(".", "/") for name in names if name.startswith("rewarden."))
    paths = {path for name in inside for path in (f"{name}.py", f"{name}/__init__.py")}
    return {path for path in paths if (SOURCE / path).is_file()}


def is_typing_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_imports_point_from_commands_to_hugging_face_to_maths() -> None:
    layer = {module: number for number, modules in enumerate(tables()) for module in modules}
    assert layer["core.py"] < layer["hf/model/reward_model.py"] < layer["commands/train.py"]
    assert "hf/forward.py" in imported("hf/scoring/scorer.py")
    wrong = {m: [other for other in imported(m) if layer[other] > layer[m]] for m in layer}
    assert {module: others for module, others in wrong.items() if others} == {}


# --- Links, code blocks, commands ---------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page if not path else page.parent / path
        assert found.exists(), f"{page.name} links to {target}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name} links to {target}"


def test_the_page_of_the_package_index_names_files_that_are_shipped_and_links_to_none() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / project["readme"]).read_text(encoding="utf-8")
    assert [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", target)] == []
    named = re.findall(r"`((?:docs/[\w/.-]+|README\.md|NOTICE))`", text)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert "graft docs" in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_compile_and_import_what_exists(page: Path) -> None:
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(code, str(page), "exec")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rewarden"):
                exec(compile(ast.Module([node], []), str(page), "exec"), {})


@pytest.mark.skipif(not README.exists(), reason="there is no README")
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_readme_mentions_every_command(command: str) -> None:
    assert f"rewarden {command}" in README.read_text(encoding="utf-8")


LINES = [(page.name, line) for page in PAGES for line in command_lines(page.read_text(encoding="utf-8"))]


def parsed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What the command would have been given: the real parser, and a command that does nothing."""
    received: list[object] = []
    monkeypatch.setattr(cli, "_quiet", lambda: None)
    for command in cli.COMMANDS:
        monkeypatch.setattr(importlib.import_module(f"rewarden.commands.{command}"), "main", received.append)
    try:
        code = cli.main(arguments)
    except SystemExit as leaving:  # --help leaves with 0, a wrong flag with 2
        code = leaving.code if isinstance(leaving.code, int) else 1
    assert code == 0, f"rewarden {shlex.join(arguments)} does not parse"
    return received[0] if received else None


@pytest.mark.parametrize(("page", "line"), LINES)
def test_command_lines_parse(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed(words_of(line), monkeypatch)


def test_a_wrong_flag_in_a_command_line_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "rewarden train --train a.jsonl --output b --kl-wieght 1 bradley-terry | tee log  # comment"
    assert words_of(line)[-1] == "bradley-terry"
    with pytest.raises(AssertionError, match="does not parse"):
        parsed(words_of(line), monkeypatch)


def test_there_are_command_lines_to_check() -> None:
    assert {line.split()[1] for _, line in LINES} >= {"train", "score", "evaluate"}


def flags() -> set[str]:
    """Every flag of every command and method, and those that all commands understand."""
    kinds = [getattr(importlib.import_module(f"rewarden.commands.{name}"), name.capitalize()) for name in cli.COMMANDS]
    return {flag.name for kind in [*kinds, *HEADS.values()] for flag in flags_of(kind)} | {"--version", *HELP}


def test_flags_named_in_the_text_exist() -> None:
    known = flags()
    assert {"--train", "--kl-weight", "--nominal-weight", "--help"} <= known
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        named = set(re.findall(r"`(--[a-z][\w-]*)", text))
        assert named <= known, f"{page.name} names {sorted(named - known)}"


# --- The limit of the information bottleneck ----------------------------------------------------


def best_gain(certainty: float, difference: float) -> float:
    """Expected gain over log 2, by quadrature, of the best decoder c: the gap is N(c D, 2 c^2) towards the favoured completion.

    The favoured one is the chosen one with probability q, and certainty is 2q - 1.
    """
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(40))
    best = 2 * certainty * difference / (difference**2 + 2)
    scale = torch.linspace(0.5, 1.5, 201, dtype=torch.float64)[:, None] * best
    gap = scale * difference + 2**0.5 * scale * nodes
    flat = gap.flatten()  # a loss takes one number per pair
    agreement = torch.full_like(flat, (1 + certainty) / 2)
    loss = losses.bradley_terry(flat, torch.zeros_like(flat), agreement=agreement).view_as(gap)
    return float((np.log(2) - loss @ (weights / weights.sum())).max())


@pytest.mark.parametrize("certainty", [0.2, 0.32, 0.6])
def test_a_bottleneck_pays_only_above_its_price(certainty: float) -> None:
    """The derivation in the page of InfoRM: gain and price, and the limit (2q - 1)^2 between them."""
    half = 0.1
    price = 2 * losses.gaussian_kl(torch.tensor([[half]]), torch.zeros(1, 1)).item()
    gain = best_gain(certainty, 2 * half)
    assert price == pytest.approx((2 * half) ** 2 / 4)
    assert gain == pytest.approx(certainty**2 * (2 * half) ** 2 / (2 * ((2 * half) ** 2 + 2)), rel=0.01)
    assert gain > 0.95 * certainty**2 * price
    # Whatever the difference, no code earns more than the limit.
    for half in (0.01, 0.1, 0.5, 1.0, 2.0):
        assert best_gain(certainty, 2 * half) < certainty**2 * (2 * half) ** 2 / 4


@pytest.mark.slow
def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(example.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("trained on 40 pairs")
    assert [line.split()[0] for line in shown[1:]] == ["reward", "reward"]
