"""A process that dies of a request before anybody could tell that it began: its parent knows what it was."""

from __future__ import annotations

import signal
from functools import partial

from ifmesh.protocol import Books, Failed
from ifmesh.request import Request
from tests.mesh.abrupt import DYING
from tests.mesh.conftest import Make
from tests.mesh.kit import Mesh, Process, expected, published

ABORTED = 128 + signal.SIGABRT


def told(words: str, books: Books) -> bool:
    return any(words in line for _, line in books.story)


def abrupt(mesh: Mesh, gate: str) -> Process:
    settings = {"services.stage_one.run": "tests.mesh.abrupt:StageOne", "services.stage_one.options.gate": gate}
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return mesh.start("stage_one-0", "worker", "stage_one", "--name", "stage_one-0", *flags)


def test_at_most_four_die_of_what_nobody_saw_begin(mesh: Make) -> None:
    """The first of them while the coordinator is down; and what waits behind it is unharmed."""
    made = mesh(mesh__grace=1.0)
    coordinator, gate = made.coordinator(), made.folder / "gate"
    made.worker("encoder")
    made.worker("guard")
    worker = abrupt(made, str(gate))
    innocent = Request("a fox", 8, last_stage="stage_one")
    with made.speaker() as fan:
        made.ready(fan, "encoder-0", "stage_one-0", "guard-0")
        fan.submit("poison", Request("wait and die", 7, last_stage="stage_one"))
        made.wait_for(lambda: DYING in worker.log.read_text())
        fan.submit("innocent", innocent)
        fan.when(lambda books: len(books.jobs) == 2)
    coordinator.kill()
    made.wait_for(coordinator.buried)
    gate.touch()
    made.wait_for(lambda: "crashed: SIGABRT" in worker.log.read_text())
    made.coordinator()
    deaths = 0
    with made.speaker() as fan:
        while deaths < 4:
            assert worker.code() == ABORTED
            deaths += 1
            blamed = f"blamed, {deaths} of 4"
            fan.when(partial(told, blamed), "poison")
            worker = abrupt(made, str(gate))
        fan.submit("poison", Request("wait and die", 7, last_stage="stage_one"))
        ending = fan.ending("poison")
        assert isinstance(ending, Failed)
        assert ending.cause == "poison"
        fan.submit("innocent", innocent)
        fan.finished("innocent")
        assert not told("blamed", fan.books("innocent"))
        assert published(fan.result("innocent")) == expected(innocent)
    assert worker.log.read_text().count(DYING) == 4
    assert worker.popen.poll() is None
