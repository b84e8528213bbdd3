"""Who may say what: the whole table, and the gate that keeps to it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import pytest

from ifmesh import authorized, identity, roles
from ifmesh.authorized import Authorized, Entry
from ifmesh.commands import parent_of, peer_of
from ifmesh.gate import Gate
from ifmesh.identity import ROLES
from ifmesh.protocol import (
    Arrived,
    Beat,
    Bye,
    Cancel,
    ClientMessage,
    Done,
    Endpoint,
    Exited,
    Fetch,
    Header,
    Hello,
    Hi,
    Inspect,
    Kind,
    Lives,
    Peer,
    Probe,
    Raised,
    Reached,
    Received,
    Step,
    Submit,
    ToCoordinator,
    Watch,
)
from ifmesh.request import STAGES, Request
from ifmesh.wire import Garbled

LIFE = "tag.encoder-0.1"
MESSAGES: dict[str, ToCoordinator] = {
    "Hi": Hi(),
    "Submit": Submit("j", Request("a fox", 7)),
    "Cancel": Cancel("j"),
    "Watch": Watch("j"),
    "Fetch": Fetch("j"),
    "Inspect": Inspect(),
    "Probe": Probe(1, "a", "b"),
    "Hello": Hello("encoder", LIFE, "encoder-0", 1, "", "cpu", (), 1, ""),
    "Beat": Beat(LIFE, 1, "ready", ()),
    "Step": Step(LIFE, "j", (1, 1), 1, 2),
    "Received": Received(LIFE, "j", (1, 1)),
    "Done": Done(LIFE, "j", (1, 1), "", 1, 1, 1.0),
    "Raised": Raised(LIFE, "j", (1, 1), "", "stage"),
    "Arrived": Arrived(LIFE, (1, 1)),
    "Reached": Reached(LIFE, (1, 1)),
    "Bye": Bye(LIFE),
    "Exited": Exited(LIFE, "killed", ""),
    "Lives": Lives(LIFE),
}
CLIENTS = "Hi Submit Cancel Watch Fetch Inspect"
WORKERS = "Beat Step Received Done Raised Arrived Reached Bye Exited Lives"
SAID = {
    "client": CLIENTS,
    "gateway": CLIENTS,
    "operator": f"{CLIENTS} Probe",
    "supervisor": "Hi Inspect",
    **{f"worker:{stage}": WORKERS for stage in STAGES},
    "worker:encoder": f"Hello {WORKERS}",  # that of the encoder
}
PUSHED = {
    "client": {"upload"},
    "gateway": {"upload"},
    "operator": {"upload"},
    "worker:encoder": {"result", "relay", "checkpoint", "probe"},  # of what it made
    "worker:guard": {"preview"},
}


def test_the_tables_are_whole() -> None:
    assert set(MESSAGES) == {kind.__name__ for kind in get_args(ToCoordinator)}
    assert set(SAID) == set(ROLES)


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("role", [*ROLES, "coordinator", "", "worker", "worker:", "stranger"])
def test_each_role_says_what_is_its_own(role: str, name: str) -> None:
    expected = name in SAID.get(role, "").split() or (role in ("worker", "worker:") and name in WORKERS.split())
    assert roles.says(role, MESSAGES[name]) == expected


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("role", [*ROLES, "coordinator", ""])
def test_each_role_pushes_what_is_its_own(role: str, kind: Kind) -> None:
    assert roles.pushes(role, Header(kind, "j", "encoder", (1, 1), "")) == (kind in PUSHED.get(role, ()))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_life_speaks_for_itself_and_its_parent_of_its_end(name: str) -> None:
    message = MESSAGES[name]
    own, parent, other = LIFE.encode(), parent_of(LIFE), b"tag.encoder-1.1"
    heard = [roles.speaks_for(peer, message) for peer in (own, parent, other)]
    if isinstance(message, ClientMessage):
        assert heard == [True, True, True]
    else:
        assert heard == ([False, True, False] if name in ("Exited", "Lives") else [True, False, False])


def test_a_life_that_dials_again_is_the_same() -> None:
    """Under another name each time; and nobody else has such a name."""
    beat = MESSAGES["Beat"]
    assert roles.speaks_for(peer_of(LIFE), beat)
    assert roles.speaks_for(peer_of(LIFE, 12), beat)
    assert peer_of(LIFE) != peer_of(LIFE, 1) != peer_of(LIFE, 2)
    for other in (LIFE + "1", LIFE + "~", LIFE + "~x", LIFE + "~1~2", "x" + LIFE + "~1", LIFE[:-1] + "~1", "~1"):
        assert not roles.speaks_for(other.encode(), beat), other
    assert not roles.speaks_for(peer_of(LIFE, 1), MESSAGES["Exited"])
    assert not roles.speaks_for(peer_of(LIFE, 1), MESSAGES["Lives"])


# ---- the gate

OWN = "o" * 40


@pytest.fixture
def table(tmp_path: Path) -> Path:
    authorized.prepare(tmp_path)
    return tmp_path / "keys" / authorized.FILE


def key(path: Path, name: str) -> str:
    return identity.read(path.parent / f"{name}.key").keys.public


def opened(path: Path, epoch: int = 1) -> Gate:
    gate = Gate(Authorized(path), OWN, epoch)
    assert gate.refresh(0.0)
    return gate


def life(public: str) -> str:
    return f"{identity.tag(public)}.w.1"


def test_who_is_revoked_is_dropped_from_the_next_message_on(table: Path) -> None:
    gate, public = opened(table), key(table, "worker-encoder")
    peer = life(public).encode()
    assert gate.speaker(peer, public) == Entry("worker-encoder", "worker:encoder", public)
    assert gate.revoked([life(public), "w.1"]) == ["w.1"]
    authorized.remove(table, "worker-encoder")
    assert not gate.refresh(0.1), "it was looked at a moment ago"
    assert gate.refresh(0.3)
    assert not gate.refresh(0.6)
    assert gate.revoked([life(public)]) == [life(public)]
    with pytest.raises(Garbled, match="revoked"):
        gate.speaker(peer, public)
    with pytest.raises(Garbled, match="revoked"):
        gate.pushed(public, Header("result", "j", "encoder", (1, 1), ""))
    assert not gate.lets(public)


def test_a_newcomer_who_was_just_invited_is_let_in_and_the_change_is_told_all_the_same(table: Path) -> None:
    gate, new = opened(table), identity.generate().public
    assert not gate.lets(new)
    authorized.add(table, Entry("bob", "client", new))
    assert gate.lets(new)
    assert gate.refresh(10.0), "ZAP has looked first"


def test_what_each_speaker_sees(table: Path) -> None:
    gate, bob = opened(table), Entry("bob", "client", "b")
    assert gate.owner(bob, b"x", Inspect()) == "bob"
    assert gate.owner(Entry("op", "operator", "o"), b"x", Inspect()) is None
    assert gate.owner(None, b"x", Inspect()) is None
    for entry, message, why in (
        (bob, Beat("x", 1, "ready", ()), "Beat by bob, which is client"),
        (bob, Beat("y", 1, "ready", ()), "in the name of another"),
        (None, Beat("y", 1, "ready", ()), "in the name of another"),
    ):
        with pytest.raises(Garbled, match=why):
            gate.owner(entry, b"x", message)


def test_a_routing_id_is_of_its_key(table: Path) -> None:
    gate, one, other = opened(table), key(table, "worker-encoder"), key(table, "worker-guard")
    with pytest.raises(Garbled, match="routing id of another key"):
        gate.speaker(life(other).encode(), one)
    with pytest.raises(Garbled, match="revoked"):
        gate.speaker(life(one).encode(), "")


def test_a_worker_is_told_who_may_push_until_it_knows(table: Path) -> None:
    gate, guard = opened(table, 3), key(table, "worker-guard")
    hello = Hello("encoder", LIFE, "e", 1, "", "cpu", (), 1, "")
    told = gate.trusted(hello)
    assert told is not None
    assert told.peers[0] == Peer(OWN, "")
    assert Peer(guard, "guard") in told.peers
    assert {peer.stage for peer in told.peers} == {"", *STAGES}
    assert gate.trusted(Beat(LIFE, 1, "ready", (), trusts=told.number)) is None
    assert gate.trusted(Beat(LIFE, 1, "ready", ())) == told
    assert gate.trusted(hello) == told
    assert gate.trusted(Inspect()) is None
    authorized.remove(table, "worker-guard")
    assert gate.refresh(1.0)
    again = gate.trusted(Beat(LIFE, 1, "ready", (), trusts=told.number))
    assert again is not None
    assert guard not in {peer.key for peer in again.peers}
    newer = opened(table, 4).trusted(hello)
    assert newer is not None
    assert newer.number > again.number, "a restarted coordinator begins its count behind all that was ever said"


def test_endpoints_with_the_key_of_another_are_noticed(table: Path) -> None:
    gate, mine = opened(table), Entry("e", "worker:encoder", "mine")
    ends: Any = (Endpoint("h", "ipc://x", "mine"), Endpoint("", "tcp://127.0.0.1:1", "theirs"))
    assert not gate.misplaced(mine, Hello("encoder", LIFE, "e", 1, "", "cpu", ends[:1], 1, ""))
    assert gate.misplaced(mine, Hello("encoder", LIFE, "e", 1, "", "cpu", ends, 1, ""))
    assert not gate.misplaced(None, Hello("encoder", LIFE, "e", 1, "", "cpu", ends, 1, ""))


def test_a_damaged_table_changes_nothing_but_what_runs_out(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate, operator = opened(table), key(table, "operator")
    with table.open("a") as file:
        file.write("nonsense\n")
    assert not gate.refresh(1.0)
    assert "nonsense" not in caplog.text
    assert "stays as it was" in caplog.text
    assert gate.lets(operator)


def test_without_keys_nobody_is_known_and_all_is_heard() -> None:
    gate = Gate(None, "", 1)
    assert not gate.refresh(0.0)
    assert gate.speaker(b"anybody", "") is None
    gate.pushed("", Header("result", "j", "encoder", (1, 1), ""))
    assert gate.trusted(MESSAGES["Hello"]) is None
    assert gate.revoked(["w.1"]) == []
    assert not gate.lets(identity.generate().public)


def test_a_key_that_runs_out_takes_its_lives_with_it(table: Path) -> None:
    gate, public = opened(table), key(table, "worker-encoder")
    authorized.expire(table, "worker-encoder", time.time() - 1)
    assert gate.refresh(1.0)
    assert gate.revoked([life(public)]) == [life(public)]
