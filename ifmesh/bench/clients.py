"""Client processes: started, told what to ask, and heard.  Each is one command, `ifmesh bench client`, at the other end of two pipes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from ifmesh import supervisor, typed
from ifmesh.bench.lines import Lines, Message
from ifmesh.bench.orders import Report, Run
from ifmesh.errors import MeshError

STARTING = 60.0
"""Seconds in which a client has to be ready."""

Command = Sequence[str]


def answers(lines: Sequence[Lines], over: Callable[[], bool], tell: Callable[[float], None]) -> list[Any]:
    """What each tells under "report".  Once it is over they are told to stop.  The rest: as in `Clients.run`."""
    began, stopped = time.monotonic(), False
    found = []
    for line in lines:
        while (told := line.heard("report")) is None:
            tell(time.monotonic() - began)
            if over() and not stopped:
                stopped = True
                for other in lines:
                    other.say({"stop": True})
        found.append(told)
    return found


def here() -> list[str]:
    """The command of a client on this host.  On another it may be reached in any way that brings two pipes along, as ssh does."""
    return supervisor.python("bench", "client")


class Clients:
    """commands: one of each client.  mesh: where it is, as in `orders`."""

    def __init__(self, commands: Sequence[Command], mesh: Message) -> None:
        self._commands, self._mesh = commands, mesh
        self._lines: list[Lines] = []

    def __enter__(self) -> Self:
        try:
            self._lines = [Lines(command, "a client process") for command in self._commands]
            for line in self._lines:
                line.say({"mesh": self._mesh})
            for line in self._lines:
                if line.heard("ready", STARTING) is None:
                    raise MeshError(f"a client process does not become ready within {STARTING:g} s")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def run(
        self, runs: Sequence[Run], over: Callable[[], bool] = lambda: False, tell: Callable[[float], None] = lambda s: None
    ) -> list[Report]:
        """One run for each client, at once.  over: asked now and then; once it is true nothing more is asked of the mesh.

        tell: is told how long it takes already.
        """
        for line, run in zip(self._lines, runs, strict=True):
            line.say({"run": asdict(run)})
        return [typed.build(Report, told, "report") for told in answers(self._lines, over, tell)]

    def _end(self) -> None:
        for line in self._lines:
            line.end()
