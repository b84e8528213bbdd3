"""A cascade that is too large for the memory it is given, in a mesh that takes turns."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from ifmesh_services.bench import inflated

from ifmesh import Image, Request, Settings, wishes
from ifmesh.bench import cases
from ifmesh.request import STAGES
from ifmesh.wishes import Brought
from tests.mesh.real import Real

Asked = tuple[Request, Brought]

HEAVY = ("encoder", "stage_one", "stage_two", "upscaler")
BUDGET = 400_000_000
"""Bytes: for one of them at a time."""
SWAP = {"memory.cpu": str(BUDGET), **{f"services.{stage}.residency": "swap" for stage in HEAVY}}
FEW = {"stage_one": Settings(steps=2), "stage_two": Settings(steps=2), "upscaler": Settings(steps=2)}
CGROUPS = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/cgroup.subtree_control")
"""By which version 1 and 2 are told."""


def cascade(above: Path) -> Path:
    """Of random weights; it takes some seconds, and 3 GB of disk."""
    folder = above / "large"
    inflated.build(folder)
    return folder


def requests(number: int) -> list[Asked]:
    """Mixed: of all lengths, one in four as far as each of the three; one in four varies a picture, or repaints a part of it."""
    sizes, brought = (1024, 64, 1024, 256), {3: (cases.car(), None), 6: (cases.face(), cases.eyes())}
    made = []
    for n in range(number):
        source, mask = brought.get(n % 8, (None, None))
        made.append(wishes.made(f"a red fox, number {n}", source, mask, {"seed": n, "size": sizes[n % 4], "settings": FEW}))
    return made


def shares(pids: Sequence[int]) -> int:
    """Bytes of memory of these processes, what they share counted once, mapped files included."""
    total = 0
    for pid in pids:
        with suppress(OSError, StopIteration, ValueError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total


class Peak:
    """The most memory that a mesh has had at once, looked at all the time."""

    def __init__(self, mesh: Real) -> None:
        self.bytes = 0
        self._mesh, self._over = mesh, Event()
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.bytes = max(self.bytes, shares([one.pid for one in self._mesh.process.family]))


@contextmanager
def limited(limit: int) -> Iterator[str]:
    """Processes that are started within have no more memory than this together; what they do not fit into kills them.  How; "": this
    system has no means for that that we may use."""
    here = Path(f"/sys/fs/cgroup/memory/ifmesh-{os.getpid()}" if Path(CGROUPS[0]).exists() else f"/sys/fs/cgroup/ifmesh-{os.getpid()}")
    key = "memory.limit_in_bytes" if Path(CGROUPS[0]).exists() else "memory.max"
    try:
        here.mkdir()
        (here / key).write_text(str(limit))
        (here / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield ""
        return
    try:
        yield str(here)
    finally:
        (here.parent / "cgroup.procs").write_text(str(os.getpid()))
        while True:  # its processes are about to end
            try:
                here.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def loads(mesh: Real) -> dict[str, int]:
    """How often each stage has come into memory."""
    return {stage: mesh.log(f"{stage}-0").count("is loaded: ") for stage in STAGES}


def served(mesh: Real, asked: Sequence[Asked]) -> list[Image]:
    """All at once; in their order."""
    return [job.result() for job in [mesh.client.ask(request, upload=brought) for request, brought in asked]]


def pixels(images: Sequence[Image]) -> list[dict[str, bytes]]:
    return [{name: picture.data for name, picture in image.stages.items()} for image in images]
