from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ..policy_runs import ROWS, policy, random_policy  # noqa: F401 (a fixture)
from .test_align_run import build


def test_counts_are_said(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    rows = [*ROWS, ROWS[0], {"prompt": "x" * 99}]
    found = build(policy, tmp_path / "run", rows, max_prompt_length=40, held_out=2)
    said = capsys.readouterr().err
    assert "prompts: 8 read, 5 to train on, 2 held out, 1 that repeat others left out\n" in said
    assert "1 of " in said
    assert "cut from the left to 40 tokens\n" in said
    assert "sampling 8 responses of the starting policy" in said
    assert max(map(len, [*found.make_step.ids, *found.held_out.ids])) == 40


def test_prompts_leave_room_for_the_completion(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The policy's own limit counts, whatever --max-prompt-length says."""
    small = random_policy(tiny, tmp_path / "small", max_position_embeddings=32)
    found = build(small, tmp_path / "run", [{"prompt": "y" * 99}, {"prompt": "z"}], max_new_tokens=12)
    assert "prompts: 1 of 2 cut from the left to 20 tokens, what " in capsys.readouterr().err
    assert max(map(len, found.make_step.ids)) == 20
    with pytest.raises(
        ValueError, match=r"--max-new-tokens is 32, and .* reads 32 tokens at most, which leaves no room"
    ):
        build(small, tmp_path / "other", max_new_tokens=32)


def test_turns_go_through_the_template_and_plain_text_need_not(policy: Path, tmp_path: Path) -> None:  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(policy)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hm"},
        {"role": "user", "content": "?"},
    ]
    rows = [{"prompt": turns}, {"prompt": "plain"}]
    chat = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    found = build(policy, tmp_path / "chat", rows)
    assert [tokenizer.decode(ids) for ids in found.make_step.ids] == [chat, "<user>plain<end><assistant>"]
    found = build(policy, tmp_path / "raw", rows, raw=True)
    assert [tokenizer.decode(ids) for ids in found.make_step.ids] == [chat, "plain"]


def test_trackers_are_known_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--report-to nobody: no such tracker is installed; there are"):
        build(tmp_path / "nowhere", tmp_path / "run", report_to=("nobody",))


def test_sharding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for"):
        build(tmp_path / "nowhere", tmp_path / "run")
