"""What a bad link does to frames, in virtual time."""

from __future__ import annotations

import pytest

from tests.hosts.wire import Link, Wire


def wire(link: Link, seed: str = "s") -> Wire:
    made = Wire(seed)
    made.link = link
    return made


def fates(made: Wire, count: int = 1000, apart: float = 0.001, size: int = 1000) -> list[tuple[float, ...]]:
    """Of so many frames, one after the other: how long each copy takes."""
    return [tuple(when - n * apart for when in made.fate(n * apart, size)) for n in range(count)]


def test_a_plain_link_carries_all_at_once() -> None:
    made = Wire("s")
    assert set(fates(made)) == {(0.0,)}
    assert (made.carried, made.dropped) == (1000, 0)


def test_the_same_seed_has_the_same_fates() -> None:
    how = Link(delay=0.02, jitter=0.02, loss=0.1, twice=0.1, early=0.1)
    assert fates(wire(how)) == fates(wire(how)) != fates(wire(how, "other"))


def test_late_frames_keep_their_order() -> None:
    """Close together they all take nearly the longest time; far apart each its own."""
    made = wire(Link(delay=0.02, jitter=0.05))
    came = [made.fate(n * 0.001, 1000)[0] for n in range(1000)]
    assert came == sorted(came)
    assert min(when - n * 0.001 for n, when in enumerate(came)) >= 0.02
    late = [when for (when,) in fates(wire(Link(delay=0.02, jitter=0.05)), apart=1.0)]
    assert 0.02 <= min(late) < 0.025
    assert 0.065 < max(late) <= 0.07 + 1e-9


@pytest.mark.parametrize(("how", "copies"), [(Link(loss=0.1), 0), (Link(twice=0.1), 2)])
def test_the_share_that_is_lost_or_comes_twice(how: Link, copies: int) -> None:
    told = [len(fate) for fate in fates(wire(how))]
    assert 60 < told.count(copies) < 140
    assert told.count(1) == 1000 - told.count(copies)


def test_some_overtake_others() -> None:
    told = fates(wire(Link(delay=0.02, early=0.1)))
    assert 60 < sum(when == 0 for (when,) in told) < 140


def test_a_slow_link_sends_one_after_the_other_and_drops_what_would_wait_too_long() -> None:
    """1 Mbit/s: 1000 bytes take 8 ms, and half a second's worth may wait."""
    made = wire(Link(rate=1e6))
    came = [when[0] for when in (made.fate(0.0, 1000) for _ in range(100)) if when]
    assert came == pytest.approx([0.008 * (n + 1) for n in range(63)])
    assert (made.carried, made.dropped) == (63, 37)
    assert made.fate(10.0, 1000) == pytest.approx((10.008,))


def test_a_dead_link_carries_nothing() -> None:
    made = wire(Link(dead=True))
    assert set(fates(made)) == {()}
    assert (made.carried, made.dropped) == (0, 1000)
