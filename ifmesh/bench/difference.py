"""How far two tensors are apart, without a tensor library."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from ifmesh.stage import Tensor

LETTERS = {"F32": "f", "F16": "e", "U8": "B", "I64": "q"}  # of the struct module, little endian; it has none for BF16


@dataclass(frozen=True, slots=True)
class Difference:
    """most: of any two values, and how many differ; said: why they cannot be compared, or why it would prove nothing, "": they can."""

    most: float = 0.0
    values: int = 0
    said: str = ""

    def within(self, tolerance: float) -> bool:
        return not self.said and self.most <= tolerance

    def __str__(self) -> str:
        if self.said:
            return self.said
        return f"differs by {self.most:.3g} at most, in {self.values} value{'s' * (self.values > 1)}" if self.values else "equal"


def apart(one: Tensor, other: Tensor) -> Difference:
    """In the tensors' own units."""
    for name, first, second in (("dtype", one.dtype, other.dtype), ("shape", one.shape, other.shape)):
        if first != second:
            return Difference(said=f"of another {name}: {_said(first)} and {_said(second)}")
    firsts = values(one)
    if bytes(one.data) == bytes(other.data):
        return Difference() if all(map(math.isfinite, firsts)) else Difference(said="equal, but with values that are no numbers")
    distances = [abs(a - b) for a, b in zip(firsts, values(other), strict=True)]
    if not all(map(math.isfinite, distances)):
        return Difference(said="differs, in values that are no numbers")
    return Difference(max(distances), sum(map(bool, distances)))


def values(tensor: Tensor) -> Iterable[float]:
    """ValueError: of a dtype that nothing is drawn in."""
    data = bytes(tensor.data)
    if tensor.dtype == "BF16":  # the upper half of an F32
        halves = struct.unpack(f"<{len(data) // 2}H", data)
        return struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves)))
    if tensor.dtype not in LETTERS:
        raise ValueError(f"dtype {tensor.dtype!r}: one of BF16, {', '.join(LETTERS)}")
    letter = LETTERS[tensor.dtype]
    return struct.unpack(f"<{len(data) // struct.calcsize('<' + letter)}{letter}", data)


def _said(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)
