"""What the mesh keeps no longer: whoever would go on from it is told so, and nothing of that is left behind.  The real minds of both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ifmesh import caller, commands
from ifmesh.broker import Broker
from ifmesh.caller import Caller
from ifmesh.cascade import IF
from ifmesh.commands import Policy
from ifmesh.protocol import Cancelled, Refused, Submit, ToClient, Wanted
from ifmesh.request import Request

LOST, OTHER = "a" * 64, "b" * 64
BAG = ("embeds", "image64", "rng")
ONWARDS = Request("a fox", 1, first_stage="stage_two", brings=BAG, upload=LOST)


class Pair:
    """One client on a line that loses nothing.  told: what it was told of the job."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.broker, self.caller = Broker(IF, 1, (), policy), Caller()
        self.told: list[ToClient] = []

    def does(self, said: list[caller.Command]) -> None:
        for command in said:
            if isinstance(command, caller.Send):
                for answer in self.broker.receive(0.0, b"bob", command.message):
                    if isinstance(answer, commands.Send):
                        self.does(self.caller.receive(0.0, answer.message))  # type: ignore[arg-type]
            elif isinstance(command, caller.Tell):
                self.told.append(command.message)
        self.broker.check()


def test_nothing_waits_for_what_no_client_has() -> None:
    """Drawn again, it is kept again; nothing begins for somebody who has long been told no."""
    pair = Pair()
    pair.does(pair.caller.submit(0.0, "late", ONWARDS, kept=True))
    assert pair.told == [Wanted("late", LOST)]
    assert pair.caller.wakeup() is None
    assert len(pair.broker.uploads) == 0
    pair.broker.stored(30.0, LOST, 1000, BAG)
    assert pair.broker.jobs == {}


def test_a_client_that_says_it_late_again_hears_of_the_end() -> None:
    pair = Pair()
    pair.does(pair.caller.submit(0.0, "late", ONWARDS, kept=True))
    said = pair.broker.receive(1.0, b"bob", Submit("late", ONWARDS))
    assert said == [commands.Send(b"bob", Cancelled("late"))]


@pytest.mark.parametrize("stage", ["stage_two", "upscaler"])
def test_a_full_mesh_says_that_it_is_kept_no_longer(stage: str) -> None:
    """Not that it is busy: when there is room again, it is still not here."""
    request = ONWARDS if stage == "stage_two" else replace(ONWARDS, first_stage=stage, brings=("image256", "rng"))
    pair = Pair(Policy(max_uploads=1000))
    pair.broker.stored(0.0, OTHER, 1000, ("source",))
    pair.does(pair.caller.submit(0.0, "late", request, kept=True))
    assert pair.told == [Wanted("late", LOST)]
    assert pair.caller.wakeup() is None
    assert len(pair.broker.uploads) == 0


def test_a_full_mesh_is_busy_for_those_who_bring_their_own() -> None:
    pair = Pair(Policy(max_uploads=1000))
    pair.broker.stored(0.0, OTHER, 1000, ("source",))
    for job, request in (
        ("varied", Request("a fox", 1, "vary", brings=("source",), upload=LOST)),
        ("encoded", Request("a fox", 1, first_stage="stage_one", brings=("embeds",), upload=LOST)),
    ):
        pair.does(pair.caller.submit(0.0, job, request))
        (refused,) = pair.told
        assert isinstance(refused, Refused)
        assert refused.reason == "busy"
        pair.told.clear()
