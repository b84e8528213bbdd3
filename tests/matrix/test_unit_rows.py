"""Rows 4, 5, 25, 27, 39, 59 and 60: what one function or one mind does, with nothing around it."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest
import zmq

import ifmesh
from ifmesh import bags, chores, inlet
from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Book, Close, Command, Send
from ifmesh.journal import Journal
from ifmesh.keeper import Keeper
from ifmesh.log import Garbage
from ifmesh.protocol import (
    VERSION,
    Accepted,
    Beat,
    Endpoint,
    Header,
    Hello,
    Kind,
    Refused,
    Run,
    Submit,
    ToCoordinator,
)
from ifmesh.request import Request
from ifmesh.stage import Tensor
from ifmesh.wire import HEADER, TO_COORDINATOR, TO_WORKER, Garbled, VersionMismatch

FOX = Request("a fox", 7)
ENCODER = Hello("encoder", "enc.1", "enc", 1, "here", "cpu", (Endpoint("", "tcp://127.0.0.1:1"),), 2, "cpu")


def broker() -> Broker:
    """With a ready worker of the first stage."""
    made = Broker(IF, 1, (Endpoint("", "tcp://127.0.0.1:2"),))
    made.receive(0.0, b"enc.1", ENCODER)
    made.receive(0.0, b"enc.1", Beat("enc.1", 1, "ready", ()))
    return made


def said(commands: list[Command], to: bytes) -> list[object]:
    return [c.message for c in commands if isinstance(c, Send) and c.to == to]


def test_row_04_the_same_id_for_another_request() -> None:
    mind = broker()
    mind.receive(1.0, b"ann", Submit("a", FOX))
    token = mind.jobs["a"].token
    commands = mind.receive(1.0, b"bob", Submit("a", replace(FOX, seed=8)))
    (refused,) = said(commands, b"bob")
    assert isinstance(refused, Refused)
    assert refused.reason == "conflict"
    assert commands == [Send(b"bob", refused)], "the first is untouched"
    assert (mind.jobs["a"].request, mind.jobs["a"].token) == (FOX, token)


def test_row_05_the_same_id_from_two_clients_in_one_turn() -> None:
    mind = broker()
    commands = [c for peer in (b"ann", b"bob", b"ann") for c in mind.receive(1.0, peer, Submit("a", FOX))]
    assert sum(isinstance(c, Book) for c in commands) == 1
    assert sum(isinstance(c, Send) and isinstance(c.message, Run) for c in commands) == 1
    assert Accepted("a") in said(commands, b"ann")
    assert Accepted("a") in said(commands, b"bob")


KINDS: tuple[Kind, ...] = ("bag",)
FRAME = bags.encode({"image64": Tensor("U8", (3, 4, 4), bytes(48))})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame[:-1],
        lambda frame: frame[: len(frame) // 2],
        lambda frame: b"",
        lambda frame: frame + b"\0",
        *[lambda frame, at=at: frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :] for at in (0, 9, len(FRAME) - 1)],
    ],
)
def test_row_25_a_bag_is_corrupted_or_truncated(spoil: Callable[[bytes], bytes]) -> None:
    """Over a real link: its digest refuses it, it is counted, and the whole one behind it comes through."""
    header = Header("bag", "a", "stage_one", (1, 1), bags.digest(FRAME))
    garbage = Garbage()
    with zmq.Context() as ctx, ctx.socket(zmq.PULL) as pull, ctx.socket(zmq.PUSH) as push:
        push.linger = 0
        push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        push.send_multipart([HEADER.encode(header), spoil(FRAME)])
        push.send_multipart([HEADER.encode(header), FRAME])
        came: list[inlet.Delivery] = []
        while not came:
            assert pull.poll(30_000)
            came += inlet.deliveries(pull, KINDS, garbage)
    assert [(found, bytes(frame)) for found, frame in came] == [(header, FRAME)]
    assert garbage.total == 1


def test_row_27_a_bag_for_an_old_grant_or_an_old_life() -> None:
    mind = Keeper(ENCODER)
    mind.start(0.0)
    mind.loaded(0.0, "cpu")
    mind.receive(1.0, Run("a", (1, 5), FOX))
    assert mind.arrived(1.0, Header("bag", "a", "", (1, 4), "d"), FRAME) == []
    assert mind.arrived(1.0, Header("bag", "another", "", (1, 4), "d"), FRAME) == []
    assert mind.take(1.0)[0] is None
    (received,) = mind.arrived(1.0, Header("bag", "a", "", (1, 5), "d"), FRAME)
    assert isinstance(received, chores.Send)
    assert mind.arrived(1.0, Header("bag", "a", "", (1, 5), "d"), FRAME) == [], "twice"
    task, _ = mind.take(1.0)
    assert task is not None
    assert mind.take(1.0)[0] is None


@pytest.mark.parametrize(
    "prompt",
    ["x" * 2001, "\N{GRINNING FACE}" * 1025, "a." * 20_000, "a\0b", "a\x1bb", "", "  ", "a\ud800b"],
    ids=["characters", "bytes", "bomb", "NUL", "escape", "empty", "blank", "half a pair"],
)
def test_row_39_a_prompt_that_is_none(prompt: str) -> None:
    """The coordinator's half (the gateway answers 400 and 413): refused with the field, at once, and never journalled."""
    mind = broker()
    began = time.process_time()
    commands = mind.receive(1.0, b"bob", Submit("a", Request(prompt, 7)))
    assert time.process_time() - began < 0.25
    (command,) = commands
    assert isinstance(command, Send)
    assert isinstance(command.message, Refused)
    assert (command.message.reason, command.message.field) == ("invalid", "prompt")
    assert not mind.jobs
    assert len(command.message.detail) < 500


