"""Nobody without a key gets a word in, and nobody with one says what is not his to say: real processes, real keys.

Keys that are revoked under a worker, or come late, floods and dead doors are rows 54 to 58: tests/matrix/test_process_security.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import zmq

from ifmesh import Client, Lost, authorized, bags, identity
from ifmesh.authorized import Entry
from ifmesh.credentials import called
from ifmesh.identity import Identity
from ifmesh.protocol import (
    Beat,
    Books,
    Bye,
    Done,
    Endpoint,
    Exited,
    Header,
    Hello,
    Inspect,
    Refused,
    Submit,
    ToCoordinator,
    Trusted,
    WorkerMessage,
)
from ifmesh.request import Request
from ifmesh.wire import HEADER, TO_WORKER
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, Speaker, expected, published
from tests.mesh.people import known, own_words, stranger, table, turned_away

FOX = Request("a fox", seed=7)
NOTHING = bags.encode({})
SOME = ("encoder", "stage_one", "guard")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("calm")) as mesh:
        mesh.all(SOME)
        yield mesh


def test_who_has_no_key_gets_no_word_in(mesh: Make) -> None:
    """At every socket of every process: in the clear, with a key that nobody knows, for another server.  Nothing of it is decoded."""
    one = mesh()
    one.all(SOME)
    doors = one.inlets()
    coordinator = known(one, "coordinator").keys.public
    assert len(doors) == 2 * (1 + len(SOME))
    mallory, operator = stranger(one), known(one, "operator")
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for kind, end in [*((zmq.PUSH, end) for end in doors), (zmq.DEALER, Endpoint("", one.config.control(), coordinator))]:
        turned_away(ctx, kind, end.url, None, "")
        turned_away(ctx, kind, end.url, mallory, end.key)
        turned_away(ctx, kind, end.url, operator, mallory.keys.public)
    for end in doors[2:]:
        turned_away(ctx, zmq.PUSH, end.url, operator, end.key)  # good enough for the coordinator, but no worker gets bags from it
    ctx.term()
    own_words(one, "coordinator", f"a key that is not authorised: {mallory.keys.public}")
    one.processes[0].signal(signal.SIGTERM)
    assert one.processes[0].code() == 0
    assert "ended, 0 frames of garbage dropped" in one.processes[0].log.read_text()
    for process in one.processes[1:]:
        assert "(data)" not in process.log.read_text(), "a worker has read something"


def unheard(mesh: Mesh, me: Identity, why: str, *messages: ToCoordinator, name: str = "") -> None:
    """All of these are dropped, and it is told why; who said them is still connected."""
    with mesh.speaker(me, name) as speaker, mesh.speaker() as fan:
        before = fan.books().services
        for message in messages:
            speaker.send(message)
        own_words(mesh, "coordinator", why)
        assert {row.service: row.pid for row in fan.books().services} == {row.service: row.pid for row in before}
        assert speaker.hear(0.0) is None


def hello(life: str, stage: str, key: str) -> Hello:
    return Hello(stage, life, f"{stage}-0", 1, "", "cpu", (Endpoint("", "tcp://127.0.0.1:9", key),), 2, "")


def in_the_name_of(life: str, stage: str, key: str) -> list[WorkerMessage]:
    done = Done(life, "j", (1, 1), "0" * 32, 1, 1, 1.0)
    return [hello(life, stage, key), Beat(life, 10**6, "ready", ()), done, Bye(life), Exited(life, "killed", "")]


def test_a_client_is_no_worker(calm: Mesh) -> None:
    bob = calm.invite("bob")
    life = called(bob, "guard-0.0")
    unheard(calm, bob, "Bye by bob, which is client", *in_the_name_of(life, "guard", bob.keys.public), name=life)
    with calm.speaker(bob) as speaker:
        assert isinstance(speaker.books(), Books)


def test_a_worker_is_no_client_and_of_its_own_stage_alone(calm: Mesh) -> None:
    me = known(calm, "worker-encoder")
    unheard(calm, me, "Submit by worker-encoder, which is worker:encoder", Submit("j", FOX), name=called(me, "encoder-8.0"))
    life = called(me, "encoder-9.0")  # another: the ROUTER is deaf to a second link of one name until it has seen the first one end
    unheard(calm, me, "Hello by worker-encoder, which is worker:encoder", hello(life, "guard", me.keys.public), name=life)


def test_nobody_speaks_for_the_life_of_another(calm: Mesh) -> None:
    """Not another worker of the same key, nor with a routing id that looks right: what it begins with belongs to another key."""
    me, guard = known(calm, "worker-encoder"), known(calm, "worker-guard")
    another = called(me, "encoder-0.0")
    unheard(calm, me, "Exited in the name of another", *in_the_name_of(another, "encoder", me.keys.public), name=called(me, "encoder-9.1"))
    theirs = called(guard, "guard-0.0")
    unheard(calm, me, "worker-encoder under a routing id of another key", *in_the_name_of(theirs, "guard", guard.keys.public), name=theirs)


def test_that_a_life_is_over_is_said_by_its_parent_alone(calm: Mesh) -> None:
    me = known(calm, "worker-encoder")
    life = called(me, "encoder-9.2")
    unheard(calm, me, "Exited in the name of another", Exited(life, "killed", ""), name=life)


def test_a_hello_that_sends_bags_to_another_is_refused(calm: Mesh) -> None:
    me, mallory = known(calm, "worker-encoder"), stranger(calm)
    life = called(me, "encoder-9.3")
    with calm.speaker(me, life) as speaker:
        speaker.send(hello(life, "encoder", mallory.keys.public))
        assert "endpoints with a key" in speaker.until(Refused).detail


def test_a_worker_takes_bags_from_who_made_them(calm: Mesh) -> None:
    """The guard's key is let in at Stage I, but for bags of the guard."""
    (end, *_) = [end for end in calm.inlets() if end.key == known(calm, "worker-stage_one").keys.public]
    bag = [HEADER.encode(Header("bag", "j", "encoder", (1, 1), bags.digest(NOTHING))), NOTHING]
    with calm.raw(zmq.PUSH, end.url, known(calm, "worker-guard"), end.key) as push:
        push.send_multipart(bag)
        own_words(calm, "stage_one-0", "a bag of encoder by a worker of guard")


