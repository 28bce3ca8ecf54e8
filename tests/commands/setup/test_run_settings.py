"""Settings compared by value: files by what is in them, methods field by field, old and new named."""

from pathlib import Path

import pytest

from rewarden.commands.setup.run_settings import content, flat, refuse_changes


def stored(settings):
    """As a run reads it again."""
    import json

    return json.loads(json.dumps(settings, default=str))


def test_equal_settings_are_fine() -> None:
    settings = {"lr": 1e-3, "targets": ("a", "b"), "eval": None, "raw": False}
    refuse_changes(Path("out"), stored(settings), settings)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"lora_alpha": 16}, {"lora_alpha": 32}, "--lora-alpha was 16 and is 32"),
        ({"eval": None}, {"eval": "owner/name"}, "--eval was not given and is owner/name"),
        ({"targets": ["a"]}, {"targets": []}, "--targets was a and is not given"),
        ({"raw": False}, {"raw": True}, "--raw was False and is True"),
        ({}, {"new": 1}, "--new was not given and is 1"),
        ({"method.kl_weight": 0.1}, {"method.kl_weight": 0.2}, "--kl-weight was 0.1 and is 0.2"),
        ({"method.kl": 1}, {}, "--kl was 1 and is not given"),
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, "--a was 1 and is 2; --b was 2 and is 3"),
        ({"content of --prompts": "ab"}, {"content of --prompts": "cd"}, "; content of --prompts was ab and is cd"[2:]),
    ],
)
def test_what_changed_is_named_old_and_new(before, now, message: str) -> None:
    with pytest.raises(ValueError, match=f"^out holds a run with other settings: {message}; continue it with those"):
        refuse_changes(Path("out"), before, now)


def test_a_file_is_known_by_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("abc")
    before = stored({"train": [content(tmp_path / "a")]})
    refuse_changes(tmp_path, before, {"train": [content(tmp_path / "b")]})
    monkeypatch.chdir(tmp_path)
    refuse_changes(tmp_path, before, {"train": [content("./a")]})
    (tmp_path / "a").write_text("abd")
    with pytest.raises(ValueError, match=r"--train was .*a \(SHA-256 ba7816bf8f01\) and is a \(SHA-256 a52d159f262b\)"):
        refuse_changes(tmp_path, before, {"train": [content("a")]})


def test_a_model_is_known_by_its_files_but_not_by_its_record_or_marker(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights").write_text("w")
        (tmp_path / folder / "training.json").write_text(folder)
        (tmp_path / folder / ".rewarden.json").write_text(folder)
    before = stored({"model": content(tmp_path / "one")})
    refuse_changes(tmp_path, before, {"model": content(tmp_path / "two")})
    (tmp_path / "two" / "weights").write_text("v")
    with pytest.raises(
        ValueError, match=r"--model was .*one \(SHA-256 weights 50e721e49c01\) and is .*two \(SHA-256 weights"
    ):
        refuse_changes(tmp_path, before, {"model": content(tmp_path / "two")})
    with pytest.raises(ValueError, match=r"--model was .*one .* and is owner/name"):
        refuse_changes(tmp_path, before, {"model": content("owner/name")})


def test_what_is_no_path_stays_a_name() -> None:
    assert content(None) is None
    assert content("owner/name:test") == "owner/name:test"


def test_nested_fields_get_names_of_their_own() -> None:
    assert flat("method", {"size": 2, "member": {"lr": 1}}) == {"method.size": 2, "method.member.lr": 1}
