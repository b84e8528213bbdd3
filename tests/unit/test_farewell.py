"""How a coordinator leaves: the times are told, nothing is waited for."""

from __future__ import annotations

import pytest

from ifmesh.farewell import AGAIN, LEAVING, READ, Farewell
from ifmesh.protocol import Accepted, Finished, Refused, Result, ToClient
from ifmesh.request import Request

FINISHED = Finished("j", "ff", 3, 4, True, ())


def begun(at: float = 0.0, drain: float = 10.0) -> Farewell:
    farewell = Farewell()
    farewell.begin(at, drain)
    return farewell


def test_nobody_leaves_who_was_not_told_to_stop() -> None:
    farewell = Farewell()
    farewell.told(0.0, b"c", FINISHED)
    assert farewell.next(1e9, idle=True, alone=True) == "wait"
    assert farewell.wakeup(1e9) is None


def test_with_nothing_under_way_and_nobody_there_it_ends_at_once() -> None:
    assert begun().next(0.0, idle=True, alone=True) == "end"


def test_what_is_under_way_is_waited_for_so_long() -> None:
    farewell = begun(drain=10.0)
    assert farewell.next(9.9, idle=False, alone=False) == "wait"
    assert farewell.wakeup(9.9) == 10.0
    assert farewell.next(10.0, idle=False, alone=False) == "speak"


def test_the_last_words_are_said_until_the_workers_are_gone() -> None:
    farewell = begun()
    assert farewell.next(1.0, idle=True, alone=False) == "speak"
    assert farewell.next(1.0, idle=True, alone=False) == "wait"
    assert farewell.wakeup(1.0) == 1.0 + AGAIN
    assert farewell.next(1.0 + AGAIN, idle=True, alone=False) == "speak"
    assert farewell.next(1.0 + AGAIN, idle=True, alone=True) == "end"
    assert farewell.next(1.0 + LEAVING, idle=True, alone=False) == "end"


@pytest.mark.parametrize("answer", [Result("j", "ff", Request("a fox", 1)), Refused("j", "unknown", "no longer on disk"), None])
def test_a_picture_that_was_told_of_is_waited_for_until_it_is_fetched(answer: ToClient | None) -> None:
    """answer: to its Fetch; None: the client is gone."""
    farewell = begun()
    farewell.told(1.0, b"c", FINISHED)
    assert farewell.next(2.0, idle=True, alone=True) == "speak"
    farewell.told(2.0, b"c", Accepted("another"))
    assert farewell.next(2.1 + READ, idle=True, alone=True) != "end"
    if answer is None:
        farewell.gone(b"c")
        assert farewell.next(2.2 + READ, idle=True, alone=True) == "end"
    else:
        farewell.told(3.0, b"c", answer)
        assert farewell.next(3.0, idle=True, alone=True) != "end", "it has not been read yet"
        assert (farewell.wakeup(3.0) or 0.0) <= 3.0 + READ
        assert farewell.next(3.0 + READ, idle=True, alone=True) == "end"


def test_a_picture_that_nobody_fetches_is_not_waited_for_longer() -> None:
    farewell = begun()
    farewell.told(0.0, b"c", FINISHED)
    assert farewell.next(1.0, idle=True, alone=True) == "speak"
    assert farewell.next(1.0 + LEAVING, idle=True, alone=True) == "end"
