"""Mutated frames through every decoder of ours: `python -m tests.fuzz.frames --count 1000000 --seed 1`.

Each may say that it is wrong, in the one way that is its own, and nothing else: no other exception, no hang, no memory that stays.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args

import msgpack  # type: ignore[import-untyped]
import zmq
from zmq.utils import z85

from ifmesh import bags, identity, table, typed, wire
from ifmesh.cascade import EMBEDS, IF, IMAGE64, RNG
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.identity import ROLES, Identity, Keys
from ifmesh.journal import Runs, Story
from ifmesh.protocol import Ended, Submit
from ifmesh.request import Request
from ifmesh.stage import Tensor
from ifmesh.wire import Door, Garbled
from tests.fuzz.mutants import damaged, twisted
from tests.unit.test_wire import BROUGHT, EVERY, FOX, RUN, example


@dataclass(frozen=True, slots=True)
class Target:
    """read: decodes, and looks whether what it has made is good.  refuses: the one way in which it may say no.  make: a mutant."""

    name: str
    read: Callable[[Any], object]
    refuses: type[Exception]
    make: Callable[[random.Random], Any]


@dataclass(slots=True)
class Report:
    """outcomes: how many mutants of each target were taken or refused.  wrong: what should not be.  slowest: CPU seconds of one."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    @property
    def count(self) -> int:
        return sum(self.outcomes.values())


def run(count: int, seed: int, every: Sequence[Target] | None = None, report: Report | None = None) -> Report:
    """count mutants, by turns for each target.  The same seed, the same mutants."""
    report, every = report or Report(), every or targets()
    dice = random.Random(seed)
    for n in range(count):
        target = every[n % len(every)]
        mutant = target.make(dice)
        began = time.process_time()
        try:
            target.read(mutant)
        except target.refuses as error:
            outcome = f"refused: {type(error).__name__}"
        except Exception as error:
            outcome = f"WRONG: {type(error).__name__}"
            report.wrong.append(f"{target.name}: {type(error).__name__}: {error}: {mutant!r:.400}")
        else:
            outcome = "taken"
        report.outcomes[target.name, outcome] += 1
        report.slowest = max(report.slowest, (time.process_time() - began, target.name))
    return report


# ---- what is read


def targets() -> tuple[Target, ...]:
    """Every decoder of ours, each with damaged bytes, and with what is well formed but makes no sense."""
    return (*_doors(), *_records(), *_bags(), *_typed(), *_invites(), *_tables())


def _packed(tree: object) -> bytes:
    """As msgpack; what it cannot hold is left out."""
    try:
        made: bytes = msgpack.packb(tree, unicode_errors="surrogatepass")
    except (ValueError, OverflowError, TypeError):
        return b"\xc1"
    return made


def _pair(name: str, seeds: Sequence[bytes], read: Callable[[Any], object]) -> Iterable[Target]:
    trees = [msgpack.unpackb(seed) for seed in seeds]
    yield Target(name, read, Garbled, lambda dice: damaged(dice, seeds))
    yield Target(f"{name}, twisted", read, Garbled, lambda dice: _packed(twisted(dice, dice.choice(trees))))


def _doors() -> Iterable[Target]:
    for door in {id(door): door for door, _ in EVERY}.values():
        messages = [example(cls) for own, cls in EVERY if own is door]
        messages += [Submit("job-2", FOX)] if Submit in {type(m) for m in messages} else []
        yield from _pair(f"message {door.name}", [door.encode(message) for message in messages], _through(door))


def _through(door: Door[Any]) -> Callable[[bytes], None]:
    def read(frame: bytes) -> None:
        message = door.decode(frame)
        assert door.decode(door.encode(message)) == message, "what was taken cannot be sent on"
        if isinstance(message, Submit):
            with suppress(BadRequest):
                IF.check(message.request)

    return read


def _records() -> Iterable[Target]:
    """What the journal holds: the same decoder, with larger limits."""
    kinds: list[tuple[type | UnionType, list[object]]] = [
        (Request, [FOX, BROUGHT]),
        (Ended, [example(cls) for cls in get_args(Ended)]),
        (Story, [Story(((0.0, "queued"), (1.5, "assigned")))]),
        (Runs, [Runs((RUN, RUN))]),
    ]
    for kind, records in kinds:
        name = getattr(kind, "__name__", "Ended")
        yield from _pair(f"record {name}", [wire.pack(record) for record in records], _unpacking(kind))


def _unpacking(kind: type | UnionType) -> Callable[[bytes], object]:
    def read(frame: bytes) -> object:
        return wire.unpack(kind, frame)

    return read


