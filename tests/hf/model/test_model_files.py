"""Headers and configurations by hand: shapes come back as they were written, and what does not add up is named."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rewarden.hf.model.model_files import check_folder, read_config, read_shapes

CONFIG = {"model_type": "llama", "hidden_size": 4, "num_hidden_layers": 2, "n_inner": None}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(())}, tmp_path / "model.safetensors")
    return tmp_path


def test_shapes_of_one_file(folder):
    assert check_folder(folder) == {"a": (3, 4), "b": ()}


def test_shapes_of_several_files(folder):
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    save_file({"c": torch.zeros(5)}, folder / "two.safetensors")
    files = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert read_shapes(folder) == {"a": (3, 4), "b": (), "c": (5,)}


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}])
def test_an_index_that_names_no_files(content, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index.json: 'weight_map' is .*, expected a file for every tensor"):
        read_shapes(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 15) + b'{"a": {"b": 1}}',
    ],
)
def test_a_file_that_is_no_safetensors(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors .*is no whole safetensors file"):
        read_shapes(folder)


def test_a_file_that_is_longer_than_its_header_says(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"bytes, and its header describes"):
        read_shapes(folder)


@pytest.mark.parametrize("value", [0, -3, 2.5, "4", [4], True])
def test_a_size_is_a_whole_number_above_zero(value, folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"text_config": {"hidden_size": value}}))
    with pytest.raises(
        ValueError, match=r"config.json: 'text_config.hidden_size' is .*, expected a whole number above zero"
    ):
        read_config(folder)


def test_counts_are_bounded_by_what_the_file_can_hold(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 4}))
    check_folder(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 5}))
    with pytest.raises(ValueError, match="'num_hidden_layers' is 5, more than the 2 tensors"):
        check_folder(folder)


def test_pickled_weights_have_no_header(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert check_folder(folder) is None
