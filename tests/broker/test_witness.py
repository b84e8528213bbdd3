"""Whose death is held against what: the word of a parent, whenever it comes, and from whichever death."""

from __future__ import annotations

from typing import Literal

import pytest

from ifmesh.cascade import IF
from ifmesh.commands import Booked
from ifmesh.protocol import Exited, Failed, Held, Submit
from ifmesh.request import Request
from tests.broker.test_urgent import FOX, Hub

LIFE = "enc.1"


def died(hub: Hub, ran: tuple[str, ...] | None, life: str = LIFE, cause: Literal["crashed", "stalled"] = "crashed") -> set[str]:
    """A parent tells of a death; whom it is held against."""
    return hub.blamed(hub.hear(f"{life}/parent", Exited(life, cause, "signal 6", "enc", ran)))


@pytest.fixture
def hub() -> Hub:
    """One job, granted and begun."""
    made = Hub(LIFE)
    made.submit("a", FOX)
    made.begins("a")
    return made


def lost_in_silence(hub: Hub) -> None:
    hub.now = 6.0
    hub.broker.tick(hub.now)
    assert LIFE not in hub.broker.roster.lives


def test_a_death_before_its_beginning_was_told() -> None:
    hub = Hub(LIFE)
    hub.submit("a", FOX)
    assert died(hub, ("a",)) == {"a"}


def test_the_witness_knows_better_than_the_books(hub: Hub) -> None:
    assert died(hub, ()) == set()


def test_a_witness_that_is_slower_than_the_silence(hub: Hub) -> None:
    lost_in_silence(hub)
    assert died(hub, ("a",)) == {"a"}
    assert died(hub, ("a",)) == set(), "one death is one death"


def test_a_witness_that_is_slower_than_the_next_life(hub: Hub) -> None:
    """Another runs under its name already: it was given up for that, and died of the job all the same."""
    hub.join("enc.2", 2)
    assert LIFE not in hub.broker.roster.lives
    assert died(hub, ("a",)) == {"a"}
    assert died(hub, ("a",)) == set()


def test_stalled_is_one_death_however_it_was_found_out(hub: Hub) -> None:
    hub.now = IF["encoder"].patience + 1.0
    assert hub.blamed(hub.beat(LIFE, Held("a", hub.runs["a"][1], "running", 0, 10))) == {"a"}
    assert died(hub, ("a",), cause="stalled") == set()


@pytest.mark.parametrize(("ran", "blamed"), [(("a",), {"a"}), ((), set()), (None, set())])
def test_who_was_revoked_and_dies_later(hub: Hub, ran: tuple[str, ...] | None, blamed: set[str]) -> None:
    """The books say what ran when its key was revoked, and know nothing of what it did from then on: only a witness does."""
    hub.broker.revoked(hub.now, LIFE)
    assert died(hub, ran) == blamed


def test_four_deaths_whoever_was_there_to_hear() -> None:
    """Before the silence, behind it, told to the next coordinator, and with another under the name already."""
    hub = Hub(LIFE)
    poison = Request("poison", 1, "encode", last_stage="encoder")
    hub.submit("a", poison)
    assert died(hub, ("a",)) == {"a"}
    hub.join("enc.2", 2)
    hub.now += 6.0
    hub.broker.tick(hub.now)
    assert died(hub, ("a",), "enc.2") == {"a"}

    later = Hub()
    later.broker.recover(0.0, [Booked("a", poison, 1.0, 2, "", (LIFE, "enc.2"))], ())
    assert died(later, ("a",), "enc.2") == set(), "told again"
    assert died(later, ("a",), "enc.3") == {"a"}
    later.now = 6.0
    later.broker.tick(later.now)
    later.join("enc.4", 2)
    assert later.where() == {"enc.4": {"a"}}
    later.join("enc.5", 2)
    said = later.hear("enc.4/parent", Exited("enc.4", "crashed", "signal 6", "enc", ("a",)))
    assert later.blamed(said) == {"a"}
    ending = later.broker.ended["a"].ending
    assert isinstance(ending, Failed)
    assert ending.cause == "poison"
    assert not later.broker.jobs
    assert later.hear("bob", Submit("a", poison))