def test_results_come_from_workers_and_uploads_from_clients(calm: Mesh) -> None:
    inlet = next(end for end in calm.inlets() if end.key == known(calm, "coordinator").keys.public)
    for name, kind, said in (
        ("operator", "result", "a result of guard by operator, which is operator"),
        ("worker-encoder", "upload", "a upload of guard by worker-encoder"),
        ("worker-encoder", "result", "a result of guard by worker-encoder"),
    ):
        header = Header(kind, "j", "guard", (1, 1), bags.digest(NOTHING))  # type: ignore[arg-type]
        with calm.raw(zmq.PUSH, inlet.url, known(calm, name), inlet.key) as push:
            push.send_multipart([HEADER.encode(header), NOTHING])
            own_words(calm, "coordinator", said)


def test_a_revoked_client_is_heard_no_more_and_a_new_key_is_at_once(calm: Mesh) -> None:
    """Both keys of one name are good while they overlap; the connection of the one that ran out stays, and says nothing."""
    old = calm.invite("carol")
    new = replace(old, keys=identity.generate())
    with calm.speaker(old) as first:
        assert isinstance(first.books(), Books)
        authorized.rotate(table(calm), Entry("carol", "client", new.keys.public), time.time() + 3600)
        with Client(identity=identity.dumps(new), timeout=LIMIT / 6) as second:  # a newcomer is let in as soon as the table is read
            assert second.status().pages
            assert isinstance(first.books(), Books)
            authorized.expire(table(calm), "carol", time.time() - 1)
            hushed(calm, first)
            with pytest.raises(Lost):
                second.status()
    with Client(identity=identity.dumps(old), timeout=1.0) as third, pytest.raises(Lost, match=r"this is carol, client.*`ifmesh invite`"):
        third.status()


