"""Bag <-> safetensors frame, without a tensor library.

The frame: 8 bytes little endian, the length of the header; the header, JSON {name: {"dtype", "shape", "data_offsets"}}, padded with
spaces to 8; the data (https://github.com/huggingface/safetensors#format).  The library accepts headers of 100 MB and any name in
them, so every frame is read here, by hand: the header is bounded and must be exact before a byte of data is touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable
from typing import Any

import xxhash

from ifmesh.cascade import Blob
from ifmesh.stage import Bag, Tensor
from ifmesh.wire import Garbled

HEADER_LIMIT = 16 << 10  # bytes
FRAME_LIMIT = 64 << 20  # bytes; what a data socket lets through
# Bytes of one value, in the order in which safetensors lays tensors out: wide ones first, so that all are aligned.
SIZES = {"I64": 8, "F64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F32", "F16", "BF16")  # what "the dtype of the stage" may be
DIMENSIONS = 8

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def encode(bag: Bag) -> bytes:
    """The bag as one frame: the same bytes for equal bags, and the same that safetensors writes.  Garbled: `decode` would not take it."""
    order = list(SIZES)
    entries: dict[str, Any] = {}
    data: list[memoryview] = []
    end = 0
    for name in sorted(bag, key=lambda n: (order.index(bag[n].dtype) if bag[n].dtype in SIZES else -1, n)):
        tensor = bag[name]
        bytes_ = memoryview(tensor.data).cast("B")
        if bytes_.nbytes != _checked(name, tensor.dtype, tensor.shape):
            raise Garbled(f"{name}: {bytes_.nbytes} bytes do not fill {tensor.dtype} {list(tensor.shape)}")
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + bytes_.nbytes]}
        data.append(bytes_)
        end += bytes_.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > HEADER_LIMIT or 8 + len(header) + end > FRAME_LIMIT:
        raise Garbled(f"a bag of {len(bag)} tensors and {end} bytes is too large: at most {FRAME_LIMIT} bytes")
    return b"".join((len(header).to_bytes(8, "little"), header, *data))


def decode(frame: bytes | memoryview, expected: Iterable[Blob] | None = None) -> dict[str, Tensor]:
    """The tensors of a frame, as read-only views into it: nothing is copied.

    expected: what the bag must hold, no more and no less; None: whatever it holds, if it is well formed.  Raises Garbled, and nothing else.
    """
    try:
        whole = memoryview(frame).cast("B").toreadonly()
    except (TypeError, ValueError):
        raise Garbled("not contiguous bytes") from None
    if not 8 <= len(whole) <= FRAME_LIMIT:
        raise Garbled(f"a frame of {len(whole)} bytes; from 8 to {FRAME_LIMIT}")
    length = int.from_bytes(whole[:8], "little")
    if not 2 <= length <= min(HEADER_LIMIT, len(whole) - 8):
        raise Garbled(f"a header that is empty, beyond the frame, or above {HEADER_LIMIT} bytes")
    data = whole[8 + length :]
    bag, spans = {}, []
    for name, entry in _header(bytes(whole[8 : 8 + length])).items():
        dtype, shape, begin, end = _entry(name, entry)
        if end - begin != _checked(name, dtype, shape) or end > len(data):
            raise Garbled("offsets that do not fit dtype, shape and frame")
        bag[name] = Tensor(dtype, shape, data[begin:end])
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise Garbled("data that overlaps or has holes")
        at = end
    if at != len(data):
        raise Garbled("data that no tensor covers")
    if expected is not None:
        _compare(bag, tuple(expected))
    return dict(sorted(bag.items()))


def only(frame: bytes | memoryview, names: Collection[str]) -> bytes:
    """A frame with these tensors of it alone.  Garbled: one of them is not there."""
    bag = decode(frame)
    if missing := sorted(set(names) - bag.keys()):
        raise Garbled(f"no {', '.join(missing)} in the bag")
    return encode({name: bag[name] for name in names})


def digest(frame: bytes | memoryview) -> str:
    """xxh3-128, hex: guards against damage, not against malice."""
    return xxhash.xxh3_128_hexdigest(frame)


def intact(frame: bytes | memoryview, told: str) -> bool:
    """Is this its digest?  Of what was published before version 8 of the protocol it is the SHA-256."""
    return told == (digest(frame) if len(told) == 32 else hashlib.sha256(frame).hexdigest())


# ---- inside


def _checked(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """The bytes of such a tensor.  Every size is at least 1: nothing that flows here is empty."""
    if not _NAME.fullmatch(name):
        raise Garbled("a name that is none: 1 to 64 letters, digits, _ . or -")
    if dtype not in SIZES:
        raise Garbled(f"a dtype that is not one of {', '.join(SIZES)}")
    if len(shape) > DIMENSIONS or not all(type(n) is int and 1 <= n <= FRAME_LIMIT for n in shape):
        raise Garbled(f"a shape that is none: at most {DIMENSIONS} sizes, from 1 to {FRAME_LIMIT}")
    return math.prod(shape) * SIZES[dtype]


def _header(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise Garbled("a header that is no JSON object")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except Garbled:
        raise
    except Exception as error:  # ValueError in many shapes, RecursionError
        raise Garbled(f"a header that is no JSON: {type(error).__name__}") from None
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise Garbled("metadata that is not text")
    return header  # type: ignore[no-any-return]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Garbled("a header that names a thing twice")
    return made


def _no_constant(name: str) -> None:
    raise Garbled("a header with a number that is none")


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Garbled("a tensor without exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise Garbled("a dtype that is no text, or a shape that is no list")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and 0 <= n <= FRAME_LIMIT for n in offsets):
        raise Garbled("offsets that are none")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _compare(bag: Bag, expected: tuple[Blob, ...]) -> None:
    names = {blob.name for blob in expected}
    if bag.keys() != names:
        missing = ", ".join(sorted(names - bag.keys())) or "nothing"
        raise Garbled(f"{missing} missing, {len(bag.keys() - names)} tensors too many; expected are {', '.join(sorted(names)) or 'none'}")
    sizes: dict[str, int] = {}
    for blob in expected:
        tensor = bag[blob.name]
        if tensor.dtype not in ((blob.dtype,) if blob.dtype else FLOATS):
            raise Garbled(f"{blob.name}: {tensor.dtype}; expected is {blob.dtype or ', '.join(FLOATS)}")
        fits = len(tensor.shape) == len(blob.shape) and all(
            n == (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, n))
            for n, wanted in zip(tensor.shape, blob.shape, strict=True)
        )
        if not fits:
            raise Garbled(f"{blob.name}: {list(tensor.shape)}; expected is {list(blob.shape)}, one size for each name")
