"""torch.Tensor to blob and back, checked against what the cascade declares."""

from __future__ import annotations

import math
import sys

import torch

from ifmesh.cascade import Blob
from ifmesh.stage import Bag, Tensor

assert sys.byteorder == "little", "the wire is little endian, and so are all machines that torch is built for"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def to_torch(tensor: Tensor) -> torch.Tensor:
    """The blob as a tensor of its own, on the CPU: one copy, so it may be written to and outlives the frame.

    ValueError when the dtype is unknown or the bytes do not fill the shape.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ValueError(f"dtype {tensor.dtype!r}: one of {', '.join(_DTYPES)}")
    size = math.prod(tensor.shape) * dtype.itemsize  # before anything is allocated: the shape came over the wire
    if min(tensor.shape, default=0) < 0 or memoryview(tensor.data).nbytes != size:
        raise ValueError(f"{tensor.dtype} {list(tensor.shape)} takes {size} bytes, not {memoryview(tensor.data).nbytes}")
    made = torch.empty(tensor.shape, dtype=dtype)
    if made.nbytes:
        # Of a read-only buffer frombuffer makes a tensor that must not be written to, and warns: hence the bytearray.
        made.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8))
    return made


def to_blob(t: torch.Tensor) -> Tensor:
    """The tensor as bytes, wherever it lives.  Any dtype of the table, bf16 too.  ValueError: of another dtype."""
    name = _NAMES.get(t.dtype)
    if name is None:
        raise ValueError(f"{t.dtype} has no name on the wire")
    flat = t.detach().cpu().contiguous().view(-1)
    return Tensor(name, tuple(t.shape), flat.view(torch.uint8).numpy().tobytes())


def name_of(dtype: torch.dtype) -> str:
    """safetensors' name."""
    return _NAMES[dtype]


def take(bag: Bag, blob: Blob) -> torch.Tensor:
    """The blob of that name, on the CPU, in the dtype in which it came.

    ValueError when it is missing or not what is declared; a shape's names ("h") stand for any size.
    """
    tensor = bag.get(blob.name)
    if tensor is None:
        raise ValueError(f"the bag lacks {blob.name!r}: it holds {', '.join(sorted(bag)) or 'nothing'}")
    fits = len(tensor.shape) == len(blob.shape) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(blob.shape, tensor.shape, strict=True)
    )
    floating = tensor.dtype in {"F32", "F16", "BF16"}
    if not fits or (tensor.dtype != blob.dtype if blob.dtype else not floating):
        raise ValueError(f"{blob.name}: {tensor.dtype} {list(tensor.shape)}, not {blob.dtype or 'F32, F16 or BF16'} {list(blob.shape)}")
    return to_torch(tensor)
