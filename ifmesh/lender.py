"""The memory of a device, as this host lends it: who has some holds a locked file, which the system unlocks when its holder dies.

The coordinator decides whose turn it is, see `phases`; but it may not know of one that was silent when it was started again.  Here
nothing is lent twice.
"""

from __future__ import annotations

import fcntl
import os
from hashlib import blake2b
from pathlib import Path

RESERVE = {"cpu": (2 << 30, 0.2), "cuda": (1 << 30, 0.1)}
"""By kind of device, what is left to everybody else when no budget is said: so many bytes, and at least such a part of all."""


def budget(device: str, total: int) -> int:
    """Bytes that all in swap may take together on a device that has so many."""
    least, part = RESERVE[device.partition(":")[0]]
    return max(0, total - max(least, int(part * total)))


class Lender:
    """One borrower's view.  folder: shared by all on this host that share the devices; life: who borrows."""

    def __init__(self, folder: Path, device: str, life: str) -> None:
        self._folder, self._life = folder, life
        self._device = device.replace(":", "-")
        self._held: int | None = None

    def take(self, needs: int, limit: int) -> str:
        """Borrow so many bytes of a device that lends no more than `limit`.  "": they are lent; else who has what is missing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / f"memory-{self._device}.lock", "a") as door:
            fcntl.flock(door, fcntl.LOCK_EX)  # let go when the file is closed, also by a death
            holders = self._holders()
            if sum(taken for _, taken in holders) + needs > limit:
                return ", ".join(name for name, _ in holders) or "nobody"
            path = self._folder / f"{self._prefix}{blake2b(self._life.encode(), digest_size=8).hexdigest()}"
            held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            fcntl.flock(held, fcntl.LOCK_EX)
            os.write(held, f"{needs} {self._life}".encode())
            self._held = held
        return ""

    def give_back(self) -> None:
        """All of it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @property
    def _prefix(self) -> str:
        return f"memory-{self._device}-"

    def _holders(self) -> list[tuple[str, int]]:
        """Who has how much, of those that live; what the dead have left is swept out."""
        found = []
        for path in sorted(self._folder.glob(f"{self._prefix}*")):
            with open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    said = file.read().decode(errors="replace").split(maxsplit=1)
                    found.append((said[1], int(said[0])))
                else:
                    path.unlink(missing_ok=True)
        return found
