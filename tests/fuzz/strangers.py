"""What strangers say over a plain connection: nothing, nonsense, other protocols, and ZMTP in every way it can be wrong.

https://rfc.zeromq.org/spec/23/ (ZMTP 3.0), /spec/37/ (3.1), /spec/26/ (CurveZMQ).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tests.fuzz.mutants import damaged

Pace = Literal["at once", "byte by byte", "silent"]


@dataclass(frozen=True, slots=True)
class Talk:
    """One connection.  parts: said one after the other; in between something is waited for, if it comes.  pace: of each part."""

    parts: tuple[bytes, ...]
    pace: Pace = "at once"


@dataclass(frozen=True, slots=True)
class Overheard:
    """What a client with good keys said until its first message was through, part by part.  (): there are no keys to listen to."""

    parts: tuple[bytes, ...] = ()


def greeting(mechanism: bytes = b"NULL", major: int = 3, minor: int = 1, server: int = 0) -> bytes:
    return b"\xff" + bytes(7) + b"\x01\x7f" + bytes((major, minor)) + mechanism.ljust(20, b"\0")[:20] + bytes((server,)) + bytes(31)


def frame(body: bytes, flags: int = 0, size: int | None = None) -> bytes:
    """flags: 1 more, 2 long, 4 a command.  size: a lie."""
    told = len(body) if size is None else size
    if flags & 2 or told > 255:
        return bytes((flags | 2,)) + (told % 2**64).to_bytes(8, "big") + body
    return bytes((flags, told)) + body


def command(name: bytes, body: bytes = b"") -> bytes:
    return frame(bytes((len(name),)) + name + body, flags=4)


def ready(kind: bytes = b"DEALER", **properties: bytes) -> bytes:
    told = {"Socket-Type": kind, **properties}
    return command(b"READY", b"".join(bytes((len(k),)) + k.encode() + len(v).to_bytes(4, "big") + v for k, v in told.items()))


def _in(dice: random.Random) -> bytes:
    """As far as one gets without a key."""
    return greeting() + ready(dice.choice((b"DEALER", b"PUSH", b"REQ")))


def _random(dice: random.Random, _: Overheard) -> Talk:
    return Talk((dice.randbytes(dice.choice((1, 9, 64, 65, 1000, 20_000))),))


def _http(dice: random.Random, _: Overheard) -> Talk:
    first = dice.choice((b"GET / HTTP/1.1", b"POST /generate HTTP/1.0", b"PRI * HTTP/2.0", b"\xffGET /"))
    return Talk((first + b"\r\nHost: mesh\r\nContent-Length: 99999999999\r\n\r\n" + b"a" * dice.choice((0, 5000)),))


def _tls(dice: random.Random, _: Overheard) -> Talk:
    hello = b"\x01\x00\x01\xfc\x03\x03" + dice.randbytes(32) + b"\x20" + dice.randbytes(32) + b"\x00\x02\x13\x01\x01\x00" + bytes(200)
    return Talk((b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello, dice.randbytes(100)))


def _cut_greeting(dice: random.Random, _: Overheard) -> Talk:
    whole = greeting(dice.choice((b"NULL", b"CURVE", b"PLAIN", b"GSSAPI"))) + ready()
    return Talk((whole[: dice.randrange(len(whole))],))


def _bent_greeting(dice: random.Random, _: Overheard) -> Talk:
    whole = greeting(dice.choice((b"NULL", b"CURVE", b"PLAIN")), server=dice.randrange(2))
    return Talk((damaged(dice, [whole]), ready()))


def _old_version(dice: random.Random, _: Overheard) -> Talk:
    """1.0 has no greeting, 2.0 a short one; 0 and 99 there never were."""
    match dice.randrange(4):
        case 0:
            return Talk((b"\x01\x00" + b"\x06\x00hello" * dice.randint(1, 50),))
        case 1:
            return Talk((b"\xff" + bytes(7) + b"\x01\x7f\x01" + bytes((dice.randrange(12),)) + b"\x00\x00" + frame(b"hello") * 5,))
        case 2:
            return Talk((greeting(major=dice.choice((0, 1, 2, 4, 99)), minor=dice.randrange(256)), ready()))
        case _:
            return Talk((b"\x02\x00\x05hello" * 3 + b"\xff" * 8 + b"\x7f",))


def _ready_bomb(dice: random.Random, _: Overheard) -> Talk:
    kind = dice.choice((b"DEALER", b"PUSH"))
    many = {f"X-{n}": b"v" * dice.choice((0, 1, 300)) for n in range(dice.choice((10, 2000)))}
    said = dice.choice(
        (
            ready(kind, **many),
            ready(kind, Identity=b"\0" * dice.choice((1, 255, 300, 70_000))),
            ready(kind * 100),
            command(b"READY", b"\x0bSocket-Type" + b"\xff\xff\xff\xff" + b"x" * 1000),
            command(b"READY", b"\xff" * 1000),
            frame(b"\x05READY", 4, size=2**62) + b"x" * 5000,
            ready(kind) * 500,
        )
    )
    return Talk((greeting(), said))


def _long(dice: random.Random, _: Overheard) -> Talk:
    size = dice.choice((2**63, 2**63 - 1, 2**64 - 1, 2**40, 2**31, (64 << 20) + 1))
    return Talk((_in(dice), frame(dice.randbytes(3000), dice.choice((0, 1)), size=size)))


def _endless(dice: random.Random, _: Overheard) -> Talk:
    """A message whose last frame never comes."""
    return Talk((_in(dice), frame(dice.randbytes(dice.choice((0, 1, 1000))), 1) * dice.choice((10, 20_000))))


def _loris(dice: random.Random, heard: Overheard) -> Talk:
    whole = dice.choice((greeting() + ready() + frame(b"x" * 40), b"".join(heard.parts) or greeting(b"CURVE")))
    return Talk((whole[:120],), "byte by byte")


def _silent(dice: random.Random, _: Overheard) -> Talk:
    return Talk(dice.choice(((), (greeting(),), (b"\xff",), (_in(dice),))), "silent")


def _pings(dice: random.Random, _: Overheard) -> Talk:
    junk = (
        command(b"PING", b"\x00\x01" + b"c" * dice.choice((0, 16, 17, 200))),
        command(b"PING"),
        command(b"PONG", dice.randbytes(dice.randrange(300))),
        command(b"PING", b"\xff\xff") * 3000,
        command(b"PONG") * 3000,
    )
    return Talk((_in(dice), dice.choice(junk)))


def _commands(dice: random.Random, _: Overheard) -> Talk:
    """What has its place in the handshake, or in another pattern, or nowhere."""
    name = dice.choice(
        (b"READY", b"ERROR", b"HELLO", b"WELCOME", b"INITIATE", b"MESSAGE", b"SUBSCRIBE", b"CANCEL", b"JOIN", b"X" * 250, b"")
    )
    body = dice.choice((b"", b"\xff", b"\xff" * 200, dice.randbytes(100)))
    return Talk(
        (_in(dice), dice.choice((command(name, body), frame(b"\xff" + name, 4), frame(b"", 4), frame(b"", 0xFF), command(name) * 100)))
    )


def _null(dice: random.Random, _: Overheard) -> Talk:
    return Talk((_in(dice), frame(dice.randbytes(dice.randrange(400)), dice.randrange(2)) * dice.randint(1, 40)))


def _curve_bent(which: int) -> Callable[[random.Random, Overheard], Talk]:
    """A good handshake up to there, then with damage.  Without one to listen to: lengths and names that are right, and noise."""

    def make(dice: random.Random, heard: Overheard) -> Talk:
        parts = heard.parts
        if len(parts) <= which:
            noise = command(b"HELLO", b"\x01\x00" + bytes(72) + dice.randbytes(32 + 8 + 80))
            parts = (greeting(b"CURVE"), noise, command(b"INITIATE", dice.randbytes(96 + 8 + 200)))
        bent = damaged(dice, [parts[which]]) if dice.random() < 0.8 else parts[which]  # as it was: said again, by another
        return Talk((*parts[:which], bent, *parts[which + 1 :]))

    return make


CLASSES: Mapping[str, Callable[[random.Random, Overheard], Talk]] = {
    "random bytes": _random,
    "http": _http,
    "tls": _tls,
    "greeting cut": _cut_greeting,
    "greeting bent": _bent_greeting,
    "old zmtp": _old_version,
    "ready bomb": _ready_bomb,
    "long frame": _long,
    "endless frames": _endless,
    "byte by byte": _loris,
    "silent": _silent,
    "ping and pong": _pings,
    "commands": _commands,
    "null frames": _null,
    "curve hello": _curve_bent(1),
    "curve initiate": _curve_bent(2),
}
"""By name: how one connection is made up."""