def hushed(mesh: Mesh, speaker: Speaker) -> None:
    """It asks until it was dropped twice; then each question has been answered, up to one, and none after."""
    log, peer = mesh.logs / "coordinator.log", repr(speaker.socket.getsockopt(zmq.ROUTING_ID))
    asked, answers = 0, []
    end = time.monotonic() + LIMIT
    while f"dropped what {peer} sent (2 so far): its key was revoked" not in log.read_text():
        assert time.monotonic() < end, "it is still heard"
        speaker.send(Inspect())
        asked += 1
        answers.append(speaker.hear(0.1))
    mesh.wait_for(lambda: log.read_text().count(f"dropped what {peer}") + len(answers) - answers.count(None) == asked)
    assert speaker.hear(0.0) is None


def test_beyond_this_machine_only_with_keys(mesh: Make) -> None:
    one = mesh(mesh__listen="tcp://0.0.0.0:0", mesh__address="127.0.0.1")
    one.coordinator()
    with one.speaker() as fan:
        assert isinstance(fan.books(), Books)
    assert one.config.control().startswith("tcp://127.0.0.1:")
    one.processes[0].kill()
    bare = one.start("bare", "coordinator", "--set", "mesh.curve=false")
    assert bare.code() == 3
    assert "without keys" in bare.log.read_text()


def test_a_mesh_without_keys_is_one_of_this_machine(mesh: Make) -> None:
    """mesh.curve = false: all is in the clear, and even there nobody speaks for another."""
    one = mesh(mesh__curve="false")
    one.all(SOME)
    with one.speaker() as fan, Client(one.config.control(), identity=False) as client:
        fan.send(Bye("guard-0"))
        own_words(one, "coordinator", "Bye in the name of another")
        assert {row.service for row in client.status().services} == {f"{stage}-0" for stage in SOME}
        request = replace(FOX, last_stage="stage_one")
        fan.submit("a", request)
        fan.finished("a")
        assert published(fan.result("a")) == expected(request)
    with (
        Client(one.config.control(), identity=identity.dumps(stranger(one)), timeout=1.0) as client,
        pytest.raises(Lost, match="in the clear"),
    ):
        client.status()


def test_who_may_push_is_told_again_until_it_is_heard(calm: Mesh) -> None:
    me = known(calm, "worker-encoder")
    life = called(me, "encoder-9.4")
    with calm.speaker(me, life) as speaker:
        for number in (1, 2):
            speaker.send(Beat(life, number, "ready", ()))
            told = [TO_WORKER.decode(speaker.socket.recv()) for _ in range(2) if speaker.socket.poll(int(LIMIT * 1000))]
            (trusted,) = [m for m in told if isinstance(m, Trusted)]
        stages = {peer.key: peer.stage for peer in trusted.peers}
        assert stages[known(calm, "coordinator").keys.public] == ""
        assert stages[known(calm, "worker-guard").keys.public] == "guard"
        assert known(calm, "operator").keys.public not in stages
        speaker.send(Beat(life, 3, "ready", (), trusts=trusted.number))
        assert speaker.socket.poll(int(LIMIT * 1000))
        assert not isinstance(TO_WORKER.decode(speaker.socket.recv()), Trusted)


def test_secrets_stay_in_their_files(calm: Mesh) -> None:
    """Not in a log, not on a command line, not in the environment of any process."""
    with calm.speaker() as fan:
        fan.submit("secrets", replace(FOX, last_stage="stage_one"))
        fan.finished("secrets")
    files = sorted((calm.state / "keys").glob("*.key"))
    assert len(files) >= 7
    for file in files:
        assert file.stat().st_mode & 0o077 == 0
    secrets = [text for file in files for text in (file.read_text().strip(), identity.read(file).keys.secret)]
    told = [path.read_bytes() for path in calm.logs.iterdir()]
    told += [path.read_bytes() for path in (calm.state / "keys" / authorized.FILE, calm.state / "endpoint.json")]
    for process in calm.processes:
        for one in [psutil.Process(process.pid), *process.family]:
            told += [Path(f"/proc/{one.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    assert len(told) > 2 * len(calm.processes)
    assert not any(secret.encode() in text for secret in secrets for text in told)
