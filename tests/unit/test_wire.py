"""Every message through its door; everything else stopped at it."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import msgpack  # type: ignore[import-untyped]
import pytest

from ifmesh import protocol, typed, wire
from ifmesh.commands import Book
from ifmesh.protocol import (
    Accepted,
    Beat,
    Books,
    Cancel,
    Cancelled,
    Ended,
    Endpoint,
    Failed,
    Finished,
    Header,
    Held,
    Hello,
    JobRow,
    Peer,
    Queued,
    Refused,
    Result,
    Run,
    ServiceRow,
    StageRun,
    Submit,
    Verdicts,
    Welcome,
)
from ifmesh.request import STAGES, Request, Settings
from ifmesh.wire import HEADER, TO_CLIENT, TO_COORDINATOR, TO_PARENT, TO_WORKER, Door, Garbled, VersionMismatch, pack, unpack

DOORS: list[Door[Any]] = [TO_COORDINATOR, TO_WORKER, TO_CLIENT, TO_PARENT, HEADER]
UNIONS: list[object] = [protocol.ToCoordinator, protocol.ToWorker, protocol.ToClient, protocol.ToParent, Header]

FOX = Request("a fox", 2**63 - 1, settings={"stage_one": Settings(timesteps=(999, 500, 0), guidance=7.0)}, deadline=60.0)
BROUGHT = replace(FOX, task="inpaint", brings=("source", "mask"), upload="ab" * 32, tied=True)
RUN = StageRun("encoder", "encoder-0", 7, "cpu", 0.1, 0.2, 1, 0, 1000, 1)

VALUES: dict[str, Any] = {
    "request": BROUGHT,
    "token": (3, 4),
    "lease": (3, 5),
    "peers": (Peer("k" * 40, "stage_one"), Peer("k" * 40, "")),
    "endpoints": (Endpoint("h", "ipc://x"), Endpoint("", "tcp://127.0.0.1:1")),
    "inlet": (Endpoint("h", "ipc://x"), Endpoint("", "tcp://127.0.0.1:1")),
    "to": (Endpoint("", "tcp://127.0.0.1:1"),),
    "held": (Held("a", (1, 2), "running", 3, 27), Held("b", (1, 3), "done", digest="ff", size=9, seconds=0.5)),
    "drop": (("a", (1, 2)), ("b", (1, 3))),
    "release": (("c", (1, 4)),),
    "runs": (RUN,),
    "services": (ServiceRow("stage_one-0", "stage_one", 1, "h", "cpu", "busy", 1, 2, 3, 0.5, "n"),),
    "jobs": (JobRow("a", "running", "stage_one", 1, 27, "stage_one-0", 1.5, "a fox"),),
    "queued": {"encoder": 0, "stage_one": 3},
    "story": ((0.0, "queued"), (1.5, "assigned")),
    "stages": ("encoder", "guard"),
    "missing": ("guard",),
    "trips": (0.25, 0.5),
    "job": "job-1",
    "reason": "busy",
    "state": "ready",
    "cause": {"Failed": "poison", "Exited": "crashed"},
    "fault": "stage",
    "kind": {"Push": "result", "Header": "bag"},
}
BY_TYPE: dict[str, Any] = {"str": "text", "int": 5, "float": 1.5, "bool": True}


def example(cls: type) -> Any:
    """A message with something in each of its fields."""
    given = {}
    for f in fields(cls):
        value = VALUES.get(f.name, BY_TYPE.get(str(f.type)))
        given[f.name] = value[cls.__name__] if isinstance(value, dict) and cls.__name__ in value else value
    return cls(**given)


EVERY = [(door, cls) for door, union in zip(DOORS, UNIONS, strict=True) for cls in (get_args(union) or (union,))]


def frame(**fields: object) -> bytes:
    made: bytes = msgpack.packb({"v": protocol.VERSION, **fields})
    return made


@pytest.mark.parametrize(("door", "cls"), EVERY, ids=lambda x: getattr(x, "__name__", ""))
def test_every_message_goes_through_its_door(door: Door[Any], cls: type) -> None:
    message = example(cls)
    encoded = door.encode(message)
    assert door.decode(encoded) == message
    assert door.decode(memoryview(encoded)) == message
    assert msgpack.unpackb(encoded)["is"] == cls.__name__


@pytest.mark.parametrize("door", DOORS, ids=lambda d: d.name)
def test_a_message_at_the_wrong_door_is_refused_both_ways(door: Door[Any]) -> None:
    own = {cls for d, cls in EVERY if d is door}
    for other, cls in EVERY:
        if cls in own:
            continue
        with pytest.raises(Garbled, match=f"{cls.__name__} is no message {door.name}"):
            door.encode(example(cls))
        with pytest.raises(Garbled):
            door.decode(other.encode(example(cls)))


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    assert TO_COORDINATOR.decode(frame(**{"is": "Cancel"}, job="a", colour="red")) == Cancel("a")
    data = {"is": "Submit", "job": "a", "request": {"prompt": "x", "seed": 1}}
    assert TO_COORDINATOR.decode(frame(**data)) == Submit("a", Request("x", 1))


def test_another_version_is_told_with_both_in_the_text() -> None:
    for theirs in (0, protocol.VERSION - 1, protocol.VERSION + 1, -1, 2**64 - 1):
        with pytest.raises(VersionMismatch, match=f"version {theirs}.*version {protocol.VERSION}") as caught:
            TO_COORDINATOR.decode(msgpack.packb({"v": theirs, "is": "Whatever", "new": [1]}))
        assert (caught.value.ours, caught.value.theirs) == (protocol.VERSION, theirs)


REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "no map": msgpack.packb([1, 2]),
    "a scalar": msgpack.packb(3),
    "no version": msgpack.packb({"is": "Hi"}),
    "a version that is none": msgpack.packb({"v": "1", "is": "Hi"}),
    "true for a version": msgpack.packb({"v": True, "is": "Hi"}),
    "no name": frame(),
    "a name that is none": frame(**{"is": ["Hi"]}),
    "a name nobody has": frame(**{"is": "Sumbit"}),
    "a number for a name": frame(**{"is": 3}),
    "a missing field": frame(**{"is": "Cancel"}),
    "a field of another type": frame(**{"is": "Cancel"}, job=3),
    "bytes for text": frame(**{"is": "Cancel"}, job=b"a"),
    "bytes for a key": msgpack.packb({b"v": protocol.VERSION, "is": "Hi"}),
    "a number for a key": msgpack.packb({"v": protocol.VERSION, "is": "Hi", 3: 4}),
    "NaN": frame(**{"is": "Submit"}, job="a", request={"prompt": "x", "seed": 1, "deadline": float("nan")}),
    "infinity": frame(**{"is": "Submit"}, job="a", request={"prompt": "x", "seed": 1, "keep": float("inf")}),
    "text that is no UTF-8": frame(**{"is": "Cancel"}, job=b"X").replace(b"\xc4\x01X", b"\xa1\xff"),
    "an extension": frame(**{"is": "Hi"}, x=msgpack.ExtType(4, b"abc")),
    "a timestamp": frame(**{"is": "Hi"}, x=msgpack.Timestamp(1, 2)),
    "two frames in one": frame(**{"is": "Hi"}) * 2,
    "half a frame": frame(**{"is": "Cancel"}, job="abcdef")[:-3],
    "a claimed length": b"\xdf\xff\xff\xff\xff",
    "deep nesting": b"\x91" * 5000 + b"\x01",
    "deep nesting in a field": frame(**{"is": "Hi"}, x=1)[:-1] + b"\x91" * 900 + b"\x01",
    "long text": frame(**{"is": "Cancel"}, job="a" * 70_000),
    "a long list": frame(**{"is": "Hi"}, x=[0] * 5000),
    "many keys": frame(**{"is": "Hi"}, **{f"k{i}": 0 for i in range(300)}),
    "a frame above the limit": frame(**{"is": "Hi"}, **{f"k{i}": "a" * 60_000 for i in range(5)}),
}


@pytest.mark.parametrize("name", [n for n in REFUSED if n != "deep nesting in a field"])
def test_what_is_no_message_is_garbled(name: str) -> None:
    with pytest.raises(Garbled):
        TO_COORDINATOR.decode(REFUSED[name])


def test_the_error_never_holds_what_was_sent() -> None:
    secret = "hunter2"
    settings = {"prompt": "x", "seed": 1, "settings": {secret: {"steps": secret}}}
    for data in (
        frame(**{"is": secret}),
        frame(**{"is": "Cancel"}, job=[secret]),
        frame(**{"is": "Submit"}, job=secret, request={"prompt": secret, "seed": secret}),
        frame(**{"is": "Submit"}, job="a", request=settings),
        frame(**{"is": "Submit"}, job="a", request={"prompt": "x", "seed": 1, "seeding": secret}),
        frame(**{"is": "Cancel"}, **{secret: 1}),
        secret.encode(),
    ):
        with pytest.raises(Garbled) as caught:
            TO_COORDINATOR.decode(data)
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None


def test_what_we_could_not_read_is_not_sent() -> None:
    for message, why in (
        (Cancel("a" * 300_000), "at most"),
        (Cancel("a" * 70_000), "not msgpack"),
        (Cancel("\ud800"), "cannot be encoded"),
        (Submit("a", replace(FOX, deadline=float("nan"))), "cannot be encoded"),
        (Submit("a", replace(FOX, seed=2**70)), "cannot be encoded"),
        (Beat("w", 1, "ready", (Held("a", (1, 2), "running"),) * 5000), "at most"),
    ):
        with pytest.raises(Garbled, match=why):
            TO_COORDINATOR.encode(message)


def test_the_largest_of_what_we_send_fits() -> None:
    text = "\N{GRINNING FACE}" * 1000
    settings = {s: Settings(timesteps=tuple(range(999, -1, -1)), strength=0.3) for s in STAGES}
    request = replace(BROUGHT, prompt=text, negative=text, settings=settings, brings=("source", "mask", "embeds", "rng"))
    assert TO_COORDINATOR.decode(TO_COORDINATOR.encode(Submit("a", request)))
    assert TO_WORKER.decode(TO_WORKER.encode(Run("a", (1, 2), request)))
    held = tuple(Held("j" * 64, (2**60, 2**60), "running", 999, 1000, "f" * 32, 2**40, 0.1) for _ in range(1000))
    assert TO_COORDINATOR.decode(TO_COORDINATOR.encode(Beat("w", 1, "ready", held)))
    assert TO_WORKER.decode(TO_WORKER.encode(Verdicts(1, tuple(("j" * 64, (2**60, 2**60)) for _ in range(1000)))))
    service = ServiceRow("s" * 40, "stage_one", 1, "h" * 16, "cuda:0", "draining", 1, 1, 1, 0.1, "n" * 300)
    job = JobRow("j" * 64, "running", "stage_one", 1, 1, "w" * 40, 0.1, "\N{GRINNING FACE}" * 60)
    books = Books(0, 1, (service,) * 100, (job,) * 100, dict.fromkeys(STAGES, 1), (), ((0.1, "s" * 300),) * 200, (RUN,) * 5)
    assert TO_CLIENT.decode(TO_CLIENT.encode(books)) == books
    welcome = Welcome(STAGES, 3, 2000, (Endpoint("h" * 16, "ipc://" + "x" * 107), Endpoint("", "tcp://127.0.0.1:65535")))
    assert TO_CLIENT.decode(TO_CLIENT.encode(welcome)) == welcome
    result = Result("j" * 64, "f" * 64, request)
    assert TO_CLIENT.decode(TO_CLIENT.encode(result)) == result
    for kind in get_args(protocol.Kind):
        header = Header(kind, "j" * 64, "stage_one", (2**60, 2**60), "f" * 32)
        assert HEADER.decode(HEADER.encode(header)) == header


def test_records_of_the_journal_go_out_and_come_back() -> None:
    endings: list[Ended] = [Finished("a", "ff", 3, 4, True, (RUN,)), Failed("b", "poison", "guard", "w", "boom"), Cancelled("c")]
    for ending in endings:
        assert unpack(Ended, pack(ending)) == ending
    assert unpack(Request, pack(FOX)) == FOX
    assert unpack(Book, pack(Book("a", FOX))) == Book("a", FOX)
    with pytest.raises(Garbled):
        unpack(Ended, pack(FOX))
    with pytest.raises(Garbled):
        unpack(Request, b"\x00garbage")


SEEDS = {
    "to the coordinator": [Submit("a", BROUGHT, previews=True), example(Hello), example(Beat), example(protocol.Done)],
    "to a worker": [Run("a", (1, 2), FOX), example(Verdicts), example(protocol.Push)],
    "to a client": [
        example(Books),
        example(Finished),
        example(Welcome),
        example(Result),
        Accepted("a"),
        Queued("a", "guard", 3),
        Refused("a", "busy", "full", 2.0),
    ],
    "to a worker's parent": [protocol.Kill("w"), Refused("", "version", "x")],
    "before a bag": [example(Header)],
}


def mutated(dice: random.Random, seeds: list[bytes]) -> bytes:
    """One to four small or large damages."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.choice(b"\x00\x7f\x80\x90\xa0\xc0\xc1\xc4\xc7\xca\xcb\xcf\xd3\xd4\xd9\xdb\xdc\xdd\xde\xdf\xff")
            case 2:
                del data[at:]
            case 3:
                data[at:at] = dice.randbytes(dice.randint(1, 8))
            case 4:
                del data[at : at + dice.randint(1, 8)]
            case _:
                other = dice.choice(seeds)
                cut = dice.randrange(len(other) + 1)
                data[at : at + dice.randint(0, 30)] = other[cut : cut + dice.randint(1, 30)]
    return bytes(data)


