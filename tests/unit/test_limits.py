"""Every limit on what others may make us hold: what it is, where it is kept, and which test would miss it.

Those of one message are in its decoder; those of many are here: what a key that was let in may fill with good messages.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from ifmesh import log, memory, sockets
from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Policy, Send
from ifmesh.crew import NAMES, WORDS
from ifmesh.errors import Misconfigured
from ifmesh.ledger import STALE, WATCHERS
from ifmesh.mail import LARGE, RESULTS, Mail
from ifmesh.meter import Meter
from ifmesh.protocol import Accepted, Beat, Books, Cancel, Endpoint, Hello, Hi, Inspect, Peer, Refused, Submit, Trusted, Wanted, Watch
from ifmesh.request import STAGES, Request, Settings
from ifmesh.table import MOST_WORKERS, Table
from ifmesh.uploads import WAITING
from ifmesh.wire import TO_CLIENT, TO_COORDINATOR, TO_WORKER
from tests.fuzz.strangers import frame, greeting, ready

ROOT = Path(__file__).parents[2]
LIMITS = (
    # what is limited: where, which test
    ("bytes of a control frame: 256 KiB", "sockets", "unit/test_sockets.py::test_options_are_as_the_facts_demand"),
    ("bytes of a bag: 64 MiB", "sockets", "unit/test_sockets.py::test_a_frame_above_the_limit_ends_only_its_own_link"),
    ("bytes and time of a message without end", "meter", "unit/test_limits.py::test_who_sends_without_end_is_hung_up_on"),
    ("parts of a message", "sockets", "mesh/test_garbage.py::test_garbage_in_whole_frames"),
    ("seconds of a handshake", "sockets", "mesh/test_garbage.py::test_strangers_who_do_not_speak_zmtp"),
    ("descriptors", "descriptors", "matrix/test_process_security.py::test_row_58_strangers_take_all_descriptors"),
    ("bytes of a message, by its door", "wire", "unit/test_wire.py::test_what_is_no_message_is_garbled"),
    ("texts, bytes, entries, keys of a message", "typed", "unit/test_wire.py::test_the_limits_are_those_of_the_types"),
    ("bytes of a header before a bag: 1 KiB", "wire", "unit/test_wire.py::test_the_largest_of_what_we_send_fits"),
    ("header of a bag: 16 KiB; names, dtypes, shapes, counts", "bags", "unit/test_bags.py::test_what_is_no_bag_is_garbled"),
    ("what a bag holds, exactly", "bags", "unit/test_bags.py::test_a_bag_that_is_not_what_is_declared_is_garbled"),
    ("what an upload holds", "inlet", "mesh/test_links.py::test_an_upload_of_what_nobody_brings_is_garbled"),
    ("every field of a request, prompts too", "rules", "unit/test_rules.py::test_every_field_is_refused_somewhere"),
    ("pictures: bytes, pixels, formats, scans", "source", "fuzz/test_pictures.py::test_every_file_is_a_picture_or_refused"),
    ("open jobs: mesh.max_jobs", "desk", "matrix/test_process_mesh.py::test_row_52_more_jobs_than_there_is_room_for"),
    ("open jobs of one key: half of them", "desk", "unit/test_limits.py::test_one_key_takes_half_of_the_places"),
    ("Submits that wait for uploads", "uploads", "broker/test_hostile.py::test_submits_whose_upload_never_comes_are_forgotten"),
    ("of one key: half of them", "uploads", "unit/test_limits.py::test_one_key_does_not_push_the_uploads_of_others_aside"),
    ("uploads on disk: bytes and number", "uploads", "broker/test_hostile.py::test_small_uploads_are_counted_too"),
    ("uploads and results on their way to disk", "writer", "mesh/test_links.py::test_uploads_are_stored_when_they_are_what_they_should_be"),
    ("peers that watch one job", "ledger", "unit/test_limits.py::test_who_comes_back_under_ever_other_names_is_forgotten"),
    ("timers of what is over", "ledger", "unit/test_limits.py::test_deadlines_of_jobs_that_are_over_do_not_pile_up"),
    ("endings in memory: number and bytes", "ledger", "unit/test_limits.py::test_what_is_remembered_is_bounded_in_bytes"),
    ("lines of a story", "job", "unit/test_job.py::test_a_long_story_keeps_its_beginning_and_its_end"),
    ("rows of Books, services too", "books", "unit/test_limits.py::test_books_of_the_longest_names_fit_into_an_answer"),
    ("workers that live", "crew", "unit/test_limits.py::test_workers_have_a_number"),
    ("names in a Hello, words in a story", "crew", "unit/test_limits.py::test_books_of_the_longest_names_fit_into_an_answer"),
    ("whose place a worker takes", "roster", "unit/test_limits.py::test_nobody_takes_the_name_of_a_worker_with_another_key"),
    ("pictures under way to one client", "mail", "mesh/test_links.py::test_a_client_that_does_not_read_gets_only_a_few_pictures"),
    ("long answers under way to one client", "mail", "unit/test_limits.py::test_long_answers_do_not_pile_up_for_who_does_not_read"),
    ("results and endings on disk", "retention", "unit/test_retention.py::test_beyond_the_quota_the_oldest_go_and_no_more_than_needed"),
    ("room on the disk", "disk", "unit/test_disk.py::test_little_room_and_room_again"),
    ("what waits for a failing disk", "disk", "unit/test_disk.py::test_what_comes_behind_does_not_pile_up"),
    ("bytes of checkpoints", "checkpoints", "unit/test_checkpoints.py::test_what_was_begun_first_goes_first"),
    ("probes under way, their bytes", "survey", "unit/test_survey.py::test_what_may_not_be_probed_is_said"),
    ("probes that a worker remembers", "prober", "unit/test_prober.py::test_probes_of_nobody_do_not_pile_up"),
    ("outbox of a worker", "keeper", "unit/test_keeper.py::test_the_outbox_has_a_limit_in_bytes"),
    ("bags that come before their Run", "keeper", "unit/test_keeper.py::test_bags_for_nobody_do_not_pile_up"),
    ("early pictures at a guard", "looks", "unit/test_keeper.py::test_pictures_for_nobody_do_not_pile_up"),
    ("bags that wait for a link", "outlets", "mesh/test_links.py::test_what_waits_too_long_is_given_up_with_its_link"),
    ("keys of workers in one Trusted", "table", "unit/test_limits.py::test_the_longest_table_is_told_in_one_message"),
    ("names of keys, bytes of an invite", "identity", "unit/test_identity.py::test_too_long_is_said_at_once"),
    ("lines of the log about garbage", "log", "mesh/test_links.py::test_garbage_without_end_is_logged_seldom"),
    ("length of a line of the log", "log", "unit/test_limits.py::test_a_line_of_the_log_has_an_end"),
    ("memory that was freed", "memory", "unit/test_limits.py::test_memory_that_was_freed_goes_back"),
)
LONGEST = Request(
    "\U0001f98a" * 1000,
    1,
    negative="n" * 2000,
    settings={stage: Settings(timesteps=tuple(range(999, -1, -1))) for stage in ("stage_one", "stage_two")},
)


@pytest.mark.parametrize(("where", "proof"), [pytest.param(where, proof, id=what) for what, where, proof in LIMITS])
def test_each_limit_has_its_place_and_its_test(where: str, proof: str) -> None:
    file, _, name = proof.partition("::")
    assert (ROOT / "ifmesh" / f"{where}.py").exists()
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()


def said(broker: Broker, now: float, peer: str, message: object, owner: str | None = None) -> list[object]:
    """What this peer is answered; the books balance."""
    commands = broker.receive(now, peer.encode(), message, owner)  # type: ignore[arg-type]
    return [c.message for c in commands if isinstance(c, Send) and c.to == peer.encode()]


# ---- jobs


def test_one_key_takes_half_of_the_places() -> None:
    broker = Broker(IF, 1, (), Policy(max_jobs=10))
    answers = [said(broker, 0.0, "bob", Submit(f"bob-{n}", LONGEST), "bob")[0] for n in range(9)]
    assert answers[:5] == [Accepted(f"bob-{n}") for n in range(5)]
    assert all(isinstance(a, Refused) and a.reason == "busy" and "half of all" in a.detail for a in answers[5:])
    assert said(broker, 1.0, "bob", Submit("bob-0", LONGEST), "bob")[0] == Accepted("bob-0")
    assert said(broker, 1.0, "ann", Submit("ann-0", Request("a fox", 1)), "ann")[0] == Accepted("ann-0")
    assert said(broker, 1.0, "operator", Submit("any", Request("a fox", 1)))[0] == Accepted("any")
    broker.receive(2.0, b"bob", Cancel("bob-0"), "bob")
    assert said(broker, 2.0, "bob", Submit("bob-9", LONGEST), "bob")[0] == Accepted("bob-9")


def test_one_key_does_not_push_the_uploads_of_others_aside() -> None:
    broker = Broker(IF, 1, ())
    wish = Request("a fox", 1, task="vary", brings=("source",), upload="f" * 64)
    assert said(broker, 0.0, "ann", Submit("ann-0", wish), "ann") == [Wanted("ann-0", wish.upload)]
    for n in range(2 * WAITING):
        said(broker, 1.0, f"bob-{n}", Submit(f"bob-{n}", replace(wish, upload=f"{n:064x}")), "bob")
    broker.check()
    assert len(broker.uploads) == WAITING
    assert broker.wants(wish.upload)


def test_who_comes_back_under_ever_other_names_is_forgotten() -> None:
    """A client that watches its job, leaves and comes again, 2,000 times, and one that is heard all the time."""
    broker = Broker(IF, 1, ())
    said(broker, 0.0, "ann", Submit("job", Request("a fox", 1)))
    for n in range(2000):
        said(broker, n + 1.0, f"again-{n}", Watch("job", previews=True))
        said(broker, n + 1.0, "ann", Hi())
    broker.check()
    assert len(broker.jobs["job"].watchers) == len(broker._heard) == WATCHERS
    assert {b"ann", b"again-1999"} <= broker.jobs["job"].watchers
    for n in range(10_000):  # of what is not there nothing is kept
        assert isinstance(said(broker, 3000.0, "mallory", Watch(f"none-{n}"), "mallory")[0], Refused)
    assert len(broker._heard) == WATCHERS


def test_deadlines_of_jobs_that_are_over_do_not_pile_up() -> None:
    broker = Broker(IF, 1, ())
    week = Request("a fox", 1, deadline=604800.0, deadline_queued=604800.0, tied=True)
    said(broker, 0.0, "ann", Submit("open", week))
    for n in range(3 * STALE):
        said(broker, 1.0, "bob", Submit(f"job-{n}", week))
        said(broker, 1.0, "bob", Cancel(f"job-{n}"))
    broker.check()
    assert len(broker._timers) < 3 * STALE
    broker.tick(604801.0)
    assert not broker.jobs


def test_what_is_remembered_is_bounded_in_bytes() -> None:
    policy = Policy(remember_bytes=1 << 20)
    broker = Broker(IF, 1, (), policy)
    for n in range(200):
        said(broker, 0.0, "bob", Submit(f"job-{n}", LONGEST), "bob")
        said(broker, 0.0, "bob", Cancel(f"job-{n}"), "bob")
    broker.check()
    assert 5 < len(broker.ended) < 100
    assert "job-199" in broker.ended
    broker.forget(list(broker.ended))
    broker.check()
    assert broker._remembered == 0


# ---- workers


def hello(n: int, key: str = "", name: str = "", stage: str = "guard") -> Hello:
    life = f"{key[:4]}.{stage}-{n}"
    return Hello(stage, life, name or f"{stage}-{n}", 1, "here", "cpu", (Endpoint("", "tcp://127.0.0.1:9", key),), 2, "toy/1")


def test_workers_have_a_number() -> None:
    broker = Broker(IF, 1, (), Policy(max_workers=10))
    for n in range(10):
        assert said(broker, 0.0, f".guard-{n}", hello(n)) == []
    (refused,) = said(broker, 0.0, ".guard-10", hello(10))
    assert refused == Refused("", "busy", "10 workers are here, the limit", 2.0)
    again = replace(hello(11), name="guard-3")  # in the place of another
    assert said(broker, 0.0, ".guard-11", again) == []
    assert len(broker.roster.lives) == 10


def test_nobody_takes_the_name_of_a_worker_with_another_key() -> None:
    """Else any worker's key could end any worker."""
    broker = Broker(IF, 1, ())
    ours = [hello(n, "a" * 40, "encoder-0", "encoder") for n in range(2)]
    mine, other, theirs = *ours, hello(2, "b" * 40, "encoder-0", "guard")
    broker.receive(0.0, mine.life.encode(), mine)
    broker.receive(0.0, mine.life.encode(), Beat(mine.life, 1, "ready", ()))
    broker.receive(1.0, theirs.life.encode(), theirs)
    broker.check()
    assert set(broker.roster.lives) == {mine.life, theirs.life}
    broker.receive(2.0, other.life.encode(), other)  # its own successor does
    broker.check()
    assert set(broker.roster.lives) == {other.life, theirs.life}
    (refused,) = said(broker, 3.0, theirs.life, replace(theirs, endpoints=mine.endpoints))
    assert isinstance(refused, Refused)


