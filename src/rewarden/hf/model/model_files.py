"""What a model's folder holds, read without building anything: configuration, and names and shapes of its weights.

A damaged folder would otherwise be noticed deep inside a library, after minutes of building, or not at all.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"

# Sizes under the names that families give them; each is a whole number above zero, or null for what the family takes.
# fmt: off
_SIZES = frozenset((
    "d_ff", "d_kv", "d_model", "decoder_layers", "dim", "embedding_size", "encoder_layers", "head_dim", "hidden_dim",
    "hidden_size", "intermediate_size", "kv_lora_rank", "max_position_embeddings", "max_seq_len", "moe_intermediate_size",
    "n_ctx", "n_embd", "n_head", "n_heads", "n_inner", "n_layer", "n_layers", "n_positions", "num_attention_heads",
    "num_decoder_layers", "num_experts_per_tok", "num_heads", "num_hidden_layers", "num_key_value_heads", "num_layers",
    "num_local_experts", "type_vocab_size", "vocab_size",
))
# fmt: on
_COUNTED = (
    "layers",
    "n_layer",
    "heads",
    "n_head",
    "experts",
)  # what there cannot be more of than there are numbers in the weights
_HEADER_LIMIT = 100_000_000  # bytes, as the format has it


def check_folder(folder: Path) -> Shapes | None:
    """Names and shapes of the weights, once configuration and weights are known to be whole and of plausible size.

    Returns:
        None when the weights are in no safetensors file.

    Raises:
        ValueError: When the folder holds an adapter or no model, or a file of it is damaged; names file and field.
    """
    config = read_config(folder)
    shapes = read_shapes(folder)
    if shapes is None:
        if not any(folder.glob("pytorch_model*.bin")):
            raise ValueError(
                f"{folder} has a {CONFIG} and no weights; expected {WEIGHTS}, or {INDEX} with the files that it names: "
                "copy the model again, or save it as safetensors"
            )
        return None
    _check_counts(folder, config, shapes)
    return shapes


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`, whose sizes are whole numbers above zero.

    Raises:
        ValueError: When there is none, it is no JSON object, or a size is something else.
    """
    if (folder / ADAPTER).is_file():
        raise ValueError(_adapter(folder))
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no model: it has no {CONFIG}; give the folder of a whole transformers model")
    config = _object(path)
    for name, value in _fields(config):
        size = name.rpartition(".")[2]
        if size in _SIZES and value is not None and (type(value) is not int or value < 1):
            raise ValueError(
                f"{path}: {name!r} is {_shown(value)}, expected a whole number above zero; "
                "mend the file, or copy the model again"
            )
    return config


def read_shapes(folder: Path) -> Shapes | None:
    """Shape of every tensor by its name, from the headers of the safetensors files; None when there are none.

    Raises:
        ValueError: When a file is missing, cut off or no safetensors file.
    """
    if (folder / WEIGHTS).is_file():
        return _header(folder / WEIGHTS)
    index = folder / INDEX
    if not index.is_file():
        return None
    files = _object(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(each, str) for each in files.values()):
        raise ValueError(
            f"{index}: 'weight_map' is {_shown(files)}, expected a file for every tensor; copy the model again"
        )
    found: Shapes = {}
    for name in sorted(set(files.values())):
        if not (folder / name).is_file():
            raise ValueError(f"{index} names {name}, which is not there; copy the model again")
        found |= _header(folder / name)
    return found


def _header(path: Path) -> Shapes:
    """Names and shapes in one safetensors file; the file must be as long as its header says."""
    damaged = "copy the file again, or save the model again as safetensors"
    length = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= size <= min(length - 8, _HEADER_LIMIT):
            raise ValueError(
                f"{path} ({length:,} bytes) is no whole safetensors file: its header is cut off; {damaged}"
            )
        text = file.read(size)
    try:
        entries = {name: each for name, each in json.loads(text).items() if name != "__metadata__"}
        shapes = {name: tuple(map(int, each["shape"])) for name, each in entries.items()}
        end = max((int(each["data_offsets"][1]) for each in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is no whole safetensors file: its header cannot be read; {damaged}") from error
    if length != 8 + size + end:
        raise ValueError(
            f"{path} has {length:,} bytes, and its header describes {8 + size + end:,}: it was cut off or changed; {damaged}"
        )
    return shapes


def _check_counts(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """No more layers, heads or experts than the weights can hold: building those that are not there may take for ever."""
    most = max([len(shapes), *(size for shape in shapes.values() for size in shape)])
    for name, value in _fields(config):
        last = name.rpartition(".")[2]
        is_members = last == "size" and "method" in name.split(".")  # heads of an ensemble, at least one tensor each
        is_count = is_members or any(part in last for part in _COUNTED)
        if is_count and type(value) is int and value > (len(shapes) if is_members else most):
            raise ValueError(
                f"{folder / CONFIG}: {name!r} is {value:,}, more than the {len(shapes):,} tensors of the weights can hold; "
                "mend the file, or copy the model again"
            )


def _fields(config: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every field with its path, those of the configurations inside included."""
    for name, value in config.items():
        if isinstance(value, dict) and depth < 4 and (name in ("backbone", "method", "member") or "config" in name):
            yield from _fields(value, f"{prefix}{name}.", depth + 1)
        else:
            yield prefix + name, value


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); mend the file, or copy the model again") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} holds {_shown(found)}, expected a JSON object; mend the file, or copy the model again"
        )
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _adapter(folder: Path) -> str:
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = "a model"
    return (
        f"{folder} holds an adapter of {base} ({ADAPTER}), not a whole model; fold it into its base first: "
        'python -c "from peft import AutoPeftModelForCausalLM as M; '
        f"M.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('MERGED')\", "
        "and copy the tokenizer's files there too"
    )
