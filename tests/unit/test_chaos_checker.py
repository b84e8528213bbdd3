"""Histories in which something is wrong: the checker says what.  First one in which nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ifmesh import cli
from ifmesh.chaos import history
from ifmesh.chaos.checker import RIGHT, Verdict, check
from ifmesh.chaos.history import SEEN, WORK, History, Record

PICTURES = {"stage_one": "aa", "stage_two": "bb"}


def planned(job: str, fate: str = "fine", deadline: float | None = None, whole: bool = True, **more: Any) -> Record:
    told = {"fate": fate, "deadline": deadline, "whole": whole, "pictures": PICTURES, "stage": "stage_one"}
    return {"t": 0.0, "by": "client-0", "what": "planned", "job": job, **told, **more}


def said(t: float, what: str, job: str, **more: Any) -> Record:
    return {"t": t, "by": "client-0", "what": what, "job": job, **more}


def drawn(job: str) -> list[Record]:
    """All that a client sees of a job that goes well."""
    return [
        planned(job),
        said(1.0, "invoked", job),
        said(1.1, "accepted", job),
        said(1.2, "previewed", job, stage="stage_one", picture="aa"),
        said(2.0, "ended", job, how="finished", digest="d"),
        said(2.1, "fetched", job, pictures=PICTURES),
        said(9.0, "ended", job, how="finished", digest="d"),  # looked at again
        said(9.1, "fetched", job, pictures=PICTURES),
    ]


def failing(job: str, fate: str, cause: str) -> list[Record]:
    return [planned(job, fate), said(1.0, "invoked", job), said(2.0, "ended", job, how="failed", cause=cause, error="why")]


def poisoned(t: float, parent: int) -> Record:
    return said(t, "poisoned", "p", pid=parent + 1, parent=parent)


def whole() -> list[Record]:
    """A history in which all is right, of every kind."""
    return [
        {"t": 0.0, "by": "chaos", "what": "began", "requests": 7},
        *drawn("a"),
        *drawn("b"),
        planned("c", whole=False),
        said(1.0, "invoked", "c"),
        said(2.0, "ended", "c", how="finished", digest="e"),
        said(2.0, "fetched", "c", pictures={"stage_two": "bb"}),
        *failing("p", "poison", "poison"),
        *[poisoned(1.5, parent) for parent in (100, 200, 300, 400)],
        *failing("r", "raise", "error"),
        planned("e", "deadline", 3.0),
        said(1.0, "invoked", "e"),
        said(4.0, "ended", "e", how="failed", cause="expired", error=""),
        planned("x", "cancel"),
        said(1.0, "invoked", "x"),
        said(1.5, "thought better", "x"),
        said(2.0, "ended", "x", how="cancelled"),
        {"t": 1.0, "by": "chaos", "what": "killed worker", "name": "guard-0", "pids": [600, 500]},
        {"t": 1.0, "by": "chaos", "what": "fell", "name": "guard-0", "why": "SIGABRT"},
    ]


def without(history: list[Record], job: str, what: str) -> list[Record]:
    return [r for r in history if (r.get("job"), r["what"]) != (job, what)]


def test_a_history_in_which_all_is_right() -> None:
    verdict = check(whole())
    assert verdict.right, verdict.faults
    assert verdict.faults == ()
    figures = {"requests": 7, "accepted": 7, "finished": 3, "failed": 3, "cancelled": 1, "worker_kills": 1, "poison_kills_max": 4}
    assert figures.items() <= verdict.figures.items()


def test_records_may_come_in_any_order() -> None:
    assert check(whole()[::-1]) == check(whole())


WRONG: dict[str, tuple[str, Callable[[list[Record]], list[Record]]]] = {
    "a result was dropped": ("lost", lambda h: without(without(h, "a", "ended"), "a", "fetched")),
    "a request was never answered": ("lost", lambda h: without(without(without(h, "a", "ended"), "a", "fetched"), "a", "accepted")),
    "a finished result cannot be fetched": ("lost", lambda h: without(h, "a", "fetched")),
    "an accepted job is forgotten": ("lost", lambda h: [*h, said(9.0, "refused", "a", error="no such job")]),
    "a job ended twice, in two ways": ("twice", lambda h: [*h, said(3.0, "ended", "a", how="failed", cause="error", error="")]),
    "two results of one job": ("twice", lambda h: [*h, said(3.0, "ended", "a", how="finished", digest="other")]),
    "the second look shows other pixels": ("twice", lambda h: [*h, said(9.0, "fetched", "a", pictures={**PICTURES, "stage_two": "cc"})]),
    "another's pixels": (
        "different",
        lambda h: [{**r, "pictures": {**PICTURES, "stage_two": "cc"}} if r["what"] == "fetched" and r["job"] == "a" else r for r in h],
    ),
    "a picture is missing": (
        "different",
        lambda h: [{**r, "pictures": {"stage_two": "bb"}} if r["what"] == "fetched" and r["job"] == "a" else r for r in h],
    ),
    "another's last picture": (
        "different",
        lambda h: [{**r, "pictures": {"stage_two": "cc"}} if r["what"] == "fetched" and r["job"] == "c" else r for r in h],
    ),
    "nobody knows what it must give": (
        "different",
        lambda h: [{**r, "pictures": {}} if r["what"] == "planned" and r["job"] == "a" else r for r in h],
    ),
    "another's preview": ("different", lambda h: [*h, said(1.3, "previewed", "a", stage="stage_one", picture="zz")]),
    "an innocent failed": ("innocents_failed", lambda h: [*h, *failing("a", "fine", "poison")]),
    "cancelled, and nobody asked": ("innocents_failed", lambda h: without(h, "x", "thought better")),
    "expired without a deadline": (
        "innocents_failed",
        lambda h: [{**r, "deadline": None} if r["what"] == "planned" and r["job"] == "e" else r for r in h],
    ),
    "expired too early": ("innocents_failed", lambda h: [*h, said(3.0, "ended", "e", how="failed", cause="expired", error="")]),
    "poison finished": ("misjudged", lambda h: [*without(h, "p", "ended"), said(3.0, "ended", "p", how="finished", digest="d")]),
    "a stage's error is called the request's": ("misjudged", lambda h: [*without(h, "r", "ended"), *failing("r", "raise", "request")]),
    "the coordinator ended of itself": (
        "fell",
        lambda h: [*h, {"t": 1.0, "by": "chaos", "what": "fell", "name": "coordinator", "why": "exit 1"}],
    ),
    "not all was asked": ("unasked", lambda h: [{**r, "requests": 9} if r["what"] == "began" else r for r in h]),
    "a line is torn": ("torn", lambda h: [*h, {"t": 0.0, "by": "", "what": "torn"}]),
    "poison killed five": ("poison", lambda h: [*h, poisoned(1.6, 500)]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_found(fault: str) -> None:
    kind, broken = WRONG[fault]
    verdict = check(broken(whole()))
    assert not verdict.right
    assert any(words.startswith(f"{kind}: ") for words in verdict.faults), verdict.faults
    if kind in RIGHT:
        assert verdict.figures[kind] > 0


def test_nothing_proves_nothing() -> None:
    assert not check([]).right


def test_every_figure_that_must_be_nothing_can_be_something() -> None:
    assert {kind for kind, _ in WRONG.values()} == {*RIGHT, "poison"}


def written(folder: Path, records: list[Record]) -> None:
    (folder / SEEN).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_command_checks_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, whole())
    assert cli.run(["chaos", "check", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["right"], told["requests"], told["lost"]) == (True, 7, 0)
    written(tmp_path, without(without(whole(), "a", "ended"), "a", "fetched"))
    assert cli.run(["chaos", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "lost: a: accepted, and never ended" in said
    assert "NOT right" in said


def test_no_history_is_an_error_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["chaos", "check", str(tmp_path)]) == 1
    assert "not the history of a run" in capsys.readouterr().err


def test_lines_are_whole_whoever_writes_them(tmp_path: Path) -> None:
    one, other = History(tmp_path / SEEN, "one"), History(tmp_path / SEEN, "other")
    for number in range(100):
        one.say("planned", job="a", number=number)
        other.say("invoked", job="b", text="x" * 2000)
    stage = History(tmp_path / WORK, "guard")
    stage.say("stepped", job="a")
    for each in (one, other, stage):
        each.close()
    found = list(history.read(tmp_path))
    assert len(found) == 201
    assert {record["what"] for record in found} == {"planned", "invoked", "stepped"}


def test_a_line_that_was_cut_is_counted(tmp_path: Path) -> None:
    (tmp_path / SEEN).write_bytes(b'{"t":1,"by":"a","what":"calm"}\n{"t":1,"by":"a","wh')
    assert [record["what"] for record in history.read(tmp_path)] == ["calm", "torn"]


def test_a_verdict_without_requests_is_not_right() -> None:
    assert not Verdict({"requests": 0, "poison_kills_max": 0, **dict.fromkeys(RIGHT, 0)}, ()).right


@pytest.mark.parametrize("pid", [500, 501])
def test_a_death_of_which_nobody_could_know_is_told_apart(pid: int) -> None:
    """Its only witness was killed before it was heard, or it was chaos itself that struck."""
    struck = {"t": 1.65, "by": "chaos", "what": "killed worker", "name": "guard-0", "how": "parent", "pids": [pid]}
    verdict = check([struck, *whole(), poisoned(1.6, 500)])
    assert verdict.right, verdict.faults
    assert (verdict.figures["poison_kills_max"], verdict.figures["poison_unwitnessed"]) == (4, 1)
    assert not check([{**struck, "t": 1.5}, *whole(), poisoned(1.6, 500)]).right
