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
    "near_duplicates",
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
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {node.name: node.end_lineno - node.body[0].lineno + 1 for node in functions if node.end_lineno}
    assert {name: length for name, length in lines.items() if length >= 60} == {}


def test_no_file_is_named_after_nothing() -> None:
    banned = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert [name for name in NAMES if banned & set(Path(name).with_suffix("").parts)] == []


def test_every_module_has_its_tests() -> None:
    """A module's tests are named after it: src/rewarden/hf/training/pairs.py has tests/hf/test_pairs.py."""
    modules = [Path(name) for name in NAMES if not Path(name).stem.startswith("__")]
    missing = [str(path) for path in modules if not (TESTS / path.parent / f"test_{path.name}").is_file()]
    assert missing == []


def test_public_names_resolve_to_what_they_are_called() -> None:
    assert sorted({*rewarden._HOME, "__version__"}) == sorted(rewarden.__all__)
    for name, home in rewarden._HOME.items():
        found = getattr(rewarden, name)
        assert found is getattr(importlib.import_module(home), name)
        assert found.__name__ == name


def test_an_unknown_name_is_explained() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'RewardModle'; it has Align, .*RewardModel"):
        _ = rewarden.RewardModle
    with pytest.raises(ImportError):
        from rewarden import Nothing  # noqa: F401
