"""`ifmesh journal check` and `restore` on real damage: flipped bytes, torn pages, lost and false results."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ifmesh import exits, schema
from ifmesh.audit import audit
from ifmesh.cli import run
from ifmesh.commands import Blame, Book, Close, Hold
from ifmesh.errors import Misconfigured
from ifmesh.journal import Journal
from ifmesh.protocol import Cancelled, Finished, StageRun
from ifmesh.request import Request
from ifmesh.salvage import restore

RUN = StageRun("encoder", "encoder-0", 7, "cpu", 0.1, 0.2, 1, 0, 1000, 1)
JOBS = 300
PAGE = 4096


def fox(number: int) -> Request:
    return Request(f"a fox, number {number}", number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs of which two in three have ended, each with a result; one is held, some are blamed."""
    state = tmp_path_factory.mktemp("journal") / "state"
    with closing(Journal.open(state, "lazy")) as it:
        it.commit([Book(f"j{n}", fox(n), "alice") for n in range(JOBS)])
        for n in range(JOBS):
            if n % 3:
                digest, size = it.store(f"j{n}", bytes(n))
                it.commit([Close(f"j{n}", Finished(f"j{n}", digest, size, n, True, (RUN,)), ((0.0, "accepted"),), (RUN,))])
        it.commit([Hold("a" * 64, ("embeds",), 1e6), Blame("j0", 2, "SIGSEGV")])
        it.sync()
    return state


