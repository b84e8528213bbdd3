"""Memory of this process, and of its devices.  What was freed goes back to the system: glibc keeps it, and what a stranger made us hold
stays for ever so."""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import suppress
from pathlib import Path

OFTEN, SELDOM = 1.0, 5.0
"""Seconds between two looks: at once after it has helped, ever later while all of it is in use."""
MORE = 32 << 20
"""Bytes above the least there ever was, from which on it is tidied."""


def tidy() -> None:
    """Give freed memory back to the system: after a burst an idle upscaler held 170 MB instead of 33 (20 ms)."""
    with suppress(AttributeError, OSError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes of this process that are in memory; 0: the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""What a container may use, by cgroup v2 and v1."""


def of_device(device: str) -> int:
    """Bytes that it has: of "cpu", what the machine or the container has; of a card, what its driver says.  0: nobody says."""
    if device == "cpu":
        limits = [int(text) for path in LIMITS if (text := _said(Path(path))).isdecimal()]
        with suppress(ValueError, OSError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return min(limits, default=0)
    number = int(device.partition(":")[2] or 0)
    seen = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    card = seen[number] if number < len(seen) else str(number)
    words = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", card]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout
        return int(said.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def _said(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


class Tidy:
    """For a process that should stay small."""

    def __init__(self) -> None:
        self._due = float("-inf")
        self._pause = OFTEN
        self._least = 0

    def look(self, now: float) -> None:
        if now < self._due:
            return
        size = resident()
        self._least = min(size, self._least or size)
        if size > self._least + MORE:
            tidy()
            self._pause = OFTEN if resident() < size - MORE // 4 else min(SELDOM, 2 * self._pause)
        else:
            self._pause = OFTEN
        self._due = now + self._pause