def test_books_of_the_longest_names_fit_into_an_answer() -> None:
    broker = Broker(IF, 1, ())
    wide = "\U0001f98a"
    for n in range(300):
        life = f"{n}".rjust(NAMES, "x")
        one = replace(hello(n), life=life, name=life, host=wide * NAMES, device=wide * NAMES, numeric=wide * WORDS)
        assert said(broker, 0.0, life, one) == []
        said(broker, 0.0, "ann", Submit(f"{n}".rjust(64, "j"), LONGEST))
    (page,) = said(broker, 1.0, "ann", Inspect())
    assert isinstance(page, Books)
    assert (len(page.services), len(page.jobs), page.pages) == (100, 100, 3)
    assert TO_CLIENT.decode(TO_CLIENT.encode(page)) == page
    for wrong in ("life", "name", "host", "device"):
        longer = replace(hello(999), **{wrong: "x" * (NAMES + 1)})  # type: ignore[arg-type]
        assert isinstance(said(broker, 1.0, "x", longer)[0], Refused)
    (refused,) = said(broker, 1.0, "x", replace(hello(999), stage="x" * 60_000))
    assert isinstance(refused, Refused)
    assert len(refused.detail) < 2 * NAMES


def test_the_longest_table_is_told_in_one_message() -> None:
    letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    keys = [f"{letters[n // 62 % 62]}{letters[n % 62]}{n:038d}" for n in range(MOST_WORKERS + 1)]
    lines = [f"w{n} worker:{STAGES[n % 5]} {key}\n" for n, key in enumerate(keys)]
    table = Table("".join(lines[:-1]).encode())
    told = Trusted(2**40, (Peer(keys[-1], ""), *(Peer(e.public, e.role.partition(":")[2]) for e in table.entries)))
    assert TO_WORKER.decode(TO_WORKER.encode(told)) == told
    with pytest.raises(Misconfigured, match=f"line {MOST_WORKERS + 1}: more than {MOST_WORKERS} keys of workers"):
        Table("".join(lines).encode())


