"""The client's mind under a virtual clock: whatever is lost is asked again, and an ending is told once."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from ifmesh.caller import BURST, KEEPALIVE, SLOW, Caller, Command, Rebuild, Send, Tell, Upload
from ifmesh.errand import probed
from ifmesh.protocol import (
    Accepted,
    Books,
    Cancel,
    Cancelled,
    ClientMessage,
    Failed,
    Fetch,
    Finished,
    Hi,
    Inspect,
    JobRow,
    Preview,
    Probe,
    Probed,
    Progress,
    Queued,
    Refused,
    Result,
    Started,
    Submit,
    ToClient,
    Wanted,
    Watch,
    Welcome,
)
from ifmesh.request import Request

FOX = Request("a fox", 7)
SHA = "5e" * 32
OTHER = "07" * 32
TIED = Request("a fox", 7, tied=True)
VARY = Request("a fox", 7, "vary", brings=("source",), upload=SHA)
STAGES = ("encoder", "stage_one", "stage_two", "upscaler", "guard")


def welcome(epoch: int) -> Welcome:
    return Welcome(STAGES, epoch, 2000)


def finished(job: str) -> Finished:
    return Finished(job, "00" * 32, 10, 7, True, ())


def books(*rows: str, page: int = 0, story: bool = False) -> Books:
    jobs = tuple(JobRow(row, "running", "stage_one", 1, 2, "w", 0.0, "fox") for row in rows)
    return Books(page, 3, (), jobs, {}, (), ((0.0, "accepted"),) if story else ())


def sent(commands: list[Command]) -> list[ClientMessage]:
    return [c.message for c in commands if isinstance(c, Send)]


def told(commands: list[Command]) -> list[ToClient]:
    return [c.message for c in commands if isinstance(c, Tell)]


def accepted(caller: Caller, now: float, job: str) -> None:
    caller.submit(now, job, FOX)
    caller.receive(now, Accepted(job))


def later(caller: Caller, now: float) -> bool:
    """After tick(now) there is nothing to do now."""
    wakeup = caller.wakeup()
    return wakeup is None or wakeup > now


def uploads(commands: list[Command]) -> list[str]:
    return [c.digest for c in commands if isinstance(c, Upload)]


def run(caller: Caller, now: float, until: float) -> list[tuple[float, Command]]:
    """Let time pass, from wakeup to wakeup, with nobody on the other side."""
    happened: list[tuple[float, Command]] = []
    for _ in range(10_000):
        wakeup = caller.wakeup()
        if wakeup is None or wakeup > until:
            return happened
        assert wakeup >= now - 1e-9, "wakeup() stays in the past: the shell would spin"
        now = max(now, wakeup)
        happened += [(now, c) for c in caller.tick(now)]
        assert later(caller, now), "tick() leaves something for now: the shell would spin"
    raise AssertionError("tick() does not move wakeup() on")


# ---- repeating


def test_nothing_asked_nothing_to_do() -> None:
    caller = Caller()
    assert caller.wakeup() is None
    assert caller.tick(100.0) == []


def test_submit_is_repeated_until_accepted_then_watched_to_the_end() -> None:
    caller = Caller(patience=30.0, again=2.0)
    assert sent(caller.submit(0.0, "a", FOX)) == [Submit("a", FOX)]
    assert [c for _, c in run(caller, 0.0, 5.0)] == [Send(Submit("a", FOX))] * 2
    assert told(caller.receive(5.0, Accepted("a"))) == [Accepted("a")]
    assert [(t, c) for t, c in run(caller, 5.0, 9.5)] == [(7.0, Send(Watch("a"))), (9.0, Send(Watch("a")))]
    assert told(caller.receive(9.5, finished("a"))) == [finished("a")]
    assert caller.wakeup() is None


@pytest.mark.parametrize("ending", [finished("a"), Failed("a", "error", "stage_one", "w", "boom"), Cancelled("a")])
def test_an_ending_is_told_once(ending: Finished | Failed | Cancelled) -> None:
    caller = Caller()
    accepted(caller, 0.0, "a")
    assert told(caller.receive(1.0, ending)) == [ending]
    for late in (ending, Cancelled("a"), Progress("a", "stage_one", 1, 2), Accepted("a")):
        assert caller.receive(2.0, late) == []
    assert caller.wakeup() is None


def test_news_put_the_next_watch_off_and_doubles_are_told_once() -> None:
    caller = Caller(patience=30.0, again=2.0)
    accepted(caller, 0.0, "a")
    step = Progress("a", "stage_one", 1, 27)
    assert told(caller.receive(1.5, step)) == [step]
    assert told(caller.receive(1.6, step)) == []
    assert [t for t, _ in run(caller, 1.6, 4.0)] == [pytest.approx(3.6)]
    assert told(caller.receive(4.0, Started("a", "stage_two", "w"))) == [Started("a", "stage_two", "w")]
    assert told(caller.receive(4.1, step)) == [step], "the same step of a second run is news"


def test_where_a_job_stands_is_told_once_however_often_it_is_asked() -> None:
    caller = Caller()
    accepted(caller, 0.0, "a")
    steps = [Progress("a", "stage_one", step, 9) for step in (1, 2)]
    way: list[ToClient] = [Queued("a", "stage_one", 0), Started("a", "stage_one", "w"), *steps]
    assert [m for m in way if told(caller.receive(1.0, m))] == way
    for message in (Accepted("a"), way[1], way[3]):
        assert told(caller.receive(3.0, message)) == []
    assert [m for m in way if told(caller.receive(4.0, m))] == way, "queued again: its worker died"


def test_a_lost_accepted_is_no_matter() -> None:
    caller = Caller()
    caller.submit(0.0, "a", FOX)
    assert told(caller.receive(0.5, Queued("a", "encoder", 3))) == [Queued("a", "encoder", 3)]
    assert sent(caller.tick(2.5)) == [Watch("a")]


def test_hi_is_repeated_until_welcome() -> None:
    caller = Caller(patience=30.0, again=2.0)
    assert sent(caller.hi(0.0)) == [Hi()]
    assert [c for _, c in run(caller, 0.0, 4.5)] == [Send(Hi())] * 2
    assert caller.receive(4.6, welcome(1)) == [Tell("", welcome(1))]
    assert caller.wakeup() is None


def test_fetch_is_repeated_ever_more_slowly_and_silence_waits_for_it() -> None:
    caller = Caller(patience=3.0, again=2.0)
    caller.fetch(0.0, "a")
    happened = run(caller, 0.0, 30.0)
    # At 2 s the picture may still be on its way: neither a flood of Fetches nor a new socket may cut it off.
    assert [t for t, c in happened if c == Send(Fetch("a"))] == [2.0]
    assert [t for t, c in happened if c == Rebuild()] == [6.0, 12.0, 18.0, 24.0, 30.0]
    commands = caller.receive(31.0, Result("a", "00", FOX), b"frame")
    assert commands == [Tell("a", Result("a", "00", FOX), b"frame")]
    assert caller.receive(32.0, Result("a", "00", FOX), b"frame") == []
    caller.receive(32.0, welcome(1))
    assert caller.wakeup() is None


def test_fetch_of_an_unknown_job_ends() -> None:
    caller = Caller()
    caller.fetch(0.0, "a")
    refused = Refused("a", "unknown", "no such job")
    assert caller.receive(0.1, refused) == [Tell("a", refused)]
    assert caller.wakeup() is None


def test_inspect_is_repeated_until_the_right_books() -> None:
    caller = Caller(patience=30.0)
    assert sent(caller.inspect(0.0, 1, "")) == [Inspect(1, "")]
    assert sent(caller.tick(2.0)) == [Inspect(1, "")]
    assert caller.receive(2.1, books("b", page=2)) == []
    assert caller.receive(2.1, books("a", story=True)) == [], "the books of one job are no page"
    assert caller.receive(2.2, books("b", page=1)) == [Tell("", books("b", page=1))]
    caller.inspect(3.0, 0, "a")
    assert caller.receive(3.1, books("a", "b")) == []
    assert caller.receive(3.1, books()) == []
    assert caller.receive(3.2, books("a", story=True)) == [Tell("", books("a", story=True))]
    caller.inspect(4.0, 0, "x")
    assert caller.receive(4.1, Refused("x", "unknown", "")) == [Tell("", Refused("x", "unknown", ""))]
    assert caller.wakeup() is None


def test_a_probe_is_repeated_until_its_own_answer() -> None:
    """While it is under way the mesh says Welcome, which is no answer, but a sign of life."""
    caller, probe = Caller(patience=3.0), Probe(7, "a", "b")
    assert sent(caller.probe(0.0, probe)) == [probe]
    for now in (2.0, 4.0, 6.0):
        assert caller.tick(now) == [Send(probe)]
        assert [c for c in caller.receive(now, welcome(1)) if not isinstance(c, Tell)] == []
    assert caller.receive(6.1, Probed(8)) == [], "of another"
    assert caller.receive(6.2, Probed(7, True)) == [Tell(probed(7), Probed(7, True))]
    assert caller.receive(6.3, Probed(7, True)) == []
    assert caller.wakeup() is None


def test_a_probe_that_nobody_waits_for_is_asked_no_more() -> None:
    caller = Caller()
    caller.probe(0.0, Probe(7, "a", "b"))
    caller.forget(probed(7))
    assert caller.wakeup() is None
    caller.probe(1.0, Probe(8, "a", "b"))
    refused = Refused("", "version", "no")
    assert caller.receive(1.1, refused) == [Tell("", refused), Tell(probed(8), refused)]
    assert caller.wakeup() is None


def test_a_probe_is_asked_of_the_next_coordinator() -> None:
    caller, probe = Caller(), Probe(7, "a", "b")
    caller.receive(0.0, welcome(1))
    caller.probe(0.0, probe)
    assert Send(probe) in caller.receive(0.1, welcome(2))


# ---- cancelling


def test_cancel_is_repeated_until_the_job_has_ended() -> None:
    caller = Caller(patience=30.0, again=2.0)
    accepted(caller, 0.0, "a")
    assert sent(caller.cancel(1.0, "a")) == [Watch("a"), Cancel("a")]
    caller.receive(1.5, Progress("a", "stage_one", 1, 2))
    assert [c for t, c in run(caller, 1.5, 4.0)] == [Send(Watch("a")), Send(Cancel("a"))]
    assert told(caller.receive(4.0, finished("a"))) == [finished("a")], "too late is an ending as well"
    assert caller.wakeup() is None


def test_cancel_of_a_job_that_is_not_accepted_yet_does_not_lose_it() -> None:
    caller = Caller(patience=30.0)
    caller.submit(0.0, "a", FOX)
    assert sent(caller.cancel(0.0, "a")) == [Submit("a", FOX), Cancel("a")]
    assert caller.receive(0.1, Refused("a", "unknown", "")) == [], "the Cancel came first: the Submit is still to be answered"
    assert sent(caller.tick(2.0)) == [Submit("a", FOX), Cancel("a")]


def test_cancel_of_a_strangers_job() -> None:
    caller = Caller()
    assert sent(caller.cancel(0.0, "a")) == [Watch("a"), Cancel("a")]
    assert told(caller.receive(0.1, Refused("a", "unknown", ""))) == [Refused("a", "unknown", "")]
    assert caller.wakeup() is None


# ---- refusals


@pytest.mark.parametrize("reason", ["busy", "conflict", "invalid"])
def test_a_refused_submit_is_told_and_over(reason: str) -> None:
    refused = Refused("a", reason, "", 2.0)  # type: ignore[arg-type]
    caller = Caller()
    caller.submit(0.0, "a", FOX)
    assert caller.receive(0.1, refused) == [Tell("a", refused)]
    assert caller.receive(0.2, refused) == []
    assert caller.wakeup() is None


def test_a_late_busy_does_not_end_an_accepted_job() -> None:
    caller = Caller()
    accepted(caller, 0.0, "a")
    assert caller.receive(0.1, Refused("a", "busy", "")) == []
    assert told(caller.receive(0.2, finished("a"))) == [finished("a")]


def test_a_version_refusal_ends_everything() -> None:
    caller = Caller()
    caller.hi(0.0)
    caller.submit(0.0, "a", FOX)
    caller.fetch(0.0, "b")
    caller.inspect(0.0, 0, "")
    refused = Refused("", "version", "1 and 2")
    assert caller.receive(0.1, refused) == [Tell("", refused), Tell("a", refused), Tell("b", refused)]
    assert caller.wakeup() is None


# ---- silence, and another coordinator


def test_silence_rebuilds_and_probes_with_one_hi() -> None:
    caller = Caller(patience=3.0, again=2.0)
    accepted(caller, 0.0, "a")
    caller.submit(0.0, "b", FOX)
    happened = run(caller, 0.0, 7.0)
    assert happened[0:2] == [(2.0, Send(Watch("a"))), (2.0, Send(Submit("b", FOX)))]
    assert happened[2:4] == [(3.0, Rebuild()), (3.0, Send(Hi()))]
    assert happened[4:] == [(5.0, Send(Hi())), (6.0, Rebuild()), (6.0, Send(Hi()))]
    assert caller.submit(7.0, "c", FOX) == [], "it waits with the others for a sign of life"
    assert sent(caller.receive(8.0, welcome(2))) == [Watch("a"), Submit("b", FOX), Submit("c", FOX)]
    assert sent(caller.receive(8.1, welcome(2))) == []


def test_any_answer_after_a_rebuild_asks_for_everything() -> None:
    caller = Caller(patience=3.0, again=2.0)
    accepted(caller, 0.0, "a")
    caller.fetch(0.0, "b")
    run(caller, 0.0, 20.0)
    commands = caller.receive(20.5, Queued("a", "encoder", 0))
    assert told(commands) == [Queued("a", "encoder", 0)]
    assert sent(commands) == [Watch("a"), Fetch("b")]


def test_another_epoch_watches_all_open_jobs_at_once() -> None:
    caller = Caller()
    caller.hi(0.0)
    caller.receive(0.0, welcome(1))
    jobs = [f"j{i}" for i in range(100)]
    for job in jobs:
        accepted(caller, 0.0, job)
    caller.receive(0.5, finished("j0"))
    assert sent(caller.receive(1.0, welcome(1))) == []
    assert sent(caller.receive(1.0, welcome(2))) == [Watch(job) for job in jobs[1:]]


def test_silence_counts_from_the_first_question() -> None:
    caller = Caller(patience=3.0)
    accepted(caller, 0.0, "a")
    caller.receive(1.0, finished("a"))
    caller.submit(1000.0, "b", FOX)
    assert Rebuild() not in caller.tick(1002.9)
    assert Rebuild() in caller.tick(1003.0)


# ---- forgetting


def test_forget_lets_an_accepted_job_go_on_alone() -> None:
    caller = Caller()
    accepted(caller, 0.0, "a")
    caller.fetch(0.0, "a")
    caller.forget("a")
    assert caller.wakeup() is None
    assert caller.receive(1.0, finished("a")) == []


def test_forget_still_brings_a_submit_through() -> None:
    caller = Caller(patience=30.0)
    caller.submit(0.0, "a", FOX)
    caller.forget("a")
    assert sent(caller.tick(2.0)) == [Submit("a", FOX)]
    caller.receive(2.1, Accepted("a"))
    assert caller.wakeup() is None


def test_a_tied_job_is_watched_to_its_end_though_nobody_waits() -> None:
    """It lives as long as somebody who watches it is heard: the client is, whoever dropped the job."""
    caller = Caller(patience=60.0, again=2.0)
    caller.submit(0.0, "a", TIED)
    caller.receive(0.1, Accepted("a"))
    assert told(caller.receive(0.2, Queued("a", "encoder", 0)))
    caller.forget("a")
    assert {Send(Hi()), Send(Watch("a"))} == {c for _, c in run(caller, 0.2, 50.0)}
    for now, news in ((50.0, Started("a", "stage_one", "w")), (50.1, finished("a"))):
        assert told(caller.receive(now, news)) == [news]
        caller.forget("a")
    assert caller.wakeup() is None


def test_a_tied_job_that_is_forgotten_before_it_is_accepted() -> None:
    caller = Caller(patience=60.0, again=2.0)
    caller.submit(0.0, "a", TIED)
    caller.forget("a")
    caller.receive(0.1, Accepted("a"))
    assert Send(Hi()) in [c for _, c in run(caller, 0.1, 50.0)]
    assert told(caller.receive(50.0, Cancelled("a"))) == [Cancelled("a")]
    assert caller.wakeup() is None


def test_coming_back_to_an_ended_job_tells_its_ending_again() -> None:
    caller = Caller()
    accepted(caller, 0.0, "a")
    caller.receive(1.0, finished("a"))
    assert sent(caller.watch(2.0, "a")) == [Watch("a")]
    assert told(caller.receive(2.1, finished("a"))) == [finished("a")]


# ---- many


def test_a_thousand_silent_jobs_are_spread() -> None:
    caller = Caller(patience=1e9, again=2.0)
    for i in range(1000):
        accepted(caller, 0.0, f"j{i}")
    happened = run(caller, 0.0, 20.0)
    for i in range(20):
        assert sum(i <= t < i + 1 for t, _ in happened) <= 11 * BURST
    times = {c.message.job: t for t, c in happened if isinstance(c, Send) and isinstance(c.message, Watch)}
    assert len(times) == 1000
    assert min(times.values()) > 12.0, "each has its turn, again and again"


def test_the_heap_does_not_grow_with_the_news() -> None:
    caller = Caller(patience=1e9)
    for i in range(1000):
        accepted(caller, 0.0, f"j{i}")
        for step in range(20):
            caller.receive(0.0, Progress(f"j{i}", "stage_one", step, 20))
    assert len(caller._line.heap) == 1000
    for i in range(1000):
        caller.receive(1.0, finished(f"j{i}"))
    caller.submit(2.0, "z", FOX)
    assert len(caller._line.heap) == 1


# ---- uploads


def test_a_wanted_upload_is_pushed_at_once_and_its_job_goes_on_asking() -> None:
    caller = Caller(patience=30.0, again=2.0)
    assert sent(caller.submit(0.0, "a", VARY)) == [Submit("a", VARY)]
    assert caller.needs(SHA)
    assert caller.receive(0.1, Wanted("a", SHA)) == [Upload(SHA)]
    assert [(t, c) for t, c in run(caller, 0.1, 5.0)] == [(2.1, Send(Submit("a", VARY))), (4.1, Send(Submit("a", VARY)))]
    assert told(caller.receive(5.0, Accepted("a"))) == [Accepted("a")]
    assert not caller.needs(SHA)
    assert caller.receive(5.1, Wanted("a", SHA)) == [], "that is answered"


def test_what_the_mesh_keeps_is_nothing_to_push_and_when_it_is_wanted_that_is_the_answer() -> None:
    caller = Caller(patience=30.0, again=2.0)
    assert sent(caller.submit(0.0, "a", VARY, kept=True)) == [Submit("a", VARY)]
    assert not caller.needs(SHA)
    caller.watch(0.1, "a", previews=True)
    assert caller.receive(0.2, Wanted("a", OTHER)) == [], "late, of another request"
    assert caller.receive(0.3, Wanted("a", SHA)) == [Send(Cancel("a")), Tell("a", Wanted("a", SHA))]
    assert caller.receive(0.4, Wanted("a", SHA)) == []
    assert run(caller, 0.4, 60.0) == [], "nothing is asked any more"
    caller.submit(61.0, "b", VARY, kept=True)
    assert told(caller.receive(61.1, Accepted("b"))) == [Accepted("b")]
    assert caller.receive(61.2, Wanted("b", SHA)) == [], "it was there"


def test_the_waits_between_two_pushes_double() -> None:
    caller = Caller(patience=1e9, again=2.0)
    caller.submit(0.0, "a", VARY)
    pushed, now = [], 0.0
    while now < 300.0:  # asked for each second, which is more often than any mesh does
        if uploads(caller.receive(now, Wanted("a", SHA))):
            pushed.append(now)
        now += 1.0
    waits = [b - a for a, b in pairwise(pushed)]
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, SLOW, SLOW, SLOW]


def test_a_second_push_asks_where_to() -> None:
    """The coordinator may have been started again, unnoticed, with another inlet: its Welcome says so."""
    caller = Caller(patience=30.0, again=2.0)
    caller.submit(0.0, "a", VARY)
    assert caller.receive(0.1, Wanted("a", SHA)) == [Upload(SHA)]
    assert caller.receive(2.2, Wanted("a", SHA)) == [Upload(SHA), Send(Hi())]


def test_many_jobs_want_one_upload_and_it_is_pushed_once() -> None:
    caller = Caller(patience=1e9, again=2.0)
    jobs = [f"j{n}" for n in range(50)]
    for job in jobs:
        caller.submit(0.0, job, VARY)
    assert [d for job in jobs for d in uploads(caller.receive(0.5, Wanted(job, SHA)))] == [SHA]
    assert [d for job in jobs for d in uploads(caller.receive(2.5, Wanted(job, SHA)))] == [SHA]
    for job in jobs[1:]:
        caller.receive(3.0, Accepted(job))
        assert caller.needs(SHA)
    caller.receive(3.0, Accepted("j0"))
    assert not caller.needs(SHA)


def test_two_uploads_do_not_wait_for_each_other() -> None:
    caller = Caller()
    caller.submit(0.0, "a", VARY)
    caller.submit(0.0, "b", replace(VARY, upload=OTHER))
    assert caller.receive(0.1, Wanted("a", SHA)) == [Upload(SHA)]
    assert caller.receive(0.1, Wanted("b", OTHER)) == [Upload(OTHER)]
    caller.receive(0.2, Accepted("b"))
    assert (caller.needs(SHA), caller.needs(OTHER)) == (True, False)


def test_nothing_is_pushed_that_was_not_brought() -> None:
    caller = Caller()
    caller.submit(0.0, "a", VARY)
    caller.submit(0.0, "b", FOX)
    accepted(caller, 0.0, "c")
    for wanted in (Wanted("a", OTHER), Wanted("b", SHA), Wanted("b", ""), Wanted("c", SHA), Wanted("nobody", SHA)):
        assert caller.receive(0.1, wanted) == []
    assert not caller.needs("")


@pytest.mark.parametrize(
    "answer",
    [
        Accepted("a"),
        Queued("a", "stage_one", 0),
        Progress("a", "stage_one", 1, 2),
        finished("a"),
        Cancelled("a"),
        Refused("a", "busy", "", 2.0),
        Refused("a", "invalid", "", field="brings"),
        Refused("", "version", ""),
    ],
    ids=lambda m: type(m).__name__,
)
def test_whatever_answers_the_submit_ends_the_need_for_its_upload(answer: ToClient) -> None:
    caller = Caller()
    caller.submit(0.0, "a", VARY)
    caller.receive(0.1, Wanted("a", SHA))
    caller.receive(0.2, answer)
    assert not caller.needs(SHA)
    caller.submit(0.3, "b", VARY)
    assert caller.receive(0.4, Wanted("b", SHA)) == [Upload(SHA)], "forgotten, the wait with it"


def test_neither_wanted_nor_a_preview_is_an_answer_to_the_submit() -> None:
    caller = Caller(patience=30.0, again=2.0)
    caller.submit(0.0, "a", VARY)
    caller.receive(1.0, Wanted("a", SHA))
    caller.receive(1.0, Preview("a", "stage_one"), b"png")
    assert sent(caller.tick(3.0)) == [Submit("a", VARY)]
    assert caller.needs(SHA)


def test_forgotten_or_cancelled_it_still_brings_its_upload() -> None:
    caller = Caller()
    caller.submit(0.0, "a", VARY)
    assert sent(caller.cancel(0.0, "a")) == [Submit("a", VARY), Cancel("a")]
    caller.forget("a")
    assert caller.receive(0.1, Wanted("a", SHA)) == [Upload(SHA)]
    caller.receive(0.2, Cancelled("a"))
    assert caller.wakeup() is None
    assert not caller.needs(SHA)


def test_asking_for_the_same_again_does_not_hurry_its_upload() -> None:
    caller = Caller()
    caller.submit(0.0, "a", VARY)
    assert uploads(caller.receive(0.1, Wanted("a", SHA))) == [SHA]
    caller.watch(0.2, "a")
    caller.cancel(0.2, "a")
    caller.submit(0.2, "a", replace(VARY, prompt="an elk"))
    assert uploads(caller.receive(0.3, Wanted("a", SHA))) == []
    caller.submit(0.4, "a", replace(VARY, upload=OTHER))
    assert uploads(caller.receive(0.5, Wanted("a", OTHER))) == [OTHER]
    assert not caller.needs(SHA)


def test_a_new_coordinator_gets_the_upload_at_once() -> None:
    caller = Caller()
    caller.hi(0.0)
    caller.receive(0.0, welcome(1))
    caller.submit(0.0, "a", VARY)
    assert uploads(caller.receive(0.1, Wanted("a", SHA))) == [SHA]
    caller.receive(0.2, welcome(1))
    assert uploads(caller.receive(0.3, Wanted("a", SHA))) == [], "the same coordinator: it is on its way"
    assert sent(caller.receive(0.4, welcome(2))) == [Submit("a", VARY)]
    assert uploads(caller.receive(0.5, Wanted("a", SHA))) == [SHA]
    assert uploads(caller.receive(0.6, Wanted("a", SHA))) == []


def test_after_a_rebuild_the_upload_is_pushed_at_once() -> None:
    caller = Caller(patience=3.0, again=2.0)
    caller.submit(0.0, "a", VARY)
    for now in (0.1, 2.2, 6.3):  # 8 s to the next
        assert uploads(caller.receive(now, Wanted("a", SHA))) == [SHA]
    assert Rebuild() in caller.tick(9.4)
    again = caller.receive(9.5, Wanted("a", SHA))
    assert again == [Upload(SHA), Send(Submit("a", VARY))], "the first sign of life, and everything is asked again"
    assert uploads(caller.receive(9.6, Wanted("a", SHA))) == [], "which pushes it once"
    assert uploads(caller.receive(11.5, Wanted("a", SHA))) == [SHA], "and the waits begin anew"


# ---- early pictures


def test_previews_are_asked_for_and_stay_asked_for() -> None:
    caller = Caller(patience=30.0, again=2.0)
    assert sent(caller.submit(0.0, "a", FOX, previews=True)) == [Submit("a", FOX, True)]
    assert sent(caller.tick(2.0)) == [Submit("a", FOX, True)]
    caller.receive(2.0, Accepted("a"))
    assert sent(caller.tick(4.0)) == [Watch("a", True)]
    assert sent(caller.watch(4.0, "a")) == [Watch("a", True)], "another wish for the same job takes nothing away"
    assert sent(caller.cancel(4.0, "a")) == [Watch("a", True), Cancel("a")]


def test_previews_may_be_asked_for_later() -> None:
    caller = Caller(patience=30.0, again=2.0)
    caller.submit(0.0, "a", FOX)
    assert sent(caller.watch(1.0, "a", previews=True)) == [Submit("a", FOX, True)]
    assert sent(caller.watch(1.0, "b")) == [Watch("b", False)]
    assert sent(caller.watch(1.0, "b", previews=True)) == [Watch("b", True)]
    assert sent(caller.submit(1.0, "c", FOX)) == [Submit("c", FOX, False)]


def test_a_new_coordinator_is_asked_for_previews_as_well() -> None:
    caller = Caller(patience=3.0, again=2.0)
    caller.submit(0.0, "a", FOX, previews=True)
    caller.receive(0.0, Accepted("a"))
    run(caller, 0.0, 3.0)
    assert sent(caller.receive(3.5, welcome(2))) == [Watch("a", True)]


def test_a_preview_is_told_once_for_each_stage() -> None:
    caller = Caller()
    accepted(caller, 0.0, "a")
    one, two = Preview("a", "stage_one"), Preview("a", "stage_two")
    assert caller.receive(1.0, one, b"64") == [Tell("a", one, b"64")]
    assert caller.receive(1.0, one, b"64") == []
    assert caller.receive(1.1, two, b"256") == [Tell("a", two, b"256")]
    assert told(caller.receive(1.2, Started("a", "stage_two", "w"))) == [Started("a", "stage_two", "w")]
    assert caller.receive(1.3, one, b"64") == [], "news do not make it new"
    caller.watch(2.0, "a", previews=True)
    assert caller.receive(2.1, one, b"64") == [Tell("a", one, b"64")], "somebody came back, and saw none yet"
    caller.receive(3.0, finished("a"))
    assert caller.receive(3.1, two, b"256") == [], "late"


def test_a_preview_takes_nothing_back_of_what_was_told() -> None:
    caller = Caller()
    accepted(caller, 0.0, "a")
    started, step = Started("a", "stage_two", "w"), Progress("a", "stage_two", 1, 2)
    for message in (started, step):
        assert told(caller.receive(1.0, message)) == [message]
    caller.receive(1.1, Preview("a", "stage_one"), b"64")
    for message in (started, step):
        assert told(caller.receive(1.2, message)) == []


def test_a_preview_puts_no_watch_off_but_it_is_a_sign_of_life() -> None:
    caller = Caller(patience=3.0, again=2.0)
    accepted(caller, 0.0, "a")
    caller.receive(1.9, Preview("a", "stage_one"), b"64")
    assert caller.tick(2.0) == [Send(Watch("a"))]
    assert Rebuild() not in caller.tick(4.8)
    assert Rebuild() in caller.tick(4.9)


# ---- staying alive


def test_a_hi_every_ten_seconds_while_a_job_is_open() -> None:
    caller = Caller(patience=1e9, again=2.0)
    accepted(caller, 100.0, "a")
    his, now = [], 100.0
    while now < 145.0:
        now += 1.0
        caller.receive(now, Progress("a", "stage_one", int(now), 200))
        his += [now for c in caller.tick(now) if c == Send(Hi())]
        assert later(caller, now)
    assert his == [110.0, 120.0, 130.0, 140.0]
    caller.receive(145.0, finished("a"))
    assert caller.wakeup() is None, "nothing is open: nothing to say"
    accepted(caller, 1000.0, "b")
    assert caller.wakeup() == 1002.0
    assert [t for t, c in run(caller, 1000.0, 1030.0) if c == Send(Hi())] == [1010.0, 1020.0, 1030.0]
    patient = Caller(patience=1e9, again=1e6)
    accepted(patient, 0.0, "a")
    assert [t for t, c in run(patient, 0.0, 35.0) if c == Send(Hi())] == [10.0, 20.0, 30.0], "whatever else is due, or not"


def test_neither_a_fetch_nor_the_books_keep_a_client_alive() -> None:
    caller = Caller(patience=1e9, again=2.0)
    caller.fetch(0.0, "a")
    caller.inspect(0.0, 0, "")
    assert [c for _, c in run(caller, 0.0, 60.0) if c == Send(Hi())] == []


def test_the_welcome_that_answers_does_no_harm() -> None:
    caller = Caller(patience=30.0, again=2.0)
    caller.hi(0.0)
    caller.receive(0.0, welcome(1))
    for n in range(100):
        accepted(caller, 0.0, f"j{n}")
    answered, now = 0, 0.0
    while now < 60.0:
        wakeup = caller.wakeup()
        assert wakeup is not None
        assert wakeup > now
        now = wakeup
        commands = caller.tick(now)
        assert len(commands) <= BURST + 1
        for message in sent(commands):
            if message == Hi():
                answered += 1
                assert caller.receive(now, welcome(1)) == [Tell("", welcome(1))]
            elif isinstance(message, Watch):
                caller.receive(now, Accepted(message.job))
    assert answered == 60.0 / KEEPALIVE


def test_a_probing_client_says_no_more_hi_than_before() -> None:
    caller = Caller(patience=3.0, again=2.0)
    accepted(caller, 0.0, "a")
    happened = [(t, c) for t, c in run(caller, 0.0, 31.0) if c == Send(Hi())]
    assert [t for t, _ in happened] == [n for n in range(3, 31) if n % 3 != 1]


# ---- the shell never spins


@pytest.mark.parametrize("seed", range(100))
def test_after_tick_there_is_nothing_to_do_now(seed: int) -> None:
    """Whatever was asked and heard, at clocks as they are: long up, and in fractions that round."""
    dice = random.Random(seed)
    now = dice.choice([0.0, 1e5, 3e7]) + dice.random()
    caller = Caller(patience=dice.choice([0.1, 3.0]), again=dice.choice([0.05, 2.0, 30.0]))
    for _ in range(400):
        job = f"j{dice.randrange(40)}"
        digest = dice.choice([SHA, OTHER])
        match dice.randrange(14):
            case 0 | 1 | 2:
                caller.submit(now, job, replace(VARY, upload=digest), dice.random() < 0.5)
            case 3:
                caller.watch(now, job, dice.random() < 0.5)
            case 4:
                caller.cancel(now, job)
            case 5:
                caller.fetch(now, job)
            case 6:
                caller.hi(now)
            case 7:
                caller.forget(job)
            case 8:
                caller.receive(now, welcome(dice.randrange(1, 3)))
            case 9 | 10:
                caller.receive(now, Wanted(job, digest))
            case 11:
                caller.receive(now, Preview(job, dice.choice(STAGES)), b"png")
            case 12:
                answers: list[ToClient] = [Accepted(job), finished(job), Queued(job, "encoder", 1)]
                caller.receive(now, dice.choice(answers))
            case _:
                caller.receive(now, Result(job, "00", FOX), b"frame")
        caller.tick(now)
        assert later(caller, now)
        if (wakeup := caller.wakeup()) is not None and dice.random() < 0.7:
            now = wakeup
            caller.tick(now)
            assert later(caller, now)
        now += dice.choice([0.0, 0.0, dice.random() * 3, 20.0])
    assert caller._luggage._pieces.keys() == {w.request.upload for w in caller._jobs.values() if w.request and w.request.upload}


# ---- a small world: the other side loses, doubles and forgets


class Coordinator:
    """As little of one as a client can see.  Its jobs end after a few watches; a restart gives it another epoch and no watchers.

    uploads: those on disk.  It takes nothing without what the request brings.
    """

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.epoch, self.left, self.uploads = dice, 1, dict[str, int](), set[str]()

    def answer(self, message: ClientMessage) -> list[ToClient]:
        match message:
            case Hi():
                return [welcome(self.epoch)]
            case Submit(job, request) if job not in self.left and request.upload and request.upload not in self.uploads:
                return [Wanted(job, request.upload)]
            case Submit(job):
                if job not in self.left:
                    self.left[job] = self.dice.randrange(4)
                return [Accepted(job), Queued(job, "encoder", 0)]
            case Watch(job) if job in self.left:
                self.left[job] -= 1
                if self.left[job] < 0:
                    return [finished(job)]
                return [Accepted(job), *([Preview(job, "stage_one")] if message.previews else []), Started(job, "stage_one", "w")]
            case Cancel(job) if job in self.left:
                self.left[job] = -1
                return [Cancelled(job) if self.dice.random() < 0.5 else finished(job)]
            case Fetch(job):
                return [Result(job, "00", FOX)]
            case _:
                return [Refused(message.job, "unknown", "")] if isinstance(message, Watch | Cancel) else [books()]


def weather(seed: int) -> tuple[Callable[[float], bool], random.Random]:
    """Is the link up at this time?  Down in stretches for the first 60 s, always up after."""
    dice = random.Random(seed)
    holes = [(start, start + dice.uniform(1, 15)) for start in (dice.uniform(0, 60) for _ in range(3))]
    return lambda now: not any(a <= now < b for a, b in holes), dice


@pytest.mark.parametrize("seed", range(60))
def test_every_job_ends_exactly_once_in_any_weather(seed: int) -> None:
    up, dice = weather(seed)
    other, caller, now = Coordinator(dice), Caller(), 0.0
    jobs = [f"j{i}" for i in range(30)]
    endings: dict[str, int] = dict.fromkeys(jobs, 0)
    fetched: set[str] = set()
    requests = {job: dice.choice([FOX, VARY, replace(VARY, upload=OTHER)]) for job in jobs}
    pushed: list[str] = []
    shown: list[str] = []
    waiting = [(dice.uniform(0, 50), job) for job in jobs]
    waiting.sort(reverse=True)
    commands = caller.hi(now)
    mail: deque[tuple[float, ToClient]] = deque()  # late, but in order: what TCP does
    while now < 400.0:
        todo = deque(commands)
        while todo:
            command = todo.popleft()
            match command:
                case Send(message) if up(now) and dice.random() < 0.8:
                    for reply in other.answer(message):
                        late = max(now + dice.uniform(0.001, 1.0), mail[-1][0] if mail else 0.0)
                        mail.extend([(late, reply)] * dice.choice([0, 1, 1, 1, 2]))
                case Rebuild():
                    mail.clear()
                case Upload(digest):
                    pushed.append(digest)
                    if up(now) and dice.random() < 0.8:
                        other.uploads.add(digest)
                case Tell(job, Preview()):
                    shown.append(job)
                case Tell(job, Finished() | Cancelled()):
                    endings[job] += 1
                    todo.extend(caller.fetch(now, job))
                case Tell(job, Result()):
                    fetched.add(job)
        commands = []
        if all(endings.values()) and fetched == set(jobs):
            break
        times = [t for t in (caller.wakeup(), mail[0][0] if mail else None, waiting[-1][0] if waiting else None) if t is not None]
        assert times, "open jobs, and nothing left to do"
        now = max(now, min(times))
        if waiting and waiting[-1][0] <= now:
            commands += caller.submit(now, waiting[-1][1], requests[waiting[-1][1]], dice.random() < 0.5)
            if dice.random() < 0.2:
                commands += caller.cancel(now, waiting[-1][1])
            waiting.pop()
        elif mail and mail[0][0] <= now:
            commands += caller.receive(now, mail.popleft()[1], b"")
        else:
            commands += caller.tick(now)
        if dice.random() < 0.01:
            other.epoch += 1
            if dice.random() < 0.5:
                other.uploads.clear()  # nobody referred to them
    assert set(endings.values()) == {1}
    assert fetched == set(jobs)
    assert len(pushed) < 60, "a few for each coordinator and each new socket, not one for each job"
    assert not caller.needs(SHA)
    assert not caller.needs(OTHER)
    assert shown
