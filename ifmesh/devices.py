"""Devices by name, and what they bring: `t4`, `a100-40`, `cpu:13GB`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from ifmesh.errors import Misconfigured

GB = 10**9
BF16 = (8, 0)  # the first compute capability that has it


@dataclass(frozen=True, slots=True)
class Device:
    """memory: bytes that a process can have of it.  capability: of CUDA; None: it is the CPU, with its RAM.

    tflops: dense fp16 with fp32 sums, as the maker says; of a CPU 0, which has to be measured.  cores: of a CPU, 0: unknown.
    """

    name: str
    memory: int
    capability: tuple[int, int] | None = None
    tflops: float = 0.0
    cores: int = 0

    @property
    def card(self) -> bool:
        return self.capability is not None

    @property
    def bf16(self) -> bool:
        return self.capability is None or self.capability >= BF16


# Memory as the driver reports it (nominal GiB less what it keeps), tensor core throughput of the makers' data sheets, without sparsity.
KNOWN: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("t4", 15_640_000_000, (7, 5), 65),
        Device("p100", 17_060_000_000, (6, 0), 18.7),
        Device("v100-16", 16_930_000_000, (7, 0), 125),
        Device("v100-32", 34_080_000_000, (7, 0), 125),
        Device("rtx-3060", 12_620_000_000, (8, 6), 51),
        Device("rtx-3090", 25_430_000_000, (8, 6), 71),
        Device("rtx-4090", 25_390_000_000, (8, 9), 165),
        Device("a10", 23_830_000_000, (8, 6), 125),
        Device("l4", 24_150_000_000, (8, 9), 121),
        Device("l40s", 47_800_000_000, (8, 9), 362),
        Device("a100-40", 42_290_000_000, (8, 0), 312),
        Device("a100-80", 85_100_000_000, (8, 0), 312),
        Device("h100", 85_020_000_000, (9, 0), 989),
        Device("h200", 150_110_000_000, (9, 0), 989),
    )
}


def read(text: str) -> tuple[Device, ...]:
    """ "t4,cpu:13GB" -> two devices.  A size after a card's name takes the place of its own.  Misconfigured: there is none of that name."""
    found = tuple(_device(part.strip().lower()) for part in text.split(",") if part.strip())
    if sum(not device.card for device in found) > 1:
        raise Misconfigured(f"--devices {text}: a host has one RAM: one cpu")
    if not found:
        raise Misconfigured("--devices: none; as in t4,cpu:13GB")
    return found


def size(text: str) -> int:
    """ "13GB" or "16GiB" -> bytes.  Misconfigured."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(G|M)(i?)B?", text.strip(), re.IGNORECASE)):
        raise Misconfigured(f"{text!r}: a size, as in 13GB or 16GiB")
    thousand = 1024 if found[3] else 1000
    return int(float(found[1]) * thousand ** (3 if found[2].upper() == "G" else 2))


def _device(text: str) -> Device:
    name, _, said = text.partition(":")
    memory = size(said) if said else 0
    if name == "cpu":
        if not memory:
            raise Misconfigured(f"--devices {text}: say how much RAM it has, as in cpu:13GB")
        return Device("cpu", memory)
    if name not in KNOWN:
        near = get_close_matches(name, KNOWN, 1)
        raise Misconfigured(f"--devices {text}: {f'did you mean {near[0]}? ' if near else ''}known: {', '.join(KNOWN)}, cpu:SIZE")
    return replace(KNOWN[name], memory=memory or KNOWN[name].memory)
