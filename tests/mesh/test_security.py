"""Nobody without a key gets a word in, and nobody with one says what is not his to say: real processes, real keys."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

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
    Progress,
    Refused,
    Submit,
    ToCoordinator,
    Trusted,
    WorkerMessage,
)
from ifmesh.request import Request, Settings
from ifmesh.wire import HEADER, TO_WORKER
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, Speaker, expected, published

FOX = Request("a fox", seed=7)
LONG = replace(FOX, last_stage="stage_one", settings={"stage_one": Settings(steps=60)})
NOTHING = bags.encode({})
SOME = ("encoder", "stage_one", "guard")
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("calm")) as mesh:
        mesh.all(SOME)
        yield mesh


def stranger(mesh: Mesh, name: str = "mallory", role: str = "client") -> Identity:
    """A good key of which the coordinator knows nothing."""
    me = mesh.identity()
    server = me.server if me is not None else identity.generate().public
    return Identity(name, role, identity.generate(), server, mesh.config.control())


def known(mesh: Mesh, name: str) -> Identity:
    me = mesh.identity(name)
    assert me is not None
    return me


def table(mesh: Mesh) -> Path:
    return mesh.state / "keys" / authorized.FILE


def own_words(mesh: Mesh, log: str, text: str) -> None:
    """Until this process has said so."""
    mesh.wait_for(lambda: text in (mesh.logs / f"{log}.log").read_text())


def turned_away(ctx: zmq.Context[zmq.Socket[bytes]], kind: int, url: str, me: Identity | None, server: str) -> None:
    """The handshake fails, and nothing can be sent."""
    made = ctx.socket(kind)
    made.setsockopt(zmq.IMMEDIATE, 1)
    if me is not None:
        made.curve_publickey, made.curve_secretkey = me.keys.public.encode(), me.keys.secret.encode()
        made.curve_serverkey = server.encode()
    monitor = made.get_monitor_socket(REFUSED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    made.connect(url)
    try:
        assert monitor.poll(int(LIMIT * 1000)), f"neither in nor out at {url}"
        assert recv_monitor_message(monitor)["event"] & REFUSED, f"{url} is open"
        with pytest.raises(zmq.Again):
            made.send(b"a word", zmq.DONTWAIT)
    finally:
        made.disable_monitor()
        monitor.close(0)
        made.close(0)


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
    life = called(me, "encoder-9.0")
    unheard(calm, me, "Submit by worker-encoder, which is worker:encoder", Submit("j", FOX), name=life)
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


def test_a_revoked_worker_is_lost_at_once_and_nobody_is_blamed(mesh: Make) -> None:
    """Its task begins anew on another worker.  Let in again, it is a worker as before."""
    one = mesh(services__stage_one__options__step_ms=50)
    one.all(("encoder", "guard"))
    secret = one.invite("rented", "worker:stage_one")
    identity.write(one.folder / "rented.key", secret)
    one.start("rented", "worker", "stage_one", "--name", "rented", "--set", f"mesh.identity={one.folder / 'rented.key'}")
    with one.speaker() as fan:
        fan.submit("a", LONG)
        fan.until(Progress, lambda m: m.stage == "stage_one" and m.step > 1)
        one.worker("stage_one")
        one.ready(fan, "stage_one-0")
        assert authorized.remove(table(one), "rented") == 1
        assert [run.worker for run in fan.finished("a").runs if run.stage == "stage_one"] == ["stage_one-0"]
        assert published(fan.result("a")) == expected(LONG)
        story = [text for _, text in fan.books("a").story]
        assert any("rented" in text and "its key was revoked" in text for text in story), story
        assert not any("held against" in text or "blame" in text for text in story), story
        assert "rented" not in {row.service for row in fan.books().services}
        authorized.add(table(one), Entry("rented", "worker:stage_one", secret.keys.public))
        one.ready(fan, "rented")


def test_a_worker_and_a_client_whose_keys_come_late_join_all_the_same(mesh: Make) -> None:
    """libzmq has given their sockets up for ever: they are made anew."""
    one = mesh()
    one.coordinator()
    late = stranger(one, "late", "worker:encoder")
    identity.write(one.folder / "late.key", late)
    one.start("late", "worker", "encoder", "--name", "late", "--set", f"mesh.identity={one.folder / 'late.key'}")
    client = stranger(one, "nightowl")
    own_words(one, "late", "this key is not authorised there; trying again")
    with Client(identity=identity.dumps(client), timeout=0.5) as asker, pytest.raises(Lost, match="not authorised there; this is nightowl"):
        asker.status()
    with one.speaker() as fan, Client(identity=identity.dumps(client), timeout=LIMIT) as asker:
        for each in (late, client):
            authorized.add(table(one), Entry(each.name, each.role, each.keys.public))
        one.ready(fan, "late")
        assert asker.status().pages


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


def test_without_descriptors_nobody_new_comes_in_and_the_old_stay(mesh: Make) -> None:
    """Strangers take all there are, and are hung up on; it is said, and nothing ends."""
    one = mesh()
    process = one.coordinator()
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (200, 200))
    port = int(one.config.control().rpartition(":")[2])
    with one.speaker() as fan, ExitStack() as strangers:
        assert isinstance(fan.books(), Books)
        end = time.monotonic() + LIMIT
        while "file descriptors are in use: soon" not in process.log.read_text():
            assert time.monotonic() < end
            strangers.pop_all().close()
            for _ in range(400):
                strangers.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT))
            assert isinstance(fan.books(), Books)
            one.wait_for(lambda: "soon" in process.log.read_text() or psutil.Process(process.pid).num_fds() < 100)
        assert isinstance(fan.books(), Books)
        own_words(one, "coordinator", "newcomers are welcome again")
    with one.speaker() as new:
        assert isinstance(new.books(), Books)
    assert process.popen.poll() is None


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
