"""Proxies between the processes of a mesh, which can be closed: a partition without a network, for whoever has no namespaces.

Bytes pass as they are, encrypted or not.  A closed gate holds them as a network does that drops packets: TCP on both sides has them
still, and sends them when it heals, unless somebody gave up meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CLOSED = {"open": (), "both": ("up", "down"), "up": ("up",), "down": ("down",), "cut": ("up", "down")}
"""By state, the ways that nothing passes.  up: from who connects to who listens.  cut: connections break as well, old and new."""

LOOK = 2.0
"""Seconds between two looks whether those behind the socket files still live."""

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Gate:
    """One listener and what is behind it.  All of it runs in the loop of its `Gates`."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._state = "open"
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""
        self.set("open")

    async def listen(self, path: Path | None = None) -> None:
        """On a free port of loopback; path: on this socket file instead."""
        if path is not None:
            self._server = await asyncio.start_unix_server(self._came, path)
            return
        self._server = await asyncio.start_server(self._came, "127.0.0.1", 0)
        self.url = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def set(self, state: str) -> None:
        self._state = state
        for way, event in self._open.items():
            event.clear() if way in CLOSED[state] else event.set()
        if state == "cut":
            for writer in self._writers:
                writer.transport.abort()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()

    async def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._state == "cut":
                return
            await self._passed("up")
            await self._passed("down")  # a handshake needs both
            there, back = await self._dial()
            self._writers.add(back)
            try:
                await asyncio.gather(self._pump(reader, back, "up"), self._pump(there, writer, "down"))
            finally:
                self._writers.discard(back)
                back.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # nobody listens there now, or this gate is closed for good: as refused as if there were none
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """One way, until its end, which passes as bytes do: OSError ends the other way as well."""
        while some := await reader.read(1 << 16):
            await self._passed(way)
            writer.write(some)
            await writer.drain()
        await self._passed(way)
        raise ConnectionResetError

    async def _passed(self, way: str) -> None:
        await self._open[way].wait()


class Gates:
    """A thread with a loop, and gates by name: of the processes, before the coordinator's control port, and ("NAME inlet") of what is
    PUSHed to them, before their socket files.

    aim: where the coordinator listens is asked for at each connection.  sockets: the folder of the mesh's socket files.
    """

    def __init__(self, aim: Callable[[], tuple[str, int]], sockets: Path) -> None:
        self._aim, self._sockets = aim, sockets
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gates", daemon=True)
        self._gates: dict[str, Gate] = {}
        self._inlets: dict[Path, tuple[int, Gate]] = {}  # by socket file: the inode of our own, and the gate there
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, name: str) -> str:
        """Of the gate that stands between this process and the coordinator; made when it is not there."""
        return asyncio.run_coroutine_threadsafe(self._made(name), self._loop).result()

    def set(self, name: str, state: str) -> None:
        """The gate of this process: a key of CLOSED."""
        self._loop.call_soon_threadsafe(lambda: self._gates[name].set(state) if name in self._gates else None)

    def deafen(self, file: Path, state: str) -> bool:
        """The same for what is PUSHed to whoever has this socket file.  False: there is no gate."""
        found = self._inlets.get(file)
        if found is not None:
            self._loop.call_soon_threadsafe(found[1].set, state)
        return found is not None

    # ---- in the loop

    async def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _end(self) -> None:
        assert self._watching is not None
        self._watching.cancel()
        for gate in (*self._gates.values(), *(gate for _, gate in self._inlets.values())):
            gate.close()
        await asyncio.sleep(0)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _made(self, name: str) -> str:
        if name not in self._gates:
            gate = Gate(lambda: asyncio.open_connection(*self._aim()))
            await gate.listen()
            self._gates[name] = gate
        return self._gates[name].url

    async def _watch(self) -> None:
        """A socket file that a process has bound gets out of the way, and a gate takes its name: whoever connects from now on passes it."""
        again = 0.0
        while True:
            for path in self._sockets.iterdir() if self._sockets.exists() else ():
                with suppress(OSError):
                    await self._interpose(path)
            looked = time.monotonic() >= again
            for path in [p for p in self._inlets if not p.exists() or (looked and not await _heard(_behind(p)))]:
                self._inlets.pop(path)[1].close()
                path.unlink(missing_ok=True)
                _behind(path).unlink(missing_ok=True)
            again = time.monotonic() + LOOK if looked else again
            await asyncio.sleep(0.05)

    async def _interpose(self, path: Path) -> None:
        found = path.lstat()
        ours = self._inlets.get(path)
        if path.suffix or not path.is_socket() or (ours is not None and ours[0] == found.st_ino):
            return
        if ours is not None:  # bound anew: the one before is dead
            self._inlets.pop(path)[1].close()
        hidden = _behind(path)
        path.rename(hidden)
        gate = Gate(lambda: asyncio.open_unix_connection(hidden))
        await gate.listen(path)
        self._inlets[path] = (path.lstat().st_ino, gate)


async def _heard(path: Path) -> bool:
    """Does anybody listen on this socket file?"""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.transport.abort()
    return True


def _behind(path: Path) -> Path:
    return path.with_name(path.name + ".x")
