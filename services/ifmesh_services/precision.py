"""In which numbers a stage computes, and T5 in fewer bits.

The default goes by the device: fp32 on a CPU (fp16 is 30 times slower there); on a card fp16, as the published scripts and weights do,
but for T5, which was trained in bf16: bf16 where the card has it, from compute capability 8.0 (Ampere) up.  A T4 (7.5) only emulates it.

bitsandbytes keeps T5's Linear layers in 8 bits (LLM.int8(), https://arxiv.org/abs/2208.07339) or 4 (NF4,
https://arxiv.org/abs/2305.14314); its embeddings, its norms and each block's `wo` stay as they are.
"""

from __future__ import annotations

import difflib
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from ifmesh.errors import Misconfigured
from ifmesh.stage import Setup

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16 = (8, 0)  # the first compute capability that has it
QUANTIZE = ("int8", "nf4")


def dtype_of(setup: Setup, text: bool = False) -> torch.dtype:
    """The dtype a stage computes in.  text: it is T5's.  Misconfigured when there is no such dtype or device, or not on that card."""
    check_device(setup.device)
    if setup.dtype and setup.dtype not in DTYPES:
        near = difflib.get_close_matches(setup.dtype.lower().replace("float", "fp"), DTYPES, 1, cutoff=0.0)
        raise Misconfigured(f"dtype: {setup.dtype!r} is not one of {', '.join(DTYPES)}; did you mean {near[0]!r}?")
    on_card = torch.device(setup.device).type == "cuda"
    return DTYPES[chosen(setup.dtype, torch.cuda.get_device_capability(setup.device) if on_card else None, text)]


def chosen(said: str, capability: tuple[int, int] | None, text: bool = False) -> str:
    """The dtype's name.  said: "" for the device's default.  capability: the card's; None: a CPU.  Misconfigured: bf16 on an old card."""
    if capability is None:
        return said or "fp32"
    if capability >= BF16:
        return said or ("bf16" if text else "fp16")
    if said == "bf16":
        card = ".".join(map(str, capability))
        raise Misconfigured(
            f"dtype: 'bf16': this card (compute capability {card}) only emulates it; use 'fp16', the default there, or 'fp32'"
        )
    return said or "fp16"


def check_device(name: str) -> None:
    """Misconfigured: torch knows no such device, or does not see it here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or str(device) != name:  # "cuda:300" is read as "cuda:44"
        raise Misconfigured(f"device: {name!r} is none that torch knows: 'cpu', 'cuda' or 'cuda:0'")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise Misconfigured(
            f"device: {name!r}: torch {torch.__version__} sees {count} CUDA devices here; use 'cpu' or install its CUDA build"
        )


def stored(files: Iterable[Path]) -> str:
    """How the weights in safetensors files are quantised: "int8", "nf4" or "" for not at all.

    By their names, which only bitsandbytes writes.  The hub's own 8-bit T5 has no quantization_config in its config.json; read as
    ordinary weights it gives NaN and no error.
    """
    names = [name for file in files for name in header(file)]
    if any(".quant_state.bitsandbytes__nf4" in name for name in names):
        return "nf4"
    return "int8" if any(name.endswith(".SCB") for name in names) else ""


def header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors, by name: dtype, shape, data_offsets."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > 100_000_000:  # safetensors' own limit: this is none
            raise ValueError("no safetensors file")
        said = json.loads(opened.read(length))
    if not isinstance(said, dict):
        raise ValueError("no safetensors file")
    return {name: tensor for name, tensor in said.items() if name != "__metadata__"}


def quantised(quantize: str, dtype: torch.dtype) -> Any:
    """What transformers is told about the weights, to quantise them or that they are.  dtype: of all that is not quantised."""
    if sys.modules.get("bitsandbytes") is None:  # hidden from diffusers, see the package's __init__
        sys.modules.pop("bitsandbytes", None)
        is_bitsandbytes_available.cache_clear()
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for each layer of each call
    made: Any = BitsAndBytesConfig
    if quantize == "int8":
        return made(load_in_8bit=True)
    return made(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
