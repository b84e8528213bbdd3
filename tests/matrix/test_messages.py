"""Each kind of message, lost before it is received, and lost with all that answers it: everything ends, once, and in time.

The cases are the unions of the protocol themselves, so a new message fails here until it is said in the course of a `day`.
"""

from __future__ import annotations

from math import inf
from typing import Any, get_args

import pytest

from ifmesh.protocol import Kind, Probe, ToClient, ToCoordinator, ToParent, ToWorker
from ifmesh.request import Request
from tests.broker.links import Down
from tests.broker.patron import Patron, Wish
from tests.broker.toyland import luggage, sha
from tests.matrix.scene import BEAT, Scene

UNSAID = {
    "ToParent Refused": "answers another version of the protocol, which no simulated process speaks: row 60",
}

SWAPPED = {"encoder": 1, "guard": 1}
"""They take turns on one device."""

WINDOW = 0.3
"""Seconds in which all that answers a message is said: a turn, and the time that a result takes to disk."""

CALM = 45.0
"""Seconds that an undisturbed day takes at most; half of it is patience with the worker that hangs, a fifth with the cable that is cut."""

DAY = CALM + 20.0
"""Seconds after which a day is over, whichever message was lost in it."""


def kinds() -> list[Any]:
    unions = {"ToCoordinator": ToCoordinator, "ToClient": ToClient, "ToWorker": ToWorker, "ToParent": ToParent}
    said = [(union, cls.__name__) for union, classes in unions.items() for cls in get_args(classes)]
    said += [("data", kind) for kind in get_args(Kind)]
    return [pytest.param(union, name, id=f"{union}-{name}") for union, name in said if f"{union} {name}" not in UNSAID]


