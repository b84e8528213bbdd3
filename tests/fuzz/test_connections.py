"""A sample of the connections that `python -m tests.fuzz.connections` makes by the thousand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import strangers
from tests.fuzz.connections import GARBAGE, run
from tests.fuzz.siege import INSIDERS, NOBODY
from tests.fuzz.strangers import CLASSES, Overheard

SOCKETS = {"control", "coordinator tcp", "coordinator ipc", "worker tcp", "worker ipc"}


@pytest.mark.parametrize(
    ("curve", "count"), [(True, 200), pytest.param(False, 100, marks=pytest.mark.matrix)], ids=["curve", "in the clear"]
)
def test_hostile_connections_disturb_nobody(tmp_path: Path, curve: bool, count: int) -> None:
    report = run(count, 3, curve, tmp_path, calm=0.5)
    assert not report["wrong"], report
    assert report["connections"] >= count
    assert report["by_socket"].keys() == SOCKETS
    assert set(report["by_class"]) >= {*CLASSES, *NOBODY, *(INSIDERS if curve else ())}
    assert min(told["jobs_right"] for told in report["honest"].values()) > 0
    assert report["garbage_frames"]["coordinator"] > 0  # they came through where they may
    if curve:
        assert report["frames_heard_from_strangers"] == 0


def test_one_seed_makes_the_same_connections() -> None:
    def talks(seed: int) -> list[strangers.Talk]:
        dice = random.Random(seed)
        return [make(dice, Overheard()) for make in CLASSES.values()]

    assert talks(3) == talks(3) != talks(4)


def test_what_a_decoder_has_seen_is_told_from_who_was_turned_away() -> None:
    log = (
        "12:00:00.000 warning - dropped what 127.0.0.1 (a newcomer) sent (3 so far): a key that is not authorised\n"
        "12:00:00.000 warning - dropped what 127.0.0.1 (data) sent (1 so far): not msgpack\n"
        "12:00:00.000 warning - dropped what b'kit-1' sent (1 so far): no map\n"
    )
    assert len(GARBAGE.findall(log)) == 2
