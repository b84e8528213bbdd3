"""Whom the coordinator lets in: its table, changed by hand and by commands while it runs, and the mesh's own keys."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ifmesh import authorized, identity
from ifmesh.authorized import Authorized, add, expire, prepare, remove, rotate
from ifmesh.errors import Misconfigured
from ifmesh.identity import generate
from ifmesh.request import STAGES
from ifmesh.table import Entry, Table, written

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
A, B, C = (generate().public for _ in range(3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "authorized"


def entries(path: Path) -> tuple[Entry, ...]:
    return Table(path.read_bytes()).entries


# ---- its text


def test_the_lines_of_a_table() -> None:
    text = f"""
# who
anna client {A}
   bert\tworker:stage_one  {B}   2027-01-15T08:00:00Z   # until spring
carl operator {C} # the boss
""".encode()
    assert Table(text).entries == (
        Entry("anna", "client", A),
        Entry("bert", "worker:stage_one", B, NOW),
        Entry("carl", "operator", C),
    )
    assert Table(text.replace(b"\n", b"\r\n")).entries == Table(text).entries
    assert Table(b"").entries == Table(b"\n\n").entries == ()


@pytest.mark.parametrize(
    ("said", "wall"),
    [
        ("2027-01-15T08:00:00Z", NOW),
        ("2027-01-15T08:00:00", NOW),
        ("2027-01-15T10:30:00+02:30", NOW),
        ("2027-01-15", NOW - 8 * 3600),
        ("2027-01-15T08:00:00.250Z", NOW + 0.25),
    ],
)
def test_times_are_utc(said: str, wall: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for zone in ("UTC", "America/New_York", "Asia/Kathmandu"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            assert Table(f"anna client {A} {said}".encode()).entries[0].until == wall
            assert Table(f"anna client {A} {written(wall)}".encode()).entries[0].until == wall
        finally:
            monkeypatch.delenv("TZ")
            time.tzset()


SPOILT = {
    f"anna {A}": "line 2: NAME ROLE PUBLIC-KEY",
    "anna": "line 2: NAME ROLE PUBLIC-KEY",
    f"anna king {A}": "line 2: no such role",
    f"anna coordinator {A}": "line 2: no such role",
    f"an/na client {A}": "line 2: name: 1 to 64",
    f"anna client {A[:-1]}": "line 2: no public key",
    f"anna client {'#' * 40}": "line 2: no public key",
    f"anna client {A} tomorrow": "line 2: no time",
    f"anna client {A} 9999-12-31T23:59:59-23:00": "line 2: no time",
    f"anna client {A} 2027-01-15 08:00:00": "line 2: too many words",
    f"anna client {A}\nbert client {A}": "line 3: this key is in line 2 already",
    f"anna client {A}\nanna client {A}": "line 3: this key is in line 2 already",
    f"anna client {A}\nanna operator {B}": "line 3: anna is client in another line",
    "anna client \udcff": "line 2: not UTF-8",
}


@pytest.mark.parametrize("text", SPOILT, ids=range(len(SPOILT)))
def test_a_spoilt_line_is_named(text: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Table(b"# one\n" + text.encode(errors="surrogateescape"))
    assert SPOILT[text] in str(caught.value)
    assert not any(word in str(caught.value) for word in text.split() if len(word) > 30)


def test_a_key_may_hold_what_begins_a_comment() -> None:
    key = f"0#{'0' * 38}"  # none begins with it: # is the last digit of Z85, and such a number would be too large
    assert Table(f"anna client {key} # new".encode()).entries == (Entry("anna", "client", key),)


# ---- changed by commands


def test_add_remove_expire_rotate(path: Path) -> None:
    soon = round(time.time()) + 3600.0
    add(path, Entry("anna", "client", A))
    add(path, Entry("bert", "worker:guard", B, soon))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(Misconfigured, match="keys rotate anna"):
        add(path, Entry("anna", "client", C))
    rotate(path, Entry("anna", "client", C), soon)
    assert entries(path)[1:] == (Entry("bert", "worker:guard", B, soon), Entry("anna", "client", C))
    assert entries(path)[0].until == soon
    rotate(path, Entry("anna", "client", generate().public), soon + 9999)  # what ended earlier still does
    assert [e.until for e in entries(path) if e.name == "anna"] == [soon, soon + 9999, None]
    assert remove(path, "anna") == 3
    assert remove(path, "anna") == 0
    assert expire(path, "bert", soon + 1) == 1
    assert entries(path) == (Entry("bert", "worker:guard", B, soon + 1),)


def test_a_name_is_free_when_its_key_has_run_out(path: Path) -> None:
    add(path, Entry("anna", "client", A, time.time() - 1))
    add(path, Entry("anna", "operator", B))
    assert entries(path) == (Entry("anna", "operator", B),)


def test_comments_and_the_lines_of_others_stay(path: Path) -> None:
    path.parent.mkdir()
    mine = f"# my own\n\nanna   client\t{A}   # tabs\n#last"
    path.write_text(mine)
    add(path, Entry("bert", "client", B))
    assert path.read_text() == f"{mine}\nbert client {B}\n"
    remove(path, "bert")
    assert path.read_text() == f"{mine}\n"


@pytest.mark.parametrize(
    "wrong",
    [
        Entry("a b", "client", A),
        Entry("#a", "client", A),
        Entry("", "client", A),
        Entry("anna", "client\nking client", A),
        Entry("anna", "coordinator", A),
        Entry("anna", "client", ""),
        Entry("anna", "client", f"{A} 2027-01-01"),
        Entry("anna", "client", A, float("nan")),
        Entry("anna", "client", A, float("inf")),
        Entry("anna", "client", A, 1e18),
        Entry("bert", "operator", A),
        Entry("anna", "client", B),
    ],
)
def test_what_cannot_stand_there_is_not_written(path: Path, wrong: Entry) -> None:
    add(path, Entry("bert", "client", B))
    before = path.read_bytes()
    with pytest.raises(Misconfigured):
        rotate(path, wrong, time.time() + 60)
    assert path.read_bytes() == before


def test_a_spoilt_table_is_not_written_over(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("nonsense\n")
    with pytest.raises(Misconfigured, match=r"authorized: line 1: NAME ROLE"):
        add(path, Entry("anna", "client", A))
    with pytest.raises(Misconfigured, match="line 1"):
        remove(path, "anna")
    assert path.read_text() == "nonsense\n"


# ---- read while it changes


class Clock:
    wall = NOW

    def __call__(self) -> float:
        return self.wall


def test_every_change_is_seen(path: Path) -> None:
    add(path, Entry("anna", "client", A))
    table = Authorized(path)
    assert (table.number, table.entries, table.find(A, NOW)) == (0, (), None)
    assert table.refresh()
    assert (table.number, table.entries) == (1, (Entry("anna", "client", A),))
    assert not table.refresh()
    for number in range(2, 40):  # faster than the file's times can tell
        (add(path, Entry("bert", "client", B)) if number % 2 == 0 else remove(path, "bert"))
        assert table.refresh()
        assert (table.number, table.find(B, NOW) is None) == (number, number % 2 == 1)
        assert not table.refresh()
    with open(path, "a") as file:  # by hand
        file.write("# only a remark\n")
    assert not table.refresh()
    path.write_text(path.read_text().replace(A, C))
    assert table.refresh()
    assert table.find(A, NOW) is None


def test_a_key_ends_when_its_time_is_over(path: Path) -> None:
    clock = Clock()
    add(path, Entry("anna", "client", A, NOW + 10))
    add(path, Entry("bert", "client", B))
    table = Authorized(path, clock)
    table.refresh()
    assert table.find(A, NOW + 9.9) is not None
    assert table.find(A, NOW + 10) is None
    clock.wall = NOW + 10
    assert table.refresh()  # also without a change of the file
    assert (table.number, [e.name for e in table.entries]) == (2, ["bert"])
    assert not table.refresh()
    clock.wall = NOW  # a clock that was set back
    assert table.refresh()
    assert table.number == 3


@pytest.mark.parametrize("spoil", ["text", "gone", "mode"])
def test_a_spoilt_file_changes_nothing_and_is_told_once(path: Path, spoil: str) -> None:
    add(path, Entry("anna", "client", A))
    good = path.read_bytes()
    table = Authorized(path)
    table.refresh()
    match spoil:
        case "text":
            path.write_bytes(good + b"bert client\n")
        case "gone":
            path.unlink()
        case _:
            path.chmod(0o666)
    with pytest.raises(Misconfigured, match=r"line 4: NAME ROLE|No such file|chmod 600"):
        table.refresh()
    assert not table.refresh()
    assert not table.refresh()
    assert (table.number, table.find(A, NOW) is not None) == (1, True)
    path.write_bytes(good + f"bert client {B}\n".encode())
    path.chmod(0o600)
    assert table.refresh()
    assert (table.number, table.find(B, NOW) is not None) == (2, True)


def test_a_table_that_was_never_good_lets_nobody_in(path: Path) -> None:
    table = Authorized(path)
    with pytest.raises(Misconfigured, match="No such file"):
        table.refresh()
    assert (table.number, table.entries) == (1, ())


# ---- the mesh's own keys


def test_prepare_makes_what_a_mesh_needs(tmp_path: Path) -> None:
    me = prepare(tmp_path)
    folder = tmp_path / "keys"
    names = ["operator", *(f"worker-{stage}" for stage in STAGES)]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.name for p in folder.iterdir()} == {"authorized", "lock", "coordinator.key", *(f"{n}.key" for n in names)}
    assert (me.name, me.role, me.server) == ("coordinator", "coordinator", me.keys.public)
    found = {e.name: e for e in entries(folder / "authorized")}
    assert list(found) == names
    for name in names:
        each = identity.read(folder / f"{name}.key")
        assert (each.server, each.keys.public) == (me.keys.public, found[name].public)
        assert each.role == found[name].role == name.replace("worker-", "worker:")
        assert each.keys.secret not in (folder / "authorized").read_text()
    assert all(p.stat().st_mode & 0o077 == 0 for p in folder.iterdir())
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    assert prepare(tmp_path, "tcp://10.0.0.7:1") == me
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before


def test_revoked_is_revoked(tmp_path: Path) -> None:
    prepare(tmp_path)
    table = tmp_path / "keys" / "authorized"
    remove(table, "worker-guard")
    prepare(tmp_path)
    assert "worker-guard" not in {e.name for e in entries(table)}


def test_what_is_missing_is_made_again(tmp_path: Path) -> None:
    prepare(tmp_path)
    folder = tmp_path / "keys"
    old = identity.read(folder / "worker-guard.key")
    (folder / "worker-guard.key").unlink()
    prepare(tmp_path)
    new = identity.read(folder / "worker-guard.key")
    assert new.keys != old.keys
    assert [e.public for e in entries(folder / "authorized") if e.name == "worker-guard"] == [new.keys.public]
    (folder / "authorized").unlink()
    prepare(tmp_path)
    assert new.keys.public in {e.public for e in entries(folder / "authorized")}


def test_a_new_coordinators_key_reaches_its_own(tmp_path: Path) -> None:
    before = prepare(tmp_path)
    folder = tmp_path / "keys"
    old = identity.read(folder / "operator.key")
    (folder / "coordinator.key").unlink()
    after = prepare(tmp_path)
    assert after.keys != before.keys
    new = identity.read(folder / "operator.key")
    assert (new.keys, new.server) == (old.keys, after.keys.public)


def test_prepare_refuses_what_it_may_not_trust(tmp_path: Path) -> None:
    me = prepare(tmp_path)
    folder = tmp_path / "keys"
    folder.chmod(0o755)
    prepare(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "operator.key").chmod(0o644)
    with pytest.raises(Misconfigured, match="chmod 600"):
        prepare(tmp_path)
    (folder / "operator.key").chmod(0o600)
    identity.write(folder / identity.JOINED, me)
    with pytest.raises(Misconfigured, match="joined another mesh"):
        prepare(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "keys").symlink_to(folder)
    with pytest.raises(Misconfigured, match="somebody else's"):
        prepare(other)


# ---- by real processes at once

PREPARE = """
import sys
from pathlib import Path
from ifmesh.authorized import prepare
sys.stdin.read(1)
print(prepare(Path(sys.argv[1])).keys.public)
"""
ADD = """
import sys
from pathlib import Path
from ifmesh.authorized import Entry, add, remove
from ifmesh.identity import generate
sys.stdin.read(1)
for n in range(12):
    add(Path(sys.argv[1]), Entry(f"{sys.argv[2]}-{n}", "client", generate().public))
    if n % 3 == 0:
        assert remove(Path(sys.argv[1]), f"{sys.argv[2]}-{n}") == 1