class Day(Scene):
    """In which everything is said that can be said.

    A stranger of no stage, a worker that raises, one that hangs, one that dies, one that drains; a job that brings something and is
    watched, one cancelled, one refused for want of room, one that can never work; checkpoints, which the next of the dead goes on from;
    the way from one worker to another is probed; two stages that take turns on a device; a cable between two neighbours that is cut for
    good; and the coordinator restarts.
    """

    def __init__(self, seed: int, union: str = "", name: str = "") -> None:
        super().__init__(seed, copies={"stage_one": 2}, clients=2, pace=0.1, every=2, max_jobs=7, transfer=1.0, needs=SWAPPED)
        self.union, self.name = union, name
        self.pick = self.met = 0  # the message to be struck: which of them, and how many there were so far
        self.strikes = "lost"
        self.links.struck = self._struck
        self.hire("stray-0", "nowhere").gone = True

    def _struck(self, way: str, who: str, message: Any) -> bool:
        """Is this one to be lost?"""
        union = "data" if way == "data" else "ToCoordinator" if way == "up" else self._door(who)
        kind = message.kind if way == "data" else type(message).__name__
        if (union, kind) != (self.union, self.name):
            return False
        self.met += 1
        if self.met != self.pick + 1:
            return False
        if self.strikes == "lost":
            return True
        mute = self._answers(way, who)
        self.later(1e-6, lambda: setattr(self.links, "mute", mute))  # what is said already is no answer
        self.later(WINDOW, lambda: setattr(self.links, "mute", lambda way, who: False))
        return False

    def _door(self, who: str) -> str:
        return "ToParent" if who.endswith("/parent") else "ToClient" if who.startswith("client") else "ToWorker"

    def _answers(self, way: str, who: str) -> Any:
        """Whatever the receiver says now, to anybody."""
        receiver = "hub" if way == "up" else who.rpartition(" ")[2] if way == "data" else who
        if receiver == "hub":
            return lambda way, who: way == "down"
        return lambda way, who: way == "up" and who.startswith(receiver) and who.endswith("/parent") == receiver.endswith("/parent")

    def pass_away(self) -> float:
        """From morning to evening; how long it took."""
        self.hub.start()
        for service in self.services:
            gone, service.gone = service.gone, False
            service.start()
            service.gone = gone
        for patron in self.patrons:
            patron.start()
        self.links.hole("upscaler-0", "guard-0", inf)
        ann, bob = self.patrons
        first = luggage(("source",), 1)
        self.at(2.0, ann.submit, Wish("fox-a", Request("fox:a", 1, "vary", brings=("source",), upload=sha(first)), first, previews=True))
        self.at(2.0, bob.submit, Wish("flaky-b", Request("flaky:stage_one", 2, last_stage="stage_one")))
        self.at(2.1, bob.submit, Wish("bad-c", Request("bad:stage_two", 3)))
        self.at(2.2, bob.submit, Wish("slow-d", Request("slow:encoder", 4)))
        self.at(4.0, bob.cancel, "slow-d")
        for n in range(4):
            self.at(2.3, ann.submit, Wish(f"fox-{n}", Request(f"fox:{n}", 5, last_stage="stage_one")))
        self.at(2.5, ann.look, "fox-a")
        self.at(3.0, self._look_around, bob)
        self.at(4.5, self._probe, bob, Probe(1, "encoder-0", "stage_one-0", 1000, 2))
        self.at(5.0, lambda: self["stage_one-1"].die("killed", "SIGKILL"))
        self.at(6.0, self.crash)
        self.at(9.0, self._hang)
        self.at(9.5, ann.submit, Wish("fox-e", Request("fox:e", 6)))
        self.at(10.0, lambda: self["stage_one-0"].drain())
        self.at(11.0, bob.vanish)
        self.at(12.0, bob.start)
        took = self.wait(lambda: self.now > 13.0 and self._all_ended() and not self._unfetched(), DAY)
        self.over(0.1)
        self.wait(lambda: all(s.keeper._trusts == self.hub.epoch for s in self.services if s.ready and s.life), 2 * BEAT)
        self["guard-0"].gone = True
        self.hub.command(self.hub.broker.drain(self.hub.clock()))
        self.hub.command(self.hub.broker.farewell())
        self.at(self.now + 0.5, self._evening)
        self.wait(lambda: not self["guard-0"].life, 10.0)
        return took

    def _look_around(self, patron: Patron) -> None:
        patron._do(patron.caller.inspect(self.now, 0, ""))

    def _probe(self, patron: Patron, probe: Probe) -> None:
        patron._do(patron.caller.probe(self.now, probe))

    def _hang(self) -> None:
        """The next that runs in Stage II does not come back."""
        self["stage_two-0"].hung = self["stage_two-0"].task is not None
        if not self["stage_two-0"].hung and self.hub.alive and self.now < 30.0:
            self.later(0.01, self._hang)

    def _evening(self) -> None:
        """Whoever is still there is told again, as the coordinator's shell does."""
        if self.hub.alive and self.hub.broker.roster.lives:
            self.hub.command(self.hub.broker.farewell())
            self.later(0.5, self._evening)


EACH = pytest.mark.parametrize(("union", "name"), kinds())
STRIKES = pytest.mark.parametrize("strikes", ["lost", "unanswered"])


def strike(union: str, name: str, strikes: str, most: int) -> None:
    """The first one, the second ... each in a day of its own."""
    for pick in range(most):
        day = Day(pick, union, name)
        day.pick, day.strikes = pick, strikes
        day.pass_away()
        assert day.met or pick, f"nobody says {name} in the course of a day: give it an occasion"
        if day.met <= pick:
            return


@STRIKES
@EACH
def test_one_message(union: str, name: str, strikes: str) -> None:
    strike(union, name, strikes, most=1)


@pytest.mark.matrix
@STRIKES
@EACH
def test_each_message(union: str, name: str, strikes: str) -> None:
    strike(union, name, strikes, most=20)


def test_a_calm_day() -> None:
    for seed in range(5):
        assert Day(seed).pass_away() < CALM


def test_what_is_never_said_is_a_message_of_the_protocol() -> None:
    unions: dict[str, Any] = {"ToCoordinator": ToCoordinator, "ToClient": ToClient, "ToWorker": ToWorker, "ToParent": ToParent}
    known = {f"{union} {cls.__name__}" for union, classes in unions.items() for cls in get_args(classes)}
    known |= {f"data {kind}" for kind in get_args(Kind)}
    assert UNSAID.keys() <= known
    assert {cls for union in (ToClient, ToWorker, ToParent) for cls in get_args(union)} == set(get_args(Down))