@pytest.fixture
def state(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def alone(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(state.parent)
    monkeypatch.setenv("IFMESH_STATE", str(state))


def checked(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(["journal", "check", "--json"])
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, said


def pages_of(path: Path, table: str) -> list[int]:
    """The leaves of a table's tree, by number from 0: they begin with 0x0d and lie where its root points to."""
    data = path.read_bytes()
    with closing(sqlite3.connect(path)) as database:
        root = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0] - 1
    at = root * PAGE
    assert data[at] == 5, "an inner page"
    cells = int.from_bytes(data[at + 3 : at + 5])
    starts = [int.from_bytes(data[at + 12 + 2 * n : at + 14 + 2 * n]) for n in range(cells)]
    return [int.from_bytes(data[at + s : at + s + 4]) - 1 for s in starts]


def write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def flip(path: Path, text: bytes) -> None:
    """One bit, where this text lies."""
    data = path.read_bytes()
    at = data.index(text)
    write(path, at, bytes([data[at] ^ 1]))


def test_a_sound_journal_is_told_to_be_and_is_not_touched(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in state.iterdir() if path.is_file()}
    code, said = checked(capsys)
    assert code == exits.OK
    assert said["sound"] is True
    assert (said["schema"], said["epoch"], said["open"], said["ended"], said["finished"]) == (schema.SCHEMA, 1, 100, 200, 200)
    assert said["results_bytes"] == sum(n for n in range(JOBS) if n % 3)
    assert said["orphans"] == said["damages"] == []
    assert {path.name: path.read_bytes() for path in state.iterdir() if path.is_file()} == before
    assert run(["journal", "check"]) == 0
    assert "sound" in capsys.readouterr().out


def test_it_works_while_a_coordinator_has_it(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(Journal.open(state)) as it:
        it.commit([Book("new", fox(1))])
        it.store("new", b"early")
        code, said = checked(capsys)
        assert (code, said["open"], said["epoch"]) == (0, 101, 2)
        assert said["log_bytes"] > 0
        it.commit([Book("newer", fox(1))])


def test_results_are_compared_with_what_was_published(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = state / "results"
    (results / "j1.safetensors").unlink()
    (results / "j4.safetensors").write_bytes(b"too short")
    write(results / "j100.safetensors", 50, b"\1")
    (results / "nobody.safetensors").write_bytes(b"x")
    (results / "j3.safetensors").write_bytes(b"of an open job")
    code, said = checked(capsys)
    assert code == exits.FAILURE
    assert said["damages"] == [
        "j1: its result is missing",
        "j4: its result has 9 bytes instead of 4",
        "j100: its result holds other bytes than were published",
    ]
    assert said["orphans"] == ["nobody"]
    assert run(["journal", "check"]) == exits.FAILURE
    said_plain = capsys.readouterr().out
    assert "damages (3):" in said_plain
    assert "nobody" in said_plain


def test_row_15_a_flipped_bit_within_a_record_is_seen(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(state / "journal.db", b"a fox, number 123")  # of an open job: it would be another picture
    code, said = checked(capsys)
    assert code == exits.FAILURE
    assert said["damages"] == ["j123: its request cannot be read: its checksum is wrong"]
    with closing(Journal.open(state)) as it, pytest.raises(Misconfigured, match=r"`ifmesh journal check` .*`ifmesh journal restore`"):
        it.recover()
    assert run(["journal", "restore"]) == 0
    assert "j123: its request: its checksum is wrong" in capsys.readouterr().out
    with closing(Journal.open(state)) as it:
        booked, closed = it.recover()
        assert [b.job for b in booked] == [f"j{n}" for n in range(0, JOBS, 3) if n != 123]
        assert len(closed) == 200


@pytest.mark.parametrize("table", ["requests", "endings"])
def test_row_15_a_torn_page_is_refused_named_and_the_rest_saved(state: Path, table: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = state / "journal.db"
    leaf = pages_of(path, table)[3]
    write(path, leaf * PAGE, b"\xa5" * 200)
    with pytest.raises(Misconfigured, match=r"`ifmesh journal check` .*`ifmesh journal restore`"):
        Journal.open(state)
    code, said = checked(capsys)
    assert code == exits.FAILURE
    assert said["damages"]
    damaged = path.read_bytes()
    it = restore(state)
    assert Path(it.kept).read_bytes() == damaged
    lost = [line for line in it.lost if line.startswith(f"{table}: row ")]
    assert 1 <= len(lost) < 60, "one page of rows"
    assert all("(j" in line for line in lost), "whose they were, the index knows"
    with closing(Journal.open(state)) as journal:
        booked, closed = journal.recover()
        assert journal.epoch == 2
        named = {line.partition("(")[2].partition(")")[0] for line in lost}
        if table == "endings":
            assert {b.job for b in booked} == {f"j{n}" for n in range(0, JOBS, 3)} | named, "they run again"
            assert len(closed) == 200 - len(named)
        else:
            assert {b.job for b in booked} | {c.job for c in closed} == {f"j{n}" for n in range(JOBS)} - named
        assert all(b.owner == "alice" for b in booked)
        assert {b.blame for b in booked if b.job == "j0"} <= {2}
        assert [hold.digest for hold in journal.held()] == ["a" * 64]
    assert checked(capsys)[1]["damages"] == []


def test_what_is_no_database_at_all_gives_an_empty_one_with_an_epoch_beyond_all_others(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (state / "journal.db").write_bytes(b"not a database at all" * 1000)
    code, said = checked(capsys)
    assert code == exits.FAILURE
    assert said["damages"] == ["the database: file is not a database"]
    it = restore(state)
    assert it.lost[-1] == "all of it: file is not a database"
    with closing(Journal.open(state)) as journal:
        assert journal.recover() == ([], [])
        assert journal.epoch > 1_000_000_000


def test_bytes_at_random_never_do_more_than_lose_rows(state: Path) -> None:
    """Whatever is written over it: check names a damage or all is as it was, and what restore makes can be opened."""
    path, random_ = state / "journal.db", random.Random(5)
    sound = path.read_bytes()
    for _ in range(25):
        path.write_bytes(sound)
        for _ in range(random_.randint(1, 4)):
            write(path, random_.randrange(len(sound) - 64), random_.randbytes(random_.choice((1, 8, 64))))
        found = audit(state)
        it = restore(state)
        with closing(Journal.open(state)) as journal:
            booked, closed = journal.recover()
        assert all(b.request == fox(int(b.job[1:])) for b in booked if b.job[1:].isdecimal())
        if found.sound:
            assert (it.lost, len(booked), len(closed)) == ([], 100, 200)
        for kept in state.glob("journal.db*"):
            kept.unlink()


def test_restore_keeps_away_from_a_running_coordinator_and_from_nothing(state: Path, tmp_path: Path) -> None:
    with closing(Journal.open(state)), pytest.raises(Misconfigured, match="a coordinator runs here already"):
        restore(state)
    assert list(state.glob("*damaged*")) == []
    assert run(["journal", "restore"]) == 0, "a sound one comes out as it was"
    assert len(list(state.glob("journal.db.damaged-*"))) == 1
    for command in ("check", "restore"):
        assert run(["journal", command, "--state", str(tmp_path / "none")]) == exits.CONFIGURATION


def test_the_log_of_a_dead_coordinator_is_read_as_well_and_never_stays_beside_the_fresh_one(state: Path) -> None:
    journal = Journal.open(state)
    journal.commit([Book("late", fox(1)), Close("late", Cancelled("late"), (), ())])
    shutil.copytree(state, state.parent / "dead")  # as a SIGKILL leaves it
    journal.close()
    dead = state.parent / "dead"
    assert (dead / "journal.db-wal").stat().st_size > 0
    assert audit(dead).ended == 201
    it = restore(dead)
    assert it.lost == []
    assert not (dead / "journal.db-wal").exists() or (dead / "journal.db-wal").stat().st_size == 0
    with closing(Journal.open(dead)) as again:
        assert again.ending("late") is not None
