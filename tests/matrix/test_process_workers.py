"""Rows 17 to 22, 24, 30 to 32 and 61 on real processes: workers are killed, stopped and orphaned."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from ifmesh.protocol import Started
from ifmesh.request import STAGES, Request
from tests.matrix.conftest import Figure
from tests.matrix.gates import Gates
from tests.matrix.plot import BRISK, SMALL, crew, pid, right, small, stopped, strike, told, under_way
from tests.mesh.conftest import Make

EACH = tuple(f"{stage}-0" for stage in STAGES)
FEW = tuple(f"{stage}-0" for stage in SMALL)


@pytest.mark.matrix
def test_row_17_an_idle_worker_is_killed(mesh: Make, figure: Figure) -> None:
    """Somebody says so at once, and nothing else happens."""
    one = mesh(**BRISK)
    processes = crew(one, *FEW, "encoder-1")
    with one.speaker() as fan:
        rows = {row.service: row.pid for row in fan.books().services}
        began = strike(rows["encoder-0"])
        fan.when(lambda books: not any(r.service == "encoder-0" and r.state != "lost" for r in books.services))
        figure("an idle worker killed -> known", time.monotonic() - began)
        right(fan, "a", small())
        assert {r.service: r.pid for r in fan.books().services if r.state != "lost"} == {n: p for n, p in rows.items() if n != "encoder-0"}
    assert processes["encoder-0"].code() == 128 + signal.SIGKILL
    assert "encoder-0 is lost: killed: SIGKILL" in processes["coordinator"].log.read_text()


def test_row_18_a_worker_is_killed_in_mid_step(mesh: Make, gates: Gates, figure: Figure) -> None:
    """The other of its stage goes on from the bag of the stage before; the kill is held against nobody."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    crew(one, *FEW, "stage_one-1")
    with one.speaker() as fan:
        request = small("gate=stage_one:here")
        fan.submit("a", request)
        victim = under_way(fan, "stage_one")
        began = strike(pid(fan, victim))
        fan.until(Started, lambda m: m.stage == "stage_one" and m.worker != victim)
        figure("a worker killed -> its job runs on the same host again", time.monotonic() - began)
        gates.open("here")
        right(fan, "a", request, stage_one=2)
        assert not told("blamed")(fan.books("a"))


@pytest.mark.matrix
def test_row_19_a_worker_dies_with_one_running_and_one_prefetched(mesh: Make, gates: Gates, figure: Figure) -> None:
    one = mesh(**BRISK, **gates.settings("stage_one"))
    crew(one, *FEW)
    with one.speaker() as fan:
        first, second = small("gate=stage_one:here"), small("another")
        fan.submit("a", first)
        under_way(fan, "stage_one")
        fan.submit("b", second)
        fan.when(told("stage_one: assigned"), "b")
        began = strike(pid(fan, "stage_one-0"), signal.SIGSEGV)
        for job in ("a", "b"):
            fan.when(told("stage_one: retried: stage_one-0 crashed: SIGSEGV"), job)
        figure("a worker crashes -> both of its jobs are back", time.monotonic() - began)
        assert told("blamed, 1 of 4")(fan.books("a"))
        assert not told("blamed")(fan.books("b"))
        one.worker("stage_one")
        gates.open("here")
        right(fan, "a", first, stage_one=2)
        books = right(fan, "b", second, stage_one=2)
        assert books.reproducible


@pytest.mark.matrix
def test_row_20_a_worker_is_killed_between_its_last_step_and_done(mesh: Make, gates: Gates) -> None:
    one = mesh(**BRISK, **gates.settings("stage_one"))
    processes = crew(one, *FEW, "stage_one-1")
    with one.speaker() as fan:
        right(fan, "a", request := small("die=stage_one"), stage_one=2)
        assert not told("blamed")(fan.books("a"))
        right(fan, "b", request)  # its file is there: it dies once
    assert sorted(p.popen.poll() is None for n, p in processes.items() if n.startswith("stage_one")) == [False, True]


def test_row_21_a_worker_is_killed_with_the_only_copy(mesh: Make) -> None:
    """There is nobody of the next stage yet, so its bag is nowhere else: one stage runs again, from what is still held before it."""
    one = mesh(**BRISK)
    crew(one, *(name for name in EACH if name != "stage_two-0"))
    request = Request("a fox", 7)
    with one.speaker() as fan:
        fan.submit("a", request)
        fan.when(told("stage_one: advanced"), "a")
        strike(pid(fan, "stage_one-0"))
        fan.when(told("its bag died with stage_one-0"), "a")
        one.worker("stage_one")
        one.worker("stage_two")
        right(fan, "a", request, stage_one=2)