# ---- sockets, memory, the log


@pytest.fixture
def ctx() -> Iterator[sockets.Context]:
    made = sockets.context()
    yield made
    made.destroy(linger=0)


def test_long_answers_do_not_pile_up_for_who_does_not_read(ctx: sockets.Context) -> None:
    router, url = sockets.control_server(ctx, "tcp://127.0.0.1:0")
    stuck = ctx.socket(zmq.DEALER)
    for option, value in ((zmq.RCVHWM, 1), (zmq.RCVBUF, 4096), (zmq.ROUTING_ID, b"stuck")):
        stuck.setsockopt(option, value)
    stuck.connect(url)
    stuck.send(b"here")
    assert router.poll(20_000)
    router.recv_multipart()
    mail, long = Mail(router), Books(0, 1, (), (), {}, (), tuple((0.0, "x" * 500) for _ in range(200)))
    assert len(TO_CLIENT.encode(long)) > LARGE
    for _ in range(500):
        assert mail.send(b"stuck", long)
    assert not mail.room(b"stuck", RESULTS)
    assert mail.send(b"stuck", Accepted("j"))  # a short one goes behind those that were taken
    heard = 0
    while TO_CLIENT.decode(stuck.recv()) != Accepted("j"):
        heard += 1
        assert stuck.poll(20_000)
    assert heard < 100
    stuck.close()
    router.close()