@pytest.mark.parametrize("door", DOORS, ids=lambda d: d.name)
def test_20000_damaged_frames_give_a_message_or_garbled(door: Door[Any]) -> None:
    dice = random.Random(door.name)
    seeds = [door.encode(message) for message in SEEDS[door.name]]
    own = tuple(cls for d, cls in EVERY if d is door)
    taken = refused = 0
    for _ in range(20_000):
        try:
            message = door.decode(mutated(dice, seeds))
        except Garbled:
            refused += 1
        else:
            taken += 1
            assert isinstance(message, own)
            assert door.decode(door.encode(message)) == message, "what was taken can be sent on"
    assert refused > 10_000
    assert taken > 100


def test_noise_is_garbled() -> None:
    dice = random.Random(7)
    for _ in range(20_000):
        with pytest.raises(Garbled):
            TO_COORDINATOR.decode(dice.randbytes(dice.randint(0, 60)))


def test_a_bomb_of_empty_maps_stays_small() -> None:
    """As many of the smallest containers as the frame limit lets through, in a process of its own whose memory we can limit."""
    code = (
        "import resource, sys\n"
        "from ifmesh import wire\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))\n"
        "inner = b'\\xdc\\x0f\\xff' + b'\\x80' * 4095\n"
        "frame = b'\\x83\\xa1v' + bytes([wire.VERSION]) + b'\\xa2is\\xa2Hi\\xa1x\\xdc\\x00\\x3f' + inner * 63\n"
        "assert len(frame) < 256 << 10\n"
        "wire.TO_COORDINATOR.decode(frame)\n"
    )
    root = Path(wire.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_nested_junk_in_a_field_that_nobody_reads_does_no_harm() -> None:
    assert TO_COORDINATOR.decode(REFUSED["deep nesting in a field"]) == protocol.Hi()


def test_the_limits_are_those_of_the_types() -> None:
    assert wire._LIMITS["max_array_len"] == typed.MOST_ENTRIES
    assert wire._LIMITS["max_map_len"] == typed.MOST_KEYS