@pytest.mark.parametrize(
    "frame",
    [
        msgpack.packb({"v": VERSION, "is": "Submit", "job": "a", "request": {"prompt": "x" * (10 << 20), "seed": 7}}),
        msgpack.packb({"v": VERSION, "is": "Submit", "job": "a", "request": {"prompt": "x" * 70_000, "seed": 7}}),
        msgpack.packb({"v": VERSION, "is": "Submit", "job": "a", "request": {"prompt": "????", "seed": 7}}).replace(
            b"????", b"\xff\xfe\xc3\x28"
        ),
        msgpack.packb({"v": VERSION, "is": "Submit", "job": "a", "request": {"prompt": b"bytes", "seed": 7}}),
    ],
    ids=["10 MB", "70 kB", "not UTF-8", "bytes"],
)
def test_row_39_a_prompt_that_does_not_pass_the_door(frame: bytes) -> None:
    began = time.process_time()
    with pytest.raises(Garbled) as caught:
        TO_COORDINATOR.decode(frame)
    assert time.process_time() - began < 0.25
    assert len(str(caught.value)) < 300


def test_row_59_only_the_journal_looks_at_the_wall_clock() -> None:
    """Whatever runs out runs out by a monotonic clock, so a jump of the other cannot end it."""
    allowed = {
        "journal.py": "the age of a job, after a restart of the machine",
        "salvage.py": "an epoch for a journal that has lost its own",
        "cli_keys.py": "until when a key may be used",
        "cli_invite.py": "the same",
        "gate.py": "the same",
        "log.py": "the time in front of a line",
        "authorized.py": "until when a key may be used",
        "zap.py": "the same",
    }
    found = set()
    for path in Path(ifmesh.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                wall = (node.value.id, node.attr) in {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
                found |= {path.name} if wall else set()
    assert found <= allowed.keys(), f"{sorted(found - allowed.keys())}: may it be trusted not to jump?"


def aged(monkeypatch: pytest.MonkeyPatch, state: Path, jump: float) -> Broker:
    """A coordinator that was started again, a moment after it accepted a job of 60 seconds; meanwhile the wall clock has jumped."""
    journal = Journal.open(state)
    journal.commit([Book("a", replace(FOX, deadline=60.0))])
    journal.close()
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + jump)
    journal = Journal.open(state)
    mind = Broker(IF, journal.epoch, ())
    open_jobs, ended = journal.recover()
    journal.close()
    mind.recover(1000.0, open_jobs, ended)
    return mind


def test_row_59_the_wall_clock_jumps_back_over_a_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mind = aged(monkeypatch, tmp_path, -3600.0)
    assert not any(isinstance(c, Close) for c in mind.tick(1059.0))
    assert any(isinstance(c, Close) for c in mind.tick(1061.0))


def test_row_59_the_wall_clock_jumps_ahead_over_a_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mind = aged(monkeypatch, tmp_path, 3600.0)
    assert not any(isinstance(c, Close) for c in mind.tick(1001.0))


def test_row_60_the_next_version() -> None:
    frame = msgpack.packb({**msgpack.unpackb(TO_COORDINATOR.encode(ENCODER)), "v": VERSION + 1})
    with pytest.raises(VersionMismatch, match=f"version {VERSION + 1}.*version {VERSION}"):
        TO_COORDINATOR.decode(frame)
    answer = msgpack.packb(
        {"v": VERSION + 1, "is": "Refused", "job": "", "reason": "version", "detail": "no", "retry_after": 0.0, "field": ""}
    )
    with pytest.raises(VersionMismatch):
        TO_WORKER.decode(answer)


def test_row_60_who_is_refused_ends() -> None:
    mind = Keeper(ENCODER)
    mind.start(0.0)
    assert mind.receive(0.1, Refused("", "version", "run the same ifmesh on both sides")) == [
        chores.Stop("run the same ifmesh on both sides")
    ]


def test_row_60_an_unknown_message() -> None:
    with pytest.raises(Garbled, match="no message to the coordinator"):
        TO_COORDINATOR.decode(msgpack.packb({"v": VERSION, "is": "Dance", "life": "enc.1"}))


@pytest.mark.parametrize("message", [ENCODER, Submit("a", FOX), Beat("enc.1", 1, "ready", ())], ids=lambda m: type(m).__name__)
def test_row_60_an_unknown_field(message: ToCoordinator) -> None:
    frame = msgpack.packb({**msgpack.unpackb(TO_COORDINATOR.encode(message)), "later": [1, {"more": None}]})
    assert TO_COORDINATOR.decode(frame) == message
