"""The floor: a bare chain of PUSH/PULL processes that pass the same safetensors frames on, without a coordinator, a queue or a promise.

`python -m ifmesh.bench.floor` is one process of it, which reads its orders from stdin, says where it listens, and ends with its stdin.
The sockets are those of the mesh (`sockets.inlet`, `outlet`), so that what differs is what is done with them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import zmq

from ifmesh import bags, identity, sockets, tied
from ifmesh.bench import stages
from ifmesh.bench.taken import Taken
from ifmesh.errors import MeshError
from ifmesh.identity import Keys
from ifmesh.request import STAGES, Request
from ifmesh.zap import Zap

CHAINS: dict[str, tuple[str, ...]] = {
    "chain": STAGES[:4],
    "relayed": (*STAGES[:4], "relay"),
    "guarded": (*STAGES, "relay"),
}
"""Processes, from first to last.  relayed: the last hop goes through one more process, as through a coordinator; this is the reference.
guarded: the same with a guard, which every picture of the mesh passes."""
REQUEST = Request("a red fox in the snow", 7, negative="blurry", stages=False)
LIMIT = 60.0
"""Seconds without any answer after which a chain is broken."""


class Chain:
    """A chain of that name, with this process at both of its ends.  transport: "ipc", "tcp" or "tcp+curve"."""

    def __init__(self, name: str, transport: str, tiny: bool = False) -> None:
        self._places, self._transport, self._tiny = CHAINS[name], transport, tiny
        self.processes: list[subprocess.Popen[bytes]] = []
        self._stack = ExitStack()
        self._number = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="ifmesh-floor-")))
            keys = identity.generate() if self._transport.endswith("curve") else None
            ctx = _context(keys)
            stack.callback(ctx.term)
            self._in, (url,) = sockets.inlet(ctx, [_listen(self._transport, folder / "end")], keys)
            stack.callback(self._in.close)
            for place, what in reversed(list(enumerate(self._places))):
                url = self._started(stack, _listen(self._transport, folder / str(place)), what, url, keys)
            self._out = sockets.outlet(ctx, url, keys, keys.public if keys else "")
            stack.callback(self._out.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def drive(self, in_flight: int, seconds: float, least: int, over: Callable[[], bool] = lambda: False) -> Taken:
        """A closed loop for so long, and for so many requests at the least; then whatever is under way ends."""
        poller = zmq.Poller()
        poller.register(self._in, zmq.POLLIN)
        begun: dict[bytes, float] = {}
        taken = Taken(in_flight)
        first = time.perf_counter()
        while True:
            now = time.perf_counter()
            more = (now - first < seconds or len(taken.ends) < least) and not over()
            if not more and not begun:
                return taken
            room = more and len(begun) < in_flight
            poller.register(self._out, zmq.POLLOUT if room else 0)
            ready = dict(poller.poll(int(LIMIT * 1000)))
            if not ready:
                raise MeshError(f"the bare chain over {self._transport} stands still for {LIMIT:g} s")
            if self._in in ready:
                number = self._in.recv_multipart(copy=False)[0].bytes
                now = time.perf_counter()
                taken.add(now - begun.pop(number), now - first)
            elif room and self._out in ready:
                self._number += 1
                number = b"%d" % self._number
                begun[number] = time.perf_counter()
                self._out.send_multipart([number, REQUEST.prompt.encode()])

    def _started(self, stack: ExitStack, listen: str, what: str, to: str, keys: Keys | None) -> str:
        """Where the new process listens."""
        safe = ["-P"] if sys.flags.safe_path else []
        words = [sys.executable, *safe, "-m", "ifmesh.bench.floor"]
        made = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        stack.callback(_end, made)
        self.processes.append(made)
        assert made.stdin is not None
        assert made.stdout is not None
        order = {"listen": listen, "what": what, "to": to, "keys": asdict(keys) if keys else None, "tiny": self._tiny}
        made.stdin.write(json.dumps(order).encode() + b"\n")
        made.stdin.flush()
        if not (url := made.stdout.readline().decode().strip()):
            raise MeshError(f"a process of the bare chain ended: exit {made.wait(LIMIT)}")
        return url


def serve(listen: str, what: str, to: str, keys: dict[str, str] | None, tiny: bool) -> None:
    """Pass on, for ever: what a stage of that name makes; a relay what it got."""
    own = Keys(**keys) if keys else None
    ctx = _context(own)
    inlet, (url,) = sockets.inlet(ctx, [listen], own)
    outlet = sockets.outlet(ctx, to, own, own.public if own else "")
    frame = b"" if what == "relay" else bags.encode(stages.bag(what, REQUEST, tiny))
    print(url, flush=True)
    while True:
        number, came = inlet.recv_multipart(copy=False)
        outlet.poll(-1, zmq.POLLOUT)
        outlet.send_multipart([number, frame or came], copy=False)


def _context(keys: Keys | None) -> sockets.Context:
    ctx = sockets.context()
    if keys is not None:
        Zap(ctx, lambda public: public == keys.public).start()
    return ctx


def _listen(transport: str, path: Path) -> str:
    return f"ipc://{path}" if transport == "ipc" else sockets.at("127.0.0.1")


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.kill()
    process.wait()


if __name__ == "__main__":
    orders: dict[str, Any] = json.loads(sys.stdin.readline())
    tied.to_stdin()
    serve(**orders)
