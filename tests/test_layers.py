"""Rules that no single module can check: what imports what, how long things are, what has a test."""

import ast
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rewarden

SOURCE = Path(rewarden.__file__).parent
TESTS = Path(__file__).parent
ROOT = TESTS.parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]
HEAVY = ("transformers", "datasets", "accelerate", "plotly", "rich", "scipy", "sklearn", "pyarrow", "tyro")
MATHS = (
    "core",
    "losses",
    "shaping",
    "token_logits",
    "endogenous",
    "merging",
    "label_noise",
    "overoptimization",
    "overoptimization_laws",
    "evaluation.near_duplicates",
    "evaluation.word_sets",
    "methods",
    "methods.policy_feedback",
    "tree.layout",
    "rl.advantages",
    "rl.algorithms",
    "rl.kl",
    "rl.policy_loss",
    "rl.surrogates",
    "rl.token_rewards",
    "rl.value_loss",
    "monitors.monitor",
    "monitors.cluster_separation",
    "monitors.mahalanobis",
    "monitors.p_values",
    "monitors.monitor_set",
    "lab.kneser_ney",
    "lab.ngram",
    "lab.repetition",
    "lab.damage",
    "lab.relevance",
    "lab.gold",
    "benchmarks",
    "evaluation.metrics",
    "evaluation.bootstrap",
    "evaluation.calibration",
    "evaluation.length_bias",
    "evaluation.comparison",
    "evaluation.leaderboard",
    "evaluation.pairs",
    "evaluation.best_of_n",
    "evaluation.best_of_n_laws",
    "evaluation.shortcuts",
    "evaluation.prompt_overlap",
    "evaluation.data_summary",
    "evaluation.data_warnings",
    "report.data.rows",
)


def run(code: str) -> str:
    """What a fresh interpreter prints last."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip().splitlines()[-1]


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` are loaded after the code has run in a fresh interpreter."""
    found = run(f"{code}\nimport sys\nprint('loaded', *[name for name in {names!r} if name in sys.modules])")
    return found.split()[1:]


def test_the_maths_needs_torch_and_nothing_heavier() -> None:
    code = "\n".join(f"import rewarden.{name}" for name in MATHS)
    assert loaded(code, ("torch", *HEAVY)) == ["torch"]


def test_the_check_for_heavy_modules_sees_them() -> None:
    assert loaded("import tyro", HEAVY) != []


def test_importing_the_package_imports_nothing_and_takes_no_time() -> None:
    assert loaded("import rewarden", ("torch", "numpy", *HEAVY)) == []
    code = "import time; start = time.perf_counter(); import rewarden; print(time.perf_counter() - start)"
    assert min(float(run(code)) for _ in range(3)) < 0.1


def test_help_is_instant() -> None:
    assert loaded("from rewarden.cli import main; main(['--help'])", ("torch", "numpy", *HEAVY)) == []
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rewarden", "--help"], capture_output=True, check=True)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.3


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    lines = lengths(ast.parse(text))
    assert {name: length for name, length in lines.items() if length >= 60} == {}


def lengths(node: ast.AST, prefix: str = "") -> dict[str, int]:
    """Lines of every function's body by its qualified name: two classes may both have a `forward`."""
    found: dict[str, int] = {}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            assert child.end_lineno is not None
            found[f"{prefix}{child.name}:{child.lineno}"] = child.end_lineno - child.body[0].lineno + 1
        name = getattr(child, "name", None)
        found |= lengths(child, f"{prefix}{name}." if isinstance(name, str) else prefix)
    return found


def test_equal_names_in_one_file_are_measured_apart() -> None:
    code = (
        "class A:\n    def f(self):\n        x = 1\n        return x\n\nclass B:\n    def f(self):\n        return 1\n"
    )
    assert lengths(ast.parse(code)) == {"A.f:2": 2, "B.f:7": 1}


