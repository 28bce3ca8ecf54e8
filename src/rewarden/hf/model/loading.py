"""Load configurations, tokenizers and weights from anywhere, safely: all weights are there and finite, and no code is run.

transformers fills in weights that a file lacks with whatever the memory holds, and asks on standard input whether to run a
folder's own code. Here the first is refused with the names, and the second never happens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rewarden.assets import EMBEDDED, resolve
from rewarden.hf.model.model_files import ADAPTER, CONFIG, Shapes, check_folder, read_config

logger = logging.getLogger(__name__)

_MEMORY = (MemoryError, torch.OutOfMemoryError)


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model: a folder, a hub id or an embedded model.

    Raises:
        ValueError: When there is no such model, its configuration is damaged, or it would need code of its own.
    """
    _check_name(name)
    folder = Path(resolve(name))
    if folder.is_dir():
        _check_kind(folder, read_config(folder))
    try:
        return AutoConfig.from_pretrained(resolve(name), trust_remote_code=False)
    except _MEMORY:
        raise
    except Exception as error:  # whatever a library raises over a foreign file
        raise ValueError(_failed(name, f"{CONFIG} could not be used", error)) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token (the end-of-sequence token where it has none).

    Raises:
        ValueError: When there is no such model, or it has no tokenizer that can be used.
    """
    _check_name(name)
    folder = Path(resolve(name))
    if (folder / CONFIG).is_file() or (folder / ADAPTER).is_file():
        load_config(name)  # tokenizers are looked up by it, with puzzling errors where it is damaged
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=False)
    except _MEMORY:
        raise
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise ValueError(_no_tokenizer(name, folder, error)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(kind: Any, name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with all of its weights, every one of them finite, on the CPU.

    A pooler may be missing: nothing here reads one. Tensors of the file that the model has no place for are named in a warning,
    but for the heads that a backbone leaves behind.

    Args:
        kind: `AutoModel`, `AutoModelForCausalLM` or a class of models.
        name: Folder, hub id or embedded model.
        dtype: Of the weights.

    Raises:
        ValueError: When the folder is damaged, weights are missing, of another shape or not finite; names them.
    """
    config, folder = load_config(name), Path(resolve(name))
    shapes = check_folder(folder) if folder.is_dir() else None
    if shapes is not None and getattr(config, "quantization_config", None) is None:
        _check_shapes(kind, name, config, shapes)
    try:
        loaded: Any = kind.from_pretrained(
            resolve(name), dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except _MEMORY:
        raise
    except Exception as error:  # whatever a library raises over a foreign file
        raise ValueError(_failed(name, "the weights could not be loaded", error)) from error
    model, report = loaded
    _check_report(name, model, report)
    check_finite(name, model)
    return model


def check_finite(name: str, model: nn.Module) -> None:
    """Refuse a model with a weight that is NaN or infinite.

    Raises:
        ValueError: Names the first such tensor, and says how many there are.
    """
    broken = [key for key, tensor in model.named_parameters() if not _is_finite(tensor)]
    broken += [key for key, tensor in model.named_buffers() if tensor.is_floating_point() and tensor.isnan().any()]
    if broken:
        raise ValueError(
            f"model {name!r}: {broken[0]} holds numbers that are not finite ({len(broken)} tensors in all); "
            "its training diverged or the file is damaged: take another checkpoint"
        )


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.element_size() < 2 or not tensor.numel() or tensor.is_meta:
        return True
    return all(bool(end.isfinite()) for end in tensor.aminmax())  # NaN passes on to both ends


def _check_report(name: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Judge what transformers found between the file and the model."""
    missing = sorted(key for key in report["missing_keys"] if not _is_pooler(key))
    if missing:
        raise ValueError(
            f"model {name!r}: the files lack {len(missing)} {'weight' if len(missing) == 1 else 'weights'} of a "
            f"{type(model).__name__} ({_some(missing)}), which would be random numbers; copy the model again, or save it with "
            "the names that transformers gives them"
        )
    if report["mismatched_keys"] or report["error_msgs"]:
        wrong = [*map(str, report["mismatched_keys"]), *report["error_msgs"]]
        raise ValueError(f"model {name!r}: the weights do not fit {CONFIG} ({_some(wrong)}); copy the model again")
    prefix = f"{model.base_model_prefix}."
    is_backbone = model.base_model is model
    unexpected = sorted(key for key in report["unexpected_keys"] if not is_backbone or key.startswith(prefix))
    unexpected = [key for key in unexpected if not _is_pooler(key)]
    if unexpected:
        logger.warning(
            "model %r: %d tensors of the files have no place in a %s and are not used (%s)",
            name,
            len(unexpected),
            type(model).__name__,
            _some(unexpected),
        )


def _check_shapes(kind: Any, name: str, config: PreTrainedConfig, shapes: Shapes) -> None:
    """Compare the model that the configuration describes with the file, before memory is taken for either."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except _MEMORY:
        raise
    except Exception as error:  # whatever a foreign model raises
        raise ValueError(_failed(name, f"no model can be built from its {CONFIG}", error)) from error
    prefix = f"{model.base_model_prefix}."
    for key, tensor in model.state_dict().items():
        for stored in {key, prefix + key, key.removeprefix(prefix)} & shapes.keys():
            # Of the same size it may be stored transposed, which transformers knows about.
            if torch.Size(shapes[stored]).numel() != tensor.numel():
                raise ValueError(
                    f"model {name!r}: {stored} is of shape {_shape(shapes[stored])} in the file, and {CONFIG} asks for "
                    f"{_shape(tensor.shape)}; one of the two is damaged or of another model: copy the model again"
                )
    needed = sum(parameter.numel() for parameter in model.parameters())
    held = sum(torch.Size(shape).numel() for shape in shapes.values())
    if needed > 2 * held + 10**7:
        raise ValueError(
            f"model {name!r}: {CONFIG} describes {needed:,} weights, and the files hold {held:,}; "
            "one of the two is damaged or of another model: copy the model again"
        )


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "()"


def _is_pooler(key: str) -> bool:
    return "pooler" in key.split(".")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _check_name(name: str) -> None:
    """A path that does not exist would otherwise be looked up on the hub, with a puzzling error."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).is_file() or not name
    if name not in EMBEDDED and looks_like_path and not Path(name).is_dir():
        raise ValueError(
            f"model {name!r}: there is no such folder; give a folder with a {CONFIG}, a hub id such as Qwen/Qwen3-0.6B, "
            f"or {', '.join(EMBEDDED)}"
        )


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """The architecture must be one that transformers has itself."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(
            f"{folder / CONFIG}: 'model_type' is {kind!r}, expected the name of an architecture such as 'llama'; "
            "give the folder of a transformers model"
        )
    if kind in CONFIG_MAPPING or kind == "rewarden":
        return
    if "auto_map" in config:
        raise ValueError(f"model {str(folder)!r}: {_own_code(kind)}")
    raise ValueError(
        f"{folder / CONFIG}: 'model_type' is {kind!r}, which the installed transformers does not know; "
        "a newer one may (pip install -U transformers)"
    )


def _own_code(kind: str) -> str:
    return (
        f"{kind} is not an architecture of transformers but Python code that comes with the model, and rewarden runs no code "
        "of models; choose a model whose architecture the installed transformers has itself"
    )


def _no_tokenizer(name: str, folder: Path, error: Exception) -> str:
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_dir() and "tokenizer.json" not in files:
        spm = sorted(file for file in files if file.endswith(".model"))
        if spm:
            return (
                f"model {name!r}: its tokenizer is only there as SentencePiece ({spm[0]}), which could not be converted "
                f"({_reason(error)}); install what converts it (pip install sentencepiece protobuf tiktoken), or save it once "
                "with AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes tokenizer.json"
            )
        if not any(file.startswith(("vocab", "merges", "spiece")) for file in files):
            return (
                f"model {name!r}: the folder has no tokenizer (no tokenizer.json); "
                "copy the tokenizer's files of the model it came from into it"
            )
    return _failed(name, "the tokenizer could not be loaded; tokenizer.json or tokenizer_config.json is damaged", error)


def _failed(name: str, what: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"model {name!r}: {_own_code('it')}"
    if type(error).__name__ == "UnpicklingError":
        return (
            f"model {name!r}: its weights are a pickle that holds more than tensors, which can run code and is not read; "
            "take the model from its source as safetensors, or save it as such on a machine where its code may run"
        )
    if Path(resolve(name)).is_dir():
        return f"model {name!r}: {what} ({_reason(error)}); copy the model again"
    return (
        f"model {name!r}: {what} ({_reason(error)}); "
        f"give a folder with a {CONFIG}, a hub id that can be reached, or {', '.join(EMBEDDED)}"
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
