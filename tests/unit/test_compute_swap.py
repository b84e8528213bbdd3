"""The compute thread in swap: the stage is there by turns, and its memory is really given back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from queue import SimpleQueue
from typing import ClassVar, TypeVar

import pytest

from ifmesh import memory, toy
from ifmesh.cascade import IF
from ifmesh.chores import Clear, Fill, Forget, Task
from ifmesh.compute import Cleared, Compute, Denied, Ended, Event, Free, Loaded, Over, Stepped, Swap, Weighed
from ifmesh.lender import Lender
from ifmesh.packer import Made
from ifmesh.stage import Setup
from tests.unit.test_compute import FOX, FRAMES, LIMIT, OWL

E = TypeVar("E", bound=Event)
BULK = 200 << 20


class Large(toy.StageOne):
    """It really takes what it says."""

    living: ClassVar[list[weakref.ref[Large]]] = []

    def weighs(self, setup: Setup) -> int:
        return BULK

    def load(self, setup: Setup) -> str:
        self.living.append(weakref.ref(self))
        self._bulk = [os.urandom(1 << 16) * 1 for _ in range(BULK >> 16)]  # in pieces that malloc keeps
        self._circle = self
        return super().load(setup)


class Silent(toy.StageOne):
    weighs = None  # type: ignore[assignment]


class Thread:
    def __init__(self, folder: Path, kind: str = "ifmesh.toy:StageOne", budget: int = 1 << 30, needs: int = 0, life: str = "one.1") -> None:
        self.told: SimpleQueue[Event] = SimpleQueue()
        swap = Swap(Lender(folder, "cpu", life), budget, needs)
        self.compute = Compute("stage_one", kind, Setup(options={"weight": 5}), IF, None, self.told.put, swap=swap)
        self.compute.start()

    def next(self, kind: type[E]) -> E:
        """The next event but Free, Over and what is told of steps, which is of this kind."""
        while True:
            event = self.told.get(timeout=LIMIT)
            if isinstance(event, kind):
                return event
            assert isinstance(event, Free | Over | Stepped), event


def test_it_comes_and_goes_with_the_same_pixels(tmp_path: Path) -> None:
    thread = Thread(tmp_path)
    assert thread.next(Weighed) == Weighed(5)
    made = []
    for turn in range(3):
        thread.compute.give(Fill())
        numeric = thread.next(Loaded).numeric
        thread.next(Free)
        thread.compute.give(Task("a", (1, turn), FOX, FRAMES[FOX.prompt]))
        made.append((numeric, thread.next(Made).frame))
        thread.compute.give(Forget("a", (1, turn)))
        thread.compute.give(Clear())
        thread.next(Cleared)
    assert made[0] == made[1] == made[2]


def test_what_is_under_way_is_forgotten(tmp_path: Path) -> None:
    thread = Thread(tmp_path, needs=7)
    assert thread.next(Weighed) == Weighed(7)
    thread.compute.give(Fill())
    thread.next(Loaded)
    thread.next(Free)
    thread.compute.give(Task("a", (1, 1), FOX, FRAMES[FOX.prompt]))
    thread.compute.give(Clear())
    while not isinstance(event := thread.told.get(timeout=LIMIT), Cleared):
        assert not isinstance(event, Made)
    thread.compute.give(Fill())
    thread.next(Loaded)
    thread.next(Free)
    thread.compute.give(Task("b", (1, 2), OWL, FRAMES[OWL.prompt]))
    assert thread.next(Made).job == "b"


def test_the_host_may_say_no(tmp_path: Path) -> None:
    one, two = Thread(tmp_path, needs=3, budget=5), Thread(tmp_path, needs=3, budget=5, life="two.1")
    one.compute.give(Fill())
    one.next(Weighed)
    one.next(Loaded)
    two.compute.give(Fill())
    two.next(Weighed)
    assert two.next(Denied).holders == "one.1"
    two.compute.give(Clear())  # it was asked back before that was heard
    two.next(Cleared)
    one.compute.give(Clear())
    one.next(Cleared)
    two.compute.give(Fill())
    two.next(Loaded)


def given_back(folder: Path) -> None:
    """In a process of its own: in one that did much before, freed memory of others comes and goes."""
    thread = Thread(folder, "tests.unit.test_compute_swap:Large")
    assert thread.next(Weighed).needs == BULK
    gc.collect()
    before = memory.resident()
    for _ in range(2):
        thread.compute.give(Fill())
        thread.next(Loaded)
        assert memory.resident() > before + 0.9 * BULK
        thread.compute.give(Clear())
        thread.next(Cleared)
        assert memory.resident() < before + 0.1 * BULK
        assert Large.living[-1]() is None


def test_the_memory_goes_back_to_the_system(tmp_path: Path) -> None:
    code = "import sys, pathlib; from tests.unit.test_compute_swap import given_back; given_back(pathlib.Path(sys.argv[1]))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environ, check=True, timeout=100)


@pytest.mark.parametrize(
    ("kind", "budget", "words"),
    [
        ("Silent", 1 << 30, ("services.stage_one.needs", "does not know how much memory it takes", "needs = '3GB'")),
        ("Large", 1 << 20, ("services.stage_one", f"it needs {BULK} bytes", "memory.cpu")),
    ],
)
def test_what_cannot_be_is_told_at_once(tmp_path: Path, kind: str, budget: int, words: tuple[str, ...]) -> None:
    ended = Thread(tmp_path, f"{__name__}:{kind}", budget).next(Ended)
    assert ended.code == 3
    for word in words:
        assert word in ended.error