def _bags() -> Iterable[Target]:
    small = {
        "embeds": Tensor("F32", (1, 77, 2), bytes(616)),
        "rng": Tensor("U8", (5056,), bytes(5056)),
        "image64": Tensor("F16", (3, 4, 4), bytes(96)),
    }
    frames = [bags.encode(small), bags.encode({"a": Tensor("I64", (1,), bytes(8)), "b": Tensor("BOOL", (3, 1), bytes(3))})]

    def read(frame: bytes) -> None:
        bag = bags.decode(frame)
        assert bags.decode(bags.encode(bag)).keys() == bag.keys()

    def exact(frame: bytes) -> None:
        bag = bags.decode(frame, (EMBEDS, RNG, IMAGE64))
        assert {name: t.shape for name, t in bag.items()} == {name: t.shape for name, t in small.items()}

    def head(dice: random.Random) -> bytes:
        """With a header that is JSON, and its length right."""
        frame = dice.choice(frames)
        end = 8 + int.from_bytes(frame[:8], "little")
        text = json.dumps(twisted(dice, json.loads(frame[8:end])), default=repr).encode(errors="surrogatepass")
        return len(text).to_bytes(8, "little") + text + frame[end:]

    def bent(dice: random.Random) -> bytes:
        """Damaged within its header, mostly: the data is only bytes."""
        frame = dice.choice(frames)
        end = 8 + int.from_bytes(frame[:8], "little")
        return damaged(dice, [frame[:end]]) + frame[end:]

    yield Target("bag", read, Garbled, lambda dice: damaged(dice, frames))
    yield Target("bag, bent header", read, Garbled, bent)
    yield Target("bag, twisted header", read, Garbled, head)
    yield Target("bag, expected", exact, Garbled, bent)


def _typed() -> Iterable[Target]:
    trees = [(cls, typed.plain(example(cls))) for _, cls in EVERY]

    def read(chosen: tuple[type, Any]) -> None:
        typed.plain(typed.build(*chosen))

    def twist(dice: random.Random) -> tuple[type, Any]:
        cls, tree = dice.choice(trees)
        return cls, twisted(dice, tree)

    yield Target("typed", read, typed.Mismatch, twist)


def _keys(number: int) -> Keys:
    """The same for the same number."""
    secret: bytes = z85.encode(hashlib.sha256(str(number).encode()).digest())
    return Keys(zmq.curve_public(secret).decode(), secret.decode())


def _invites() -> Iterable[Target]:
    some = [Identity(f"name-{n}", role, _keys(n), _keys(-1).public, "tcp://10.0.0.7:7640") for n, role in enumerate(ROLES)]
    lines = [identity.dumps(each) for each in some]
    trees = [[each.name, each.role, each.keys.secret, each.server, each.coordinator] for each in some]

    def read(text: str) -> None:
        found = identity.loads(text)
        assert identity.loads(identity.dumps(found)) == found
        assert found.keys.secret not in repr(found)

    def signed(dice: random.Random) -> str:
        """With a good checksum."""
        body = json.dumps(twisted(dice, dice.choice(trees)), default=repr).encode(errors="surrogatepass")
        body = damaged(dice, [body]) if dice.random() < 0.3 else body
        whole = body + hashlib.sha256(b"ifmesh1." + body).digest()[:8]
        return "ifmesh1." + base64.urlsafe_b64encode(whole).decode().rstrip("=")

    encoded = [line.encode() for line in lines]
    yield Target("invite", read, Misconfigured, lambda dice: damaged(dice, encoded).decode(dice.choice(("latin-1", "utf-8")), "replace"))
    yield Target("invite, signed", read, Misconfigured, signed)


def _tables() -> Iterable[Target]:
    lines = [f"name-{n} {role} {_keys(n).public}" for n, role in enumerate(ROLES)]
    lines[::2] = [f"{line} 2027-01-31T12:00:00Z # why" for line in lines[::2]]
    texts = [table.HEAD + "\n".join(lines).encode() + b"\n", lines[0].encode(), "\r\n".join(lines[:2]).encode()]

    def read(text: bytes) -> None:
        found = table.Table(text)
        assert table.Table(found.text().encode()).entries == found.entries
        for entry in found.entries:
            if entry.until is not None:
                table.written(entry.until)

    yield Target("table of keys", read, Misconfigured, lambda dice: damaged(dice, texts))


# ---- the command


def peak() -> int:
    """Bytes of memory that this process has ever had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="mutants in all")
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args()
    every = targets()
    warm = run(max(1000, told.count // 100), told.seed - 1, every)  # caches are filled, and the largest mutants have been seen
    before, began = peak(), time.process_time()
    report, chunk = Report(), max(1, told.count // 20)
    for part in range(0, told.count, chunk):
        run(min(chunk, told.count - part), told.seed * 1000 + part // chunk, every, report)
        print(f"\r{report.count} of {told.count}", end="", file=sys.stderr, flush=True)
    seconds = time.process_time() - began
    print(file=sys.stderr)
    for (name, outcome), n in sorted(report.outcomes.items()):
        print(f"{n:>9}  {name}: {outcome}")
    print(f"{report.count} mutants (and {warm.count} before), {seconds:.0f} s of CPU, {report.count / seconds:.0f}/s")
    print(f"slowest: {report.slowest[0] * 1000:.1f} ms of CPU ({report.slowest[1]})")
    print(f"peak memory: {before / 1e6:.1f} MB, grew by {(peak() - before) / 1e6:.1f} MB")
    for line in [*warm.wrong, *report.wrong][:20]:
        print(f"WRONG  {line}")
    return 1 if warm.wrong or report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
