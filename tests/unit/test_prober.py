"""Both ends of a probe, frame by frame; the order of it all is told in tests/broker/stories/keeper_probe.txt."""

from __future__ import annotations

import math
import struct

import pytest

from ifmesh.prober import BULK, KNOWN, SLOWEST, TRIPS, WINDOW, Cast, Prober
from ifmesh.protocol import Arrived, Echo, Endpoint, Header, Reach, Reached, Token

HERE, THERE = (Endpoint("", "tcp://here"),), (Endpoint("", "tcp://there"),)
TOKEN: Token = (1, 7)


def probed(size: int, count: int, delay: float = 0.25) -> tuple[Reached, float, int]:
    """Two ends, and a link on which each frame takes so many seconds, one after the other, and each answer none; what is said in the end,
    when, and how many large frames were under way at most."""
    source, target, now = Prober("encoder", "enc.1"), Prober("stage_one", "one.1"), 0.0
    target.echo(now, Echo(TOKEN, "enc.1", HERE))
    way = [one for one in source.reach(now, Reach(TOKEN, "one.1", THERE, size, count)) if isinstance(one, Cast)]
    most = 0
    while way:
        most = max(most, sum(bool(one.frame) for one in way))
        cast, now = way.pop(0), now + delay
        assert cast.to == THERE
        assert cast.header.stage == "encoder"
        for answer in target.arrived(now, cast.header, cast.frame):
            if isinstance(answer, Cast):
                assert answer.to == HERE
                for said in source.arrived(now, answer.header, answer.frame):
                    if isinstance(said, Reached):
                        return said, now, most
                    assert isinstance(said, Cast)
                    way.append(said)
    raise AssertionError("it never ends")


def test_the_figures_are_those_of_the_link() -> None:
    told, _, most = probed(1000, 9)
    assert told == Reached("enc.1", TOKEN, (0.25,) * TRIPS, 8000, 2.0)
    assert most == WINDOW


def test_without_large_frames_there_are_the_round_trips_alone() -> None:
    assert probed(0, 0)[0] == Reached("enc.1", TOKEN, (0.25,) * TRIPS)


def test_one_large_frame_gives_no_bandwidth() -> None:
    assert probed(1000, 1)[0] == Reached("enc.1", TOKEN, (0.25,) * TRIPS)


def test_a_slow_link_ends_it_before_all_have_left() -> None:
    told, ended, _ = probed(1000, 10_000)
    sent = 1 + told.size // 1000
    assert sent < BULK / 0.25 + WINDOW + 1
    assert ended <= (1 + TRIPS) * 0.25 + BULK + WINDOW * 0.25


def test_no_two_frames_have_the_same_name() -> None:
    """In the outlets the newest of a name takes the place of the one that waits."""
    source = Prober("", "")
    names = [cast.header.job for n in range(3) for cast in source.reach(0.0, Reach((1, n), "a", THERE, 0, 0)) if isinstance(cast, Cast)]
    (first,) = source.arrived(0.1, Header("probe", "", "", (1, 0), "", 1), struct.pack("<d", 0.0))
    assert isinstance(first, Cast)
    assert len({*names, first.header.job}) == 4


def test_probes_of_nobody_do_not_pile_up() -> None:
    """Frames of 10,000 probes of which nobody has told this worker."""
    target = Prober("stage_one", "one.1")
    for n in range(10_000):
        assert target.arrived(0.0, Header("probe", "1", "encoder", (1, n), "", 1), b"x") == [Arrived("one.1", (1, n))]
    assert len(target._echoes) == KNOWN
    assert target.wakeup() == math.inf


@pytest.mark.parametrize("answer", [b"", b"x", bytes(9), struct.pack("<d", math.nan), struct.pack("<d", -1.0), struct.pack("<d", 1e300)])
def test_an_answer_that_is_none_changes_nothing(answer: bytes) -> None:
    source = Prober("encoder", "enc.1")
    source.reach(0.0, Reach(TOKEN, "one.1", THERE, 10, 10))
    assert source.arrived(0.1, Header("probe", "1", "stage_one", TOKEN, "", 1), answer) == []
    (late,) = source.tick(source.wakeup())
    assert late == Reached("enc.1", TOKEN, error="no answer within 3 s")
    assert source.wakeup() == math.inf


def test_large_frames_that_do_not_come_through_are_told_apart() -> None:
    """As where a tunnel passes only small packets."""
    source = Prober("encoder", "enc.1")
    source.reach(0.0, Reach(TOKEN, "one.1", THERE, 1000, 9))
    for n in range(1, TRIPS + 2):
        source.arrived(0.5, Header("probe", "", "stage_one", TOKEN, "", n), struct.pack("<d", 0.0))
    assert source.tick(SLOWEST) == []
    (late,) = source.tick(0.5 + SLOWEST)
    assert isinstance(late, Reached)
    assert len(late.trips) == TRIPS
    assert late.error == "of 9 frames of 1000 bytes 0 were answered within 30 s"
