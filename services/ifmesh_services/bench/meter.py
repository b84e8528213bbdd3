"""Seconds and memory of what is called."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import diffusers
import torch

Way = Callable[[], object]
LEAST = 2  # rounds, unless fewer are asked for


@dataclass(frozen=True, slots=True)
class Taken:
    """seconds: by Meter.clock.  peak: bytes at once, of the card or of this process; None where the system does not tell."""

    seconds: float
    peak: int | None


class Meter:
    """clock: "processor" seconds where one thread computes, so that a busy machine disturbs little; else "wall".

    threads: torch's, from now on.
    """

    def __init__(self, device: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.device, self.threads = torch.device(device), threads
        self.clock = "processor" if self.device.type == "cpu" and threads == 1 else "wall"
        self.now = time.process_time if self.clock == "processor" else time.perf_counter

    def take(self, way: Way) -> Taken:
        self.settle()
        self._forget()
        began = self.now()
        way()
        self.settle()
        return Taken(self.now() - began, self._peak())

    def in_turn(self, ways: Mapping[str, Way], rounds: int, seconds: float, warm: bool = False) -> dict[str, list[Taken]]:
        """Every way once in each round, another first each time; no new round after so many seconds.  warm: an untimed round before."""
        taken: dict[str, list[Taken]] = {name: [] for name in ways}
        names = list(ways)
        for name in names if warm else ():
            ways[name]()
        began = time.monotonic()
        for turn in count():
            if turn >= rounds or (turn >= LEAST and time.monotonic() - began > seconds):
                return taken
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                taken[name].append(self.take(ways[name]))
        raise AssertionError("unreachable")

    def settle(self) -> None:
        """Wait for the card."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def machine(self) -> dict[str, Any]:
        """What the numbers are of."""
        return {
            "device": str(self.device),
            "card": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None,
            "processors": os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": self.threads,
            "clock": self.clock,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        }

    def _forget(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # Linux only
                Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None


class Timed:
    """A model that sums up the seconds of its calls, and of its method `decode`; else the model itself."""

    def __init__(self, model: Any, meter: Meter) -> None:
        self._model, self._meter = model, meter
        self.seconds = 0.0

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._timed(self._model, *given, **named)

    def decode(self, *given: Any, **named: Any) -> Any:
        return self._timed(self._model.decode, *given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _timed(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        self._meter.settle()
        began = self._meter.now()
        made = call(*given, **named)
        self._meter.settle()
        self.seconds += self._meter.now() - began
        return made


def median(taken: list[Taken]) -> float:
    """Seconds."""
    return statistics.median(one.seconds for one in taken)
