"""The most memory that processes take together, of their host and of its cards, seen from outside: all are measured alike."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Self

EVERY, SELDOM = 0.05, 20
"""Seconds between two looks, and at least so many times what a look takes: the more memory, the longer.  Cards are asked each 200 ms."""
CARDS = ("nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits", "-lms", "200")


class Peaks:
    """pids: who counts, asked at each look.

    ram: bytes, of the host; pages that several share count once, those of mapped files too.  vram: bytes, of all cards, beyond what was
    taken when the looking began, by whomever; None: there is no card.  Within `with`; the figures stay.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self.ram = 0
        self._pids, self._over = pids, Event()
        self._first: dict[str, int] = {}
        self._most: dict[str, int] = {}
        self._cards: subprocess.Popen[str] | None = None
        self._threads = [Thread(target=self._look, daemon=True)]

    def __enter__(self) -> Self:
        if shutil.which(CARDS[0]):
            self._cards = subprocess.Popen(CARDS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0)
            self._threads.append(Thread(target=self._listen, args=(self._cards,), daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._cards is not None:
            self._cards.terminate()
            self._cards.wait()
        for thread in self._threads:
            thread.join()

    @property
    def vram(self) -> int | None:
        return sum(self._most[card] - before for card, before in self._first.items()) if self._first else None

    def _look(self) -> None:
        taken = 0.0
        while not self._over.wait(max(EVERY, SELDOM * taken)):
            began = time.thread_time()
            self.ram = max(self.ram, sum(map(_share, self._pids())))
            taken = time.thread_time() - began

    def _listen(self, cards: subprocess.Popen[str]) -> None:
        assert cards.stdout is not None
        for line in cards.stdout:
            card, _, used = line.partition(",")
            if used.strip().isdecimal():
                count = int(used) << 20
                self._first.setdefault(card, count)
                self._most[card] = max(self._most.get(card, 0), count)


def _share(pid: int) -> int:
    """Bytes; of one that has ended, nothing."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