"""


def at_once(code: str, *argv: list[str]) -> list[str]:
    """One process for each, all let go at the same moment; what they print."""
    made = [
        subprocess.Popen(
            [sys.executable, "-c", code, *each], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for each in argv
    ]
    with ThreadPoolExecutor(len(made)) as pool:
        said = list(pool.map(lambda process: process.communicate("\n", timeout=60), made))
    assert [process.returncode for process in made] == [0] * len(made), [error for _, error in said]
    return [out for out, _ in said]


def test_two_who_prepare_at_once_agree(tmp_path: Path) -> None:
    keys = at_once(PREPARE, *([str(tmp_path)] for _ in range(6)))
    assert len(set(keys)) == 1
    server = keys[0].strip()
    folder = tmp_path / "keys"
    by_name = {e.name: e.public for e in entries(folder / "authorized")}
    for name in authorized.OWN:
        each = identity.read(folder / f"{name}.key")
        assert (each.server, each.keys.public) == (server, by_name[name])
    assert not [p for p in folder.iterdir() if p.name.endswith(".part")]


def test_nobody_is_lost_when_many_are_added_at_once(path: Path) -> None:
    at_once(ADD, *([str(path), f"p{i}"] for i in range(4)))
    assert {e.name for e in entries(path)} == {f"p{i}-{n}" for i in range(4) for n in range(12) if n % 3}
