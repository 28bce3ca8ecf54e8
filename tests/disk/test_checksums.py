"""Whole means verified."""

from pathlib import Path

import pytest

from rewarden.disk.checksums import CHECKSUMS, damage, is_sealed, seal, sha256


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights").write_bytes(b"weights")
    (tmp_path / "sub" / "state").write_bytes(b"state")
    (tmp_path / "empty").touch()
    assert damage(tmp_path) == "it was never finished"
    assert not is_sealed(tmp_path)
    seal(tmp_path)
    return tmp_path


def test_the_digest_is_that_of_everybody_else(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_whole_folders_stay_whole(sealed: Path) -> None:
    assert is_sealed(sealed)
    assert damage(sealed) is None
    (sealed / "added").touch()
    assert damage(sealed) is None
    seal(sealed)
    assert damage(sealed) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights", b"weight", "weights has 6 bytes instead of 7"),
        ("weights", b"", "weights has 0 bytes instead of 7"),
        ("sub/state", b"Xtate", "sub/state is not what was written"),
        ("empty", None, "empty is missing"),
        (CHECKSUMS, b"{", "checksums.json cannot be read"),
        (CHECKSUMS, b"[]", "checksums.json cannot be read"),
        (CHECKSUMS, b'{"files": {"a": {"bytes": "x"}}}', "checksums.json cannot be read"),
        (CHECKSUMS, b"\xff", "checksums.json cannot be read"),
        (CHECKSUMS, None, "it was never finished"),
    ],
)
def test_damage_is_named(sealed: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (sealed / name).unlink()
    else:
        (sealed / name).write_bytes(content)
    assert damage(sealed) == message


def test_a_folder_in_a_files_place_is_damage(sealed: Path) -> None:
    (sealed / "empty").unlink()
    (sealed / "empty").mkdir()
    assert (damage(sealed) or "").startswith("empty ")
