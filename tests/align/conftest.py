"""The tiny models and the tokenizer of the Hugging Face layer's tests."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("hf_conftest", Path(__file__).parents[1] / "hf" / "conftest.py")
_hf = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_hf)

_one_thread = _hf._one_thread
tokenizer = _hf.tokenizer
write_backbone = _hf.write_backbone
backbones = _hf.backbones
build = _hf.build
make_group = _hf.make_group
