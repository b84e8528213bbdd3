"""keys, invite and join: who is let in, by which line, and that no secret is seen on the way."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ifmesh import authorized, config, exits, identity, lease
from ifmesh.cli import run
from ifmesh.config import Config
from ifmesh.errors import Misconfigured
from ifmesh.identity import Identity
from ifmesh.journal import locked
from ifmesh.request import STAGES
from ifmesh.table import Entry

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's configuration, nobody's mesh."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IFMESH_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("IFMESH_MESH_IDENTITY")
    return tmp_path / "state"


@pytest.fixture
def paste(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pasted(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return pasted


def keys(state: Path) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in authorized.read(state / "keys" / "authorized").entries:
        found.setdefault(entry.name, []).append(entry)
    return found


def invited(capsys: Capsys, *arguments: str) -> tuple[Identity, str]:
    """The identity of the line on stdout, and what was said."""
    assert run(["invite", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    found = identity.loads(out)
    assert found.keys.secret not in err
    assert out.strip() not in err
    return found, err


@pytest.mark.parametrize("arguments", [["keys"], ["keys", "make"], ["keys", "--set", "mesh.max_jobs=3"]])
def test_keys_makes_what_is_missing(arguments: list[str], state: Path, capsys: Capsys) -> None:
    assert run(arguments) == 0
    assert capsys.readouterr().out == f"{state / 'keys'}\n"
    assert set(keys(state)) == {"operator", *(f"worker-{stage}" for stage in STAGES)}
    before = (state / "keys" / "authorized").read_bytes()
    assert run(arguments) == 0
    assert (state / "keys" / "authorized").read_bytes() == before


def test_each_command_of_keys_explains_itself(capsys: Capsys) -> None:
    assert run(["keys", "-h"]) == 0
    said = capsys.readouterr().out.partition("Commands:")[2]
    assert [line.split()[0] for line in said.splitlines() if line.strip()] == ["make", "list", "revoke", "rotate"]
    for command in ("make", "list", "revoke", "rotate"):
        assert run(["keys", command, "-h"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: ifmesh keys {command}")
    assert run(["keys", "lst"]) == exits.USAGE


def test_list_shows_no_secret(state: Path, capsys: Capsys) -> None:
    assert run(["keys", "list"]) == exits.CONFIGURATION
    assert "`ifmesh keys` makes them" in capsys.readouterr().err
    me = authorized.prepare(state)
    anna, _ = invited(capsys, "anna", "--for", "30m", "--coordinator", "tcp://10.0.0.7:1")
    authorized.add(state / "keys" / "authorized", Entry("old", "gateway", identity.generate().public, time.time() - 1))
    authorized.remove(state / "keys" / "authorized", "worker-guard")
    assert run(["keys", "list", "--json"]) == 0
    said = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(said)}
    assert run(["keys", "list"]) == 0
    table = capsys.readouterr().out
    assert list(rows) == ["coordinator", "operator", *(f"worker-{s}" for s in STAGES if s != "guard"), "anna", "old", "worker-guard"]
    assert rows["coordinator"]["public"] == me.keys.public
    assert rows["anna"]["fingerprint"] == identity.tag(anna.keys.public)
    assert rows["anna"]["until"].endswith("Z")
    assert (rows["old"]["valid"], rows["worker-guard"]["until"]) == (False, "revoked")
    for name, row in rows.items():
        assert name in table
        assert row["fingerprint"] in table
    secrets = [identity.read(path).keys.secret for path in (state / "keys").glob("*.key")] + [anna.keys.secret]
    assert len(secrets) == 8
    assert not any(secret in said + table for secret in secrets)


def test_an_invite_is_all_that_somebody_needs(state: Path, capsys: Capsys) -> None:
    found, said = invited(capsys, "anna", "--coordinator", "tcp://10.0.0.7:7640")
    me = identity.read(state / "keys" / "coordinator.key")
    assert (found.name, found.role, found.server, found.coordinator) == ("anna", "client", me.keys.public, "tcp://10.0.0.7:7640")
    assert keys(state)["anna"] == [Entry("anna", "client", found.keys.public)]
    assert "anna may speak as client; `ifmesh keys revoke anna` ends it" in said
    assert "careful" not in said


def test_an_invite_into_a_file(state: Path, tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "gpu7.key"
    assert run(["invite", "gpu7", "--role", "worker:stage_one", "-o", str(out), "--until", "2099-01-31"]) == 0
    printed, said = capsys.readouterr()
    assert printed == ""
    assert out.stat().st_mode & 0o777 == 0o600
    found = identity.read(out)
    assert keys(state)["gpu7"] == [Entry("gpu7", "worker:stage_one", found.keys.public, 4073500800.0)]
    assert f"ifmesh worker stage_one --identity {out}" in said
    assert "until 2099-01-31T00:00:00Z" in said
    assert run(["invite", "gpu8", "-o", str(out)]) == exits.USAGE
    assert "there already" in capsys.readouterr().err
    assert "gpu8" not in keys(state)


def test_where_the_coordinator_is_found(state: Path, capsys: Capsys) -> None:
    found, said = invited(capsys, "a")
    assert found.coordinator == "tcp://127.0.0.1:7640"
    assert "careful: tcp://127.0.0.1:7640 is found on this machine only" in said
    assert run(["invite", "b", "--set", "mesh.listen=tcp://127.0.0.1:0"]) == exits.CONFIGURATION
    assert "nobody listens yet" in capsys.readouterr().err
    (state / "endpoint.json").write_text('{"control": "tcp://10.1.2.3:4567", "pid": 1}')
    found, said = invited(capsys, "b", "--set", "mesh.listen=tcp://127.0.0.1:0")
    assert (found.coordinator, "careful" in said) == ("tcp://10.1.2.3:4567", False)
    (state / "endpoint.json").write_text('{"control": "tcp://0.0.0.0:4567", "pid": 1}')
    found, said = invited(capsys, "c")
    assert "careful: tcp://0.0.0.0:4567 is no address that others find" in said
    found, said = invited(capsys, "d", "--set", "mesh.address=10.9.9.9")
    assert (found.coordinator, "careful" in said) == ("tcp://10.9.9.9:4567", False)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["a/b"], exits.CONFIGURATION, "name: 1 to 64 letters"),
        (["operator"], exits.CONFIGURATION, "the mesh's own name"),
        (["coordinator"], exits.CONFIGURATION, "the mesh's own name"),
        (["worker-guard"], exits.CONFIGURATION, "the mesh's own name"),
        (["anna"], exits.CONFIGURATION, "keys rotate anna"),
        (["bert", "--role", "king"], exits.USAGE, "'king' is not one of"),
        (["bert", "--role", "coordinator"], exits.USAGE, "is not one of"),
        (["bert", "--for", "1 day"], exits.USAGE, "as in 30m, 12h, 1d or 2w"),
        (["bert", "--for", "-1d"], exits.USAGE, "as in 30m, 12h, 1d or 2w"),
        (["bert", "--for", "999999999w"], exits.CONFIGURATION, "no time before the year 10000"),
        (["bert", "--until", "tomorrow"], exits.USAGE, "as in 2027-01-31"),
        (["bert", "--until", "2001-01-01"], exits.USAGE, "that is over"),
        (["bert", "--until", "2099-01-01", "--for", "1d"], exits.USAGE, "one of them"),
        (["bert", "-o", "gone/bert.key"], exits.USAGE, "no folder gone"),
        (["bert", "--coordinator", "somewhere"], exits.CONFIGURATION, "tcp://HOST:PORT"),
    ],
)
def test_what_cannot_be_is_said_and_lets_nobody_in(arguments: list[str], code: int, said: str, state: Path, capsys: Capsys) -> None:
    invited(capsys, "anna")
    before = (state / "keys" / "authorized").read_bytes()
    assert run(["invite", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert (state / "keys" / "authorized").read_bytes() == before


def test_an_invite_that_nobody_read_lets_nobody_in(state: Path) -> None:
    authorized.prepare(state)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ifmesh", "invite", "anna"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == exits.FAILURE, done.stderr
    assert "No space left" in done.stderr
    assert "anna" not in keys(state)


def test_revoke(state: Path, capsys: Capsys) -> None:
    invited(capsys, "anna")
    assert run(["keys", "revoke", "ann"]) == exits.FAILURE
    assert "did you mean anna?" in capsys.readouterr().err
    assert run(["keys", "revoke", "anna"]) == 0
    assert "revoked: anna (1 key)" in capsys.readouterr().err
    assert "anna" not in keys(state)
    assert run(["keys", "revoke", "coordinator"]) == exits.CONFIGURATION
    assert run(["keys", "revoke", "worker-guard"]) == 0
    assert "ifmesh keys rotate worker-guard" in capsys.readouterr().err
    assert run(["keys", "rotate", "worker-guard"]) == 0
    assert [e.public for e in keys(state)["worker-guard"]] == [identity.read(state / "keys" / "worker-guard.key").keys.public]


def test_rotate_with_an_overlap(state: Path, capsys: Capsys) -> None:
    old, _ = invited(capsys, "anna", "--role", "gateway")
    assert run(["keys", "rotate", "anna", "--overlap", "12h"]) == 0
    out, err = capsys.readouterr()
    new = identity.loads(out)
    assert (new.name, new.role, new.server) == ("anna", "gateway", old.server)
    first, second = keys(state)["anna"]
    assert (first.public, second) == (old.keys.public, Entry("anna", "gateway", new.keys.public))
    assert first.until is not None
    assert abs(first.until - time.time() - 12 * 3600) < 600
    assert "the old one is valid until " in err
    assert run(["keys", "rotate", "anna", "--overlap", "0s", "-o", "anna.key"]) == 0
    assert all(not e.valid(time.time() + 1) for e in keys(state)["anna"][:-1])
    assert keys(state)["anna"][-1].public == identity.read(Path("anna.key")).keys.public
    capsys.readouterr()
    assert run(["keys", "rotate", "bert"]) == exits.CONFIGURATION
    assert "ifmesh invite bert" in capsys.readouterr().err


def test_rotate_one_of_the_meshs_own(state: Path, capsys: Capsys) -> None:
    authorized.prepare(state)
    path = state / "keys" / "operator.key"
    old = identity.read(path)
    assert run(["keys", "rotate", "operator", "-o", "x.key"]) == exits.USAGE
    assert run(["keys", "rotate", "operator"]) == 0
    assert capsys.readouterr().out == ""
    new = identity.read(path)
    assert (new.name, new.role, new.server) == (old.name, old.role, old.server)
    assert [e.public for e in keys(state)["operator"]] == [old.keys.public, new.keys.public]


def test_what_is_left_to_do_for_a_workers_new_key(state: Path, capsys: Capsys) -> None:
    assert run(["keys", "make"]) == 0
    assert run(["keys", "rotate", "worker-guard"]) == 0
    assert "Z: a worker that something else started (Slurm, Kubernetes, a shell) needs the new file" in capsys.readouterr().err
    with lease.lock(state):
        assert run(["keys", "rotate", "worker-guard"]) == 0
    assert f"`ifmesh up` (pid {os.getpid()}) has its workers start again, here and on its hosts; a worker" in capsys.readouterr().err


def test_the_coordinators_own_key_is_everybodys_matter(state: Path, capsys: Capsys) -> None:
    old, _ = invited(capsys, "anna")
    assert run(["keys", "rotate", "coordinator"]) == exits.CONFIGURATION
    assert "the invites of anna must be made anew, by `ifmesh keys rotate`: say --yes" in capsys.readouterr().err
    lock = locked(state)
    assert run(["keys", "rotate", "coordinator", "--yes"]) == exits.CONFIGURATION
    assert f"a coordinator runs here already (pid {os.getpid()})" in capsys.readouterr().err
    os.close(lock)
    assert run(["keys", "rotate", "coordinator", "--yes"]) == 0
    assert "to do: ifmesh keys rotate anna --overlap 0s" in capsys.readouterr().err
    me = identity.read(state / "keys" / "coordinator.key")
    assert me.keys.public != old.server
    assert {identity.read(path).server for path in (state / "keys").glob("*.key")} == {me.keys.public}
    assert run(["keys", "rotate", "anna", "--overlap", "0s"]) == 0
    assert identity.loads(capsys.readouterr().out).server == me.keys.public


# ---- the other side


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder of another machine."""
    monkeypatch.setenv("IFMESH_STATE", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def line(state: Path, name: str = "anna", role: str = "client") -> str:
    return identity.dumps(authorized.invite(state, name, role, "tcp://10.0.0.7:7640"))


def here(**more: object) -> Config:
    return config.read(None, os.environ, {key.replace("__", "."): value for key, value in more.items()})


def test_joined_by_a_pasted_line(state: Path, elsewhere: Path, paste: Any, capsys: Capsys) -> None:
    text = line(state)
    paste(f"  {text}\r\n\n")
    assert run(["join"]) == 0
    said = capsys.readouterr().err
    assert text not in said
    assert "joined tcp://10.0.0.7:7640 as anna (client)" in said
    kept = elsewhere / "keys" / "joined.key"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert here().control() == "tcp://10.0.0.7:7640"
    assert here().identity("client") == identity.loads(text)
    assert here(mesh__coordinator="tcp://10.0.0.8:1").control() == "tcp://10.0.0.8:1"
    assert here(mesh__curve=False).control() == "tcp://127.0.0.1:7640"


def test_a_mesh_that_was_joined_is_not_one_of_your_own(state: Path, elsewhere: Path, paste: Any, capsys: Capsys) -> None:
    paste(line(state))
    assert run(["join", "-"]) == 0
    assert run(["keys"]) == exits.CONFIGURATION
    assert "joined another mesh" in capsys.readouterr().err
    assert run(["join", "--leave"]) == 0
    assert run(["keys"]) == 0
    assert run(["join", "--leave"]) == exits.FAILURE


def test_joined_from_a_file(state: Path, elsewhere: Path, tmp_path: Path, capsys: Capsys) -> None:
    path = tmp_path / "anna.key"
    path.write_text(line(state))
    path.chmod(0o644)
    assert run(["join", str(path)]) == exits.CONFIGURATION
    assert f"chmod 600 {path}" in capsys.readouterr().err
    path.chmod(0o600)
    assert run(["join", str(path)]) == 0
    assert here().identity("client").name == "anna"
    assert run(["join", "gone.key"]) == exits.CONFIGURATION


def test_a_worker_that_was_invited(state: Path, elsewhere: Path, paste: Any, capsys: Capsys) -> None:
    paste(line(state, "gpu7", "worker:stage_one"))
    assert run(["join"]) == 0
    kept = elsewhere / "keys" / "joined-worker-stage_one.key"
    assert f"start it: ifmesh worker stage_one --identity {kept}" in capsys.readouterr().err
    told = here(mesh__identity=str(kept))
    assert told.identity("worker:stage_one").name == "gpu7"
    assert told.control() == "tcp://10.0.0.7:7640"
    for role in ("worker:guard", "client"):
        with pytest.raises(Misconfigured, match=f"identity of a worker:stage_one, not of a {role}"):
            told.identity(role)


def test_joined_at_a_terminal_without_showing_it(state: Path, elsewhere: Path) -> None:
    text = line(state)
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "ifmesh", "join"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    while b"paste the invite" not in seen:
        seen += os.read(ours, 1000)
    os.write(ours, text.encode() + b"\n")
    try:
        while data := os.read(ours, 1000):
            seen += data
    except OSError:
        pass  # Linux: the other end is closed
    os.close(ours)
    assert process.wait(60) == 0, seen
    assert text.encode() not in seen
    assert identity.read(elsewhere / "keys" / "joined.key").name == "anna"


def test_a_secret_on_the_command_line_is_refused_and_not_repeated(state: Path, elsewhere: Path, capsys: Capsys) -> None:
    text = line(state)
    assert run(["join", text]) == exits.USAGE
    out, err = capsys.readouterr()
    assert text not in out + err
    assert "take it as lost" in err
    assert not (elsewhere / "keys").exists()


@pytest.mark.parametrize("cut", [slice(0, 100), slice(0, 0), slice(3, None)])
def test_a_damaged_line_is_not_kept(cut: slice, state: Path, elsewhere: Path, paste: Any, capsys: Capsys) -> None:
    text = line(state)
    paste(text[cut])
    assert run(["join"]) == exits.CONFIGURATION
    err = capsys.readouterr().err
    assert "invite: " in err
    assert text[20:40] not in err
    assert not (elsewhere / "keys").exists()


def test_a_coordinators_key_is_no_invite(state: Path, elsewhere: Path, capsys: Capsys) -> None:
    authorized.prepare(state)
    assert run(["join", str(state / "keys" / "coordinator.key")]) == exits.CONFIGURATION
    assert "the key of a coordinator" in capsys.readouterr().err


def test_up_has_keys_of_its_own(state: Path, tmp_path: Path, capsys: Capsys) -> None:
    assert run(["up", "--toy", "--set", "mesh.identity=anna.key"]) == exits.CONFIGURATION
    assert "mesh.identity" in capsys.readouterr().err


def test_whose_identity_a_process_has(state: Path, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"operator\.key: no such file: the coordinator makes it"):
        here().identity("client")
    authorized.prepare(state)
    assert here().identity("client").name == "operator"
    assert here().identity("worker:guard").name == "worker-guard"
    assert here().identity("coordinator").name == "coordinator"
    assert here().control() == "tcp://127.0.0.1:7640"
    path = tmp_path / "anna.key"
    identity.write(path, authorized.invite(state, "anna", "client", "tcp://10.0.0.7:7640"))
    told = here(mesh__identity="anna.key")
    assert told.identity_file("client") == told.identity_file("worker:guard") == path
    assert told.identity("coordinator").name == "coordinator"
    with pytest.raises(Misconfigured, match="identity of a client, not of a worker:guard"):
        told.identity("worker:guard")
    path.write_text("spoilt")
    with pytest.raises(Misconfigured, match=r"anna\.key: invite: it begins with"):
        told.control()
