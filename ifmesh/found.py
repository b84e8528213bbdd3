"""The devices of this machine: its cards as the driver tells, and the RAM that this process may have."""

from __future__ import annotations

import os
import subprocess

from ifmesh.devices import KNOWN, Device
from ifmesh.memory import of_device

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")


def devices() -> tuple[Device, ...]:
    """Cards in the driver's order, then the CPU."""
    return (*cards(), Device("cpu", of_device("cpu"), cores=len(os.sched_getaffinity(0))))


def cards() -> tuple[Device, ...]:
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=True)
        return tuple(_card(line) for line in done.stdout.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()  # no driver, no card


def ram() -> int:
    """Bytes: the machine's, or this container's share of it."""
    return of_device("cpu")


def _card(line: str) -> Device:
    name, mebibytes, capability = (part.strip() for part in line.split(","))
    major, _, minor = capability.partition(".")
    plain = name.lower().replace(" ", "-")
    alike = [known for known in KNOWN.values() if known.name.partition("-")[0] in plain and known.name.partition("-")[2][:4] in plain]
    like = max(alike, key=lambda known: len(known.name), default=None)  # "a100", not "a10"
    return Device(plain, int(float(mebibytes)) << 20, (int(major), int(minor)), like.tflops if like else 0.0)
