"""Notes: written together, soon, and in their order among other lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from ifmesh import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """`log.start` is for a whole process."""
    kept = log.logger.handlers[:], log.logger.level, log.logger.propagate
    flags = logging.logThreads, logging.logProcesses, logging.logMultiprocessing, logging._srcfile
    yield
    log.logger.handlers[:], log.logger.propagate = kept[0], kept[2]
    log.logger.setLevel(kept[1])
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing, logging._srcfile = flags


def test_a_note_waits_a_moment_for_others(capsys: pytest.CaptureFixture[str]) -> None:
    log.start()
    assert log.wakeup() is None
    log.note("a", "accepted")
    due = log.wakeup()
    assert due is not None
    assert due <= time.monotonic() + log.MOMENT
    log.note("b", "accepted")
    assert log.wakeup() == due, "the first says when"
    log.tend(due - 0.001)
    assert not capsys.readouterr().err
    log.tend(due)
    assert [line.split()[1:] for line in capsys.readouterr().err.splitlines()] == [["info", "a", "accepted"], ["info", "b", "accepted"]]
    assert log.wakeup() is None


def test_a_line_of_another_kind_comes_after_the_notes_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    log.start()
    log.note("a", "accepted")
    log.logger.info("ended")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["accepted", "ended"]
    assert log.wakeup() is None
