"""Damage: of bytes, as a bad wire or a bad disk does it, and of what they mean, as somebody does who knows the format."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

MARKS = b'\x00\x01\x7f\x80\x90\xa0\xc0\xc1\xc4\xc7\xca\xcb\xcf\xd3\xd4\xd9\xdb\xdc\xdd\xde\xdf\xff {}[]",:0129-eE#\r\n'
"""Bytes that mean something: to msgpack, JSON, or a table of lines."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**32 - 1, 2**53, 2**63 - 1, -(2**63), 2**64 - 1),
    *(0.0, -0.0, 1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", " ", "a", "\0", "\ud800", "\U0010ffff", "../../etc/passwd", "a" * 65, "a" * 5000, "\u202e\u0301" * 40, "tcp://[::1", "ipc://"),
    *(b"", b"\0", b"\xff\xfe", b"x" * 5000),
    *([], {}, [[]], [{}], {"": ""}, [0] * 300, [None] * 5000, {"a": {"a": {"a": {"a": {}}}}}, {str(i): i for i in range(300)}),
    *([1, 2, 3], [1, -1], [[1, 2], [3, 4]], ["stage_one", [1, 2]], [float("nan")] * 3),
)


def damaged(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One to four damages, small or large, to one of the seeds."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(9):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.choice(MARKS)
            case 2:
                del data[at:]
            case 3:
                data[at:at] = dice.randbytes(dice.randint(1, 8))
            case 4:
                del data[at : at + dice.randint(1, 8)]
            case 5:
                data[at:at] = data[at : at + dice.randint(1, 40)]
            case 6:
                data[at:at] = bytes([dice.choice(MARKS)]) * dice.choice((1, 2, 7, 300))
            case 7:  # a length that promises more, or less
                data[at : at + 4] = dice.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 4096, 65536)).to_bytes(4, dice.choice(("big", "little")))
            case _:
                other = dice.choice(seeds)
                cut = dice.randrange(len(other) + 1)
                data[at : at + dice.randint(0, 30)] = other[cut : cut + dice.randint(1, 30)]
    return bytes(data)


def twisted(dice: random.Random, value: Any, depth: int = 0) -> Any:
    """The same tree with one to three of its places changed: other values, missing and unknown names, too many of anything."""
    made = value
    for _ in range(dice.randint(1, 3)):
        made = _twisted(dice, made, depth)
    return made


def _twisted(dice: random.Random, value: Any, depth: int) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.9:
        names = list(value)
        name = dice.choice(names)
        match dice.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != name}
            case 1:
                return {**value, dice.choice(("", "x", "__class__", "life", "token", "a" * 300)): dice.choice(VALUES)}
            case 2:
                other = dice.choice(names)
                return {**value, name: value[other]}
            case _:
                return {**value, name: _twisted(dice, value[name], depth + 1)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        at = dice.randrange(len(value))
        match dice.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value + [value[at]] * dice.choice((1, 2, 50))
            case _:
                return [*value[:at], _twisted(dice, value[at], depth + 1), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and dice.random() < 0.5:
        return value + dice.choice((-1, 1, -2, 100, 2**40))
    if isinstance(value, str) and value and dice.random() < 0.4:
        at = dice.randrange(len(value))
        return value[:at] + dice.choice(("", "\0", "\n", " ", "é", "x" * 100, ".", "/")) + value[at + dice.randint(0, 2) :]
    return dice.choice(VALUES)