def test_who_sends_without_end_is_hung_up_on(ctx: sockets.Context) -> None:
    """A message of ever more parts; one beside it that is only long, and one that says much, are heard."""
    router, url = sockets.control_server(ctx, "tcp://127.0.0.1:0")
    port = int(url.rpartition(":")[2])
    most = 1 << 20
    meter, now = Meter({port: most}), 0.0
    honest = sockets.control_client(ctx, url, b"honest")
    assert honest.poll(20_000, zmq.POLLOUT)
    heard = 0
    with socket.create_connection(("127.0.0.1", port)) as endless:
        endless.sendall(greeting() + ready())
        told = b""
        while b"READY" not in told:  # before that libzmq takes nothing
            told += endless.recv(4096)
        endless.settimeout(0.2)
        part, end = frame(b"x" * 500, 1) * 100, time.monotonic() + 60
        while meter.cut == 0:
            assert time.monotonic() < end, "it goes on for ever"
            with suppress(TimeoutError, ConnectionError):
                endless.sendall(part)
            honest.send(TO_COORDINATOR.encode(Hi()) + bytes(100_000))
            while router.poll(1):
                meter.heard(sockets.received(router, 2)[0])
                heard += 1
            now += 1.0
            meter.look(now)
        endless.settimeout(20)
        with suppress(ConnectionError):
            while endless.recv(65536):
                pass
    for _ in range(20):  # more than all that one may send without a word
        honest.send(bytes(100_000))
        assert router.poll(20_000)
        meter.heard(sockets.received(router, 2)[0])
        now += 1.0
        assert not meter.look(now)
    assert meter.cut == 1
    assert heard
    opened = len(os.listdir("/proc/self/fd"))
    meter.look(now + 10)
    assert len(os.listdir("/proc/self/fd")) == opened
    honest.close()
    router.close()


def test_memory_that_was_freed_goes_back() -> None:
    memory.tidy()  # what the tests before have freed would be taken again, and the process not grow by it
    tidy = memory.Tidy()
    tidy.look(0.0)
    least = memory.resident()
    held = [bytes(100_000) for _ in range(1000)]
    tidy.look(10.0)
    assert memory.resident() > least + 50_000_000
    del held
    tidy.look(20.0)
    assert memory.resident() < least + memory.MORE


def test_a_line_of_the_log_has_an_end() -> None:
    formatter = log._Lines()
    record = logging.LogRecord("ifmesh", logging.INFO, "", 0, "%s", ("x\n" * 100_000,), None)
    line = formatter.format(record)
    assert len(line) < 3 * log.LINE
    assert "\n" not in line
    assert line.endswith("characters)")
