"""Client processes: started, told what to ask, and heard.  Each is one command, `ifmesh bench client`, at the other end of two pipes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from selectors import EVENT_READ, DefaultSelector
from types import TracebackType
from typing import Any, Self

from ifmesh import supervisor, typed
from ifmesh.bench.orders import Report, Run
from ifmesh.errors import MeshError

STARTING = 60.0
"""Seconds in which a client has to be ready."""
LOOK = 0.2
"""Seconds between two looks whether all is over."""

Message = dict[str, Any]
Command = Sequence[str]


def here() -> list[str]:
    """The command of a client on this host.  On another it may be reached in any way that brings two pipes along, as ssh does."""
    return supervisor.python("bench", "client")


class Clients:
    """commands: one of each client.  mesh: where it is, as in `orders`."""

    def __init__(self, commands: Sequence[Command], mesh: Message) -> None:
        self._commands, self._mesh = commands, mesh
        self._lines: list[_Line] = []

    def __enter__(self) -> Self:
        try:
            self._lines = [_Line(command) for command in self._commands]
            for line in self._lines:
                line.say({"mesh": self._mesh})
            for line in self._lines:
                line.hear("ready", STARTING)
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
        began, stopped = time.monotonic(), False
        reports: list[Report] = []
        for line in self._lines:
            while (told := line.heard("report", LOOK)) is None:
                tell(time.monotonic() - began)
                if over() and not stopped:
                    stopped = True
                    for other in self._lines:
                        other.say({"stop": True})
            reports.append(typed.build(Report, told, "report"))
        return reports

    def _end(self) -> None:
        for line in self._lines:
            line.end()


class _Line:
    """One client's two pipes."""

    def __init__(self, command: Command) -> None:
        # a group of its own: a terminal's Ctrl-C reaches the command that measures, which then says stop
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        self._selector = DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, EVENT_READ)

    def say(self, message: Message) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then its last word, or none, is heard
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def heard(self, key: str, limit: float) -> Any | None:
        """What it says under this key; None: nothing within so many seconds.  MeshError: it says why it cannot, or it has ended."""
        assert self._process.stdout is not None
        if not self._selector.select(limit):
            return None
        line = self._process.stdout.readline()
        if not line:
            raise MeshError(f"a client process ended: {supervisor.ending(self._process.wait())}")
        told: Message = json.loads(line)
        if "error" in told:
            raise MeshError(told["error"])
        return told[key]

    def hear(self, key: str, limit: float) -> Any:
        told = self.heard(key, limit)
        if told is None:
            raise MeshError(f"a client process does not become ready within {limit:g} s")
        return told

    def end(self) -> None:
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
            return
        self._process.kill()
        self._process.wait()
