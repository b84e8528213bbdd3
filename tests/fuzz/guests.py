"""What ZeroMQ peers send that have no business here, or that have, and have lost their minds: by which key, and in how many parts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import msgpack  # type: ignore[import-untyped]

from ifmesh import bags, sockets
from ifmesh.protocol import Bye, Endpoint, Exited, Header, Hello, Hi, Kind, Watch
from ifmesh.stage import Tensor
from ifmesh.wire import HEADER, TO_COORDINATOR
from tests.fuzz.mutants import damaged, twisted
from tests.unit.test_wire import EVERY, example

Message = list[bytes]

SPOKEN = [door.encode(example(cls)) for door, cls in EVERY]
BAG = bags.encode({"embeds": Tensor("F16", (2, 7, 16), bytes(448)), "rng": Tensor("U8", (5056,), bytes(5056))})
KINDS: tuple[Kind, ...] = get_args(Kind)


def words(dice: random.Random, lives: Sequence[str]) -> list[Message]:
    """To the ROUTER.  lives: of the workers."""
    match dice.randrange(8):
        case 0:
            return [[_packed(twisted(dice, msgpack.unpackb(dice.choice(SPOKEN))))] for _ in range(20)]
        case 1 | 2:
            return [[damaged(dice, SPOKEN)] for _ in range(20)]
        case 3:
            return [[one] for one in SPOKEN]  # of every role, whatever this one is
        case 4:
            return [[TO_COORDINATOR.encode(said)] for said in _lies(dice, lives)]
        case 5:
            return [many(dice)]
        case 6:
            return [[bytes(sockets.CONTROL_LIMIT + dice.choice((0, 1)))], [TO_COORDINATOR.encode(Hi())]]
        case _:
            flood = dice.choice((b"", b"\x80", TO_COORDINATOR.encode(Watch(f"j{dice.random()}")), damaged(dice, SPOKEN)))
            return [[flood]] * dice.choice((100, 3000))


def deliveries(dice: random.Random) -> list[Message]:
    """To a PULL."""
    match dice.randrange(7):
        case 0:
            return [[damaged(dice, [_header(dice, BAG)]), BAG] for _ in range(20)]
        case 1:
            bent = [damaged(dice, [BAG]) for _ in range(20)]
            return [[_header(dice, one), one] for one in bent]
        case 2:
            return [[_header(dice, BAG, kind), BAG] for kind in KINDS]
        case 3:
            return [[damaged(dice, SPOKEN)] * dice.randint(1, 4) for _ in range(20)]
        case 4:
            return [many(dice)]
        case 5 if dice.random() < 0.05:
            return [[_header(dice, BAG), bytes(sockets.DATA_LIMIT + 1)]]
        case 5:
            return [[_header(dice, BAG), b"not that"] for _ in range(20)]
        case _:
            return [[_header(dice, BAG), BAG]] * dice.choice((50, 500))


def many(dice: random.Random) -> Message:
    """More parts than anybody wants."""
    return [dice.randbytes(dice.choice((0, 1, 50)))] * dice.choice((3, 300, 10_000))


def name(dice: random.Random, tag: str, lives: Sequence[str]) -> bytes:
    """A routing id: a good one, one of somebody else, or none that could be."""
    return dice.choice(
        (
            f"{tag}rude.{dice.random()}".encode(),
            f"{tag}{dice.random()}".encode(),
            dice.choice(lives).encode(),
            f"{dice.choice(lives)}/parent".encode(),
            f"0123456789abcdef.{dice.random()}".encode(),
            b"\xff" * dice.choice((1, 255)),
            dice.randbytes(17).replace(b"\0", b"x"),
        )
    )


def _lies(dice: random.Random, lives: Sequence[str]) -> list[Hello | Bye | Exited]:
    """In the names of others."""
    life = dice.choice(lives)
    hello = Hello("guard", life, f"nobody-{dice.random()}", 1, "", "cpu", (Endpoint("", "tcp://127.0.0.1:9", "k" * 40),), 2**40, "n" * 5000)
    return [Bye(life), Exited(life, "crashed", "x" * 60_000, life, (life,)), hello, replace(hello, stage="x" * 60_000)]


def _header(dice: random.Random, bag: bytes, kind: Kind = "bag") -> bytes:
    token = (1, dice.randrange(10**6))
    digest = bags.digest(bag) if dice.random() < 0.9 else "0" * 32
    return HEADER.encode(Header(kind, f"j{dice.randrange(10**9)}", dice.choice(("encoder", "stage_one", "guard")), token, digest))


def _packed(tree: object) -> bytes:
    try:
        made: bytes = msgpack.packb(tree, unicode_errors="surrogatepass")
    except (ValueError, OverflowError, TypeError):
        return b"\xc1"
    return made