@pytest.mark.matrix
def test_row_22_two_neighbours_are_killed_together(mesh: Make, gates: Gates) -> None:
    """Both copies of a bag are gone; the stages after them have not run yet and run once."""
    one = mesh(**BRISK, **gates.settings("stage_two"))
    crew(one, *EACH)
    request = Request("gate=stage_two:here", 7)
    with one.speaker() as fan:
        fan.submit("a", request)
        under_way(fan, "stage_two")
        victims = [pid(fan, name) for name in ("stage_one-0", "stage_two-0")]
        for victim in victims:
            strike(victim)
        fan.when(told("retried"), "a")
        gates.open("here")
        one.worker("stage_one")
        one.worker("stage_two")
        right(fan, "a", request, encoder=2, stage_one=2, stage_two=2)


@pytest.mark.matrix
def test_row_24_a_worker_is_killed_while_its_bag_is_in_flight(mesh: Make, gates: Gates, figure: Figure) -> None:
    """It is stopped, so that the bag stays in the pipe, and killed there."""
    one = mesh(**BRISK, **gates.settings("encoder"))
    crew(one, *FEW)
    with one.speaker() as fan:
        request = small("gate=encoder:here")
        fan.submit("a", request)
        under_way(fan, "encoder")
        victim = pid(fan, "stage_one-0")
        os.kill(victim, signal.SIGSTOP)
        gates.open("here")
        fan.when(told("stage_one: assigned: stage_one-0"), "a")
        one.worker("stage_one", "stage_one-1")
        one.ready(fan, "stage_one-1")
        began = strike(victim)
        fan.until(Started, lambda m: m.worker == "stage_one-1")
        figure("the receiver of a bag killed -> another has it and runs", time.monotonic() - began)
        right(fan, "a", request, stage_one=2)


def test_row_30_a_worker_is_stopped_for_longer_than_the_dead(mesh: Make, gates: Gates, figure: Figure) -> None:
    """Another has its task when it wakes: what it still does with it does not count, and it serves again, in the same life."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    crew(one, *FEW, "stage_one-1")
    with one.speaker() as fan:
        request = small("gate=stage_one:here")
        fan.submit("a", request)
        victim = under_way(fan, "stage_one")
        number = pid(fan, victim)
        began = time.monotonic()
        with stopped(number):
            other = fan.until(Started, lambda m: m.stage == "stage_one" and m.worker != victim).worker
            figure("a worker stopped -> its job runs elsewhere", time.monotonic() - began)
        woke = time.monotonic()
        rows = one.ready(fan, victim)
        figure("a stopped worker wakes -> it is back in the books", time.monotonic() - woke)
        assert rows[victim].pid == number
        gates.open("here")
        finished = right(fan, "a", request, stage_one=2)
        assert [run.worker for run in finished.runs if run.stage == "stage_one"] == [other]
        fan.when(lambda books: all(r.running == r.held == 0 for r in books.services))


@pytest.mark.matrix
def test_row_31_a_worker_is_stopped_and_nobody_could_take_over(mesh: Make, gates: Gates, figure: Figure) -> None:
    """It has the task still when it wakes, and is left to finish it."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    crew(one, *FEW)
    with one.speaker() as fan:
        request = small("gate=stage_one:here")
        fan.submit("a", request)
        under_way(fan, "stage_one")
        with stopped(pid(fan, "stage_one-0")):
            fan.when(told("retried: stage_one-0 silent"), "a")
        woke = time.monotonic()
        fan.when(told("adopted: stage_one-0 has it already"), "a")
        figure("a stopped worker wakes -> its task is adopted", time.monotonic() - woke)
        gates.open("here")
        right(fan, "a", request)


@pytest.mark.matrix
def test_row_32_a_worker_is_back_before_it_counts_as_dead(mesh: Make, gates: Gates, figure: Figure) -> None:
    """Killed with its parent, so that nobody tells; the next life under its name does."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    processes = crew(one, *FEW)
    with one.speaker() as fan:
        request = small("gate=stage_one:here")
        fan.submit("a", request)
        under_way(fan, "stage_one")
        began = strike(processes["stage_one-0"].pid)
        one.worker("stage_one")
        fan.until(Started, lambda m: m.stage == "stage_one")
        figure("worker and parent killed, started again at once -> its job runs", time.monotonic() - began)
        assert told("a newer process runs under its name")(fan.books("a"))
        gates.open("here")
        right(fan, "a", request, stage_one=2)


def test_row_61_the_parent_of_a_worker_is_killed(mesh: Make, gates: Gates, figure: Figure) -> None:
    """No process stays behind, at a step or not."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    processes = crew(one, *FEW)
    with one.speaker() as fan:
        fan.submit("a", small("gate=stage_one:here"))
        under_way(fan, "stage_one")
        children = [psutil.Process(pid(fan, name)) for name in FEW]
    began = time.monotonic()
    for name in FEW:
        strike(processes[name].pid)
    assert psutil.wait_procs(children, timeout=30)[1] == []
    figure("parents killed -> their workers are gone", time.monotonic() - began)