def module_name(path: Path) -> str:
    parts = ("rewarden", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imports(tree: ast.Module) -> list[tuple[str, str]]:
    """Every (module, name) that is imported from the package: at the top, in functions, and for type checkers alone."""
    return [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rewarden"
        for alias in node.names
    ]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reach = {name: set(targets) for name, targets in arrows.items()}
    for middle in reach:
        for start in reach:
            if middle in reach[start]:
                reach[start] |= reach[middle]
    groups = {
        tuple(sorted(o for o in reach[name] if name in reach.get(o, ()))) for name in reach if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {name: set() for name in TREES}
    for name, tree in TREES.items():
        for module, what in imports(tree):
            arrows[name].add(f"{module}.{what}" if f"{module}.{what}" in TREES else module)
    arrows["rewarden"] = set()  # the map of public names points everywhere, and is asked for none but the version
    assert circles(arrows) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def names_at_top(body: list[ast.stmt]) -> set[str]:
    """What a module defines itself: functions, classes and constants."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            found |= names_at_top([*node.body, *node.orelse])
    return found


DEFINED = {name: names_at_top(tree.body) for name, tree in TREES.items()}
CALLERS = sorted(
    [*FILES, *(path for folder in ("tests", "runs", "benchmarks") for path in (ROOT / folder).rglob("*.py"))]
)


@pytest.mark.parametrize("path", CALLERS, ids=[str(path.relative_to(ROOT)) for path in CALLERS])
def test_names_are_imported_from_where_they_are_defined(path: Path) -> None:
    wrong = [
        f"{name} from {module}"
        for module, name in imports(ast.parse(path.read_text(encoding="utf-8")))
        if module in TREES and module != "rewarden"
        and name not in DEFINED[module] and f"{module}.{name}" not in TREES
    ]  # fmt: skip
    assert wrong == []


def test_no_two_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(name)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_no_folder_holds_too_many_modules() -> None:
    folders: dict[Path, int] = {}
    for path in FILES:
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {str(folder): number for folder, number in folders.items() if number > 16} == {}


def test_privates_stay_in_their_module() -> None:
    wrong = [
        f"{n}: {what} from {m}"
        for n, tree in TREES.items()
        for m, what in imports(tree)
        if what.startswith("_") and what != "__version__"
    ]
    assert wrong == []


def test_no_file_is_named_after_nothing() -> None:
    banned = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert [name for name in NAMES if banned & set(Path(name).with_suffix("").parts)] == []


def test_every_module_has_its_tests() -> None:
    """A module's tests are named after it: src/rewarden/hf/training/pairs.py has tests/hf/test_pairs.py."""
    modules = [Path(name) for name in NAMES if not Path(name).stem.startswith("__")]
    missing = [str(path) for path in modules if not (TESTS / path.parent / f"test_{path.name}").is_file()]
    assert missing == []


def test_public_names_resolve_to_what_they_are_called() -> None:
    assert sorted({*rewarden._HOME, "__version__", "align"}) == sorted(rewarden.__all__) == dir(rewarden)
    for name, home in rewarden._HOME.items():
        found = getattr(rewarden, name)
        assert found is getattr(importlib.import_module(home), name)
        assert found.__name__ == name


@pytest.mark.parametrize("first", ["", "import rewarden.align.loop; ", "from rewarden.align.loop import Run; "])
def test_align_is_a_folder_and_a_function(first: str) -> None:
    code = f"{first}import rewarden; rewarden.align(steps=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("TypeError: Align needs reward, prompts, output; give them as keyword arguments\n")
    assert (
        run("import rewarden.align.loop; print(rewarden.align.loop.Run.__name__, callable(rewarden.align))")
        == "Run True"
    )
    assert loaded("import rewarden; rewarden.align", ("torch", "numpy", *HEAVY)) == []


def test_an_unknown_name_is_explained() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'RewardModle'; it has Align, .*RewardModel"):
        _ = rewarden.RewardModle
    with pytest.raises(ImportError):
        from rewarden import Nothing  # noqa: F401
