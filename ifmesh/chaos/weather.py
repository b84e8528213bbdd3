"""Carries the schedule out: signals to processes, gates that close, bad bytes.  Whatever it does it writes down.

Only processes are signalled that the supervisor started and has not yet fetched the end of, and their children.
"""

from __future__ import annotations

import heapq
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue

from ifmesh.chaos.gates import Gates
from ifmesh.chaos.history import STATE, History
from ifmesh.chaos.schedule import Event
from ifmesh.chaos.strangers import Strangers
from ifmesh.places import socket_file
from ifmesh.supervisor import Service

AGAIN = 0.1
"""Seconds after which a kill is tried again, whose target has no process just now ..."""
TRIES = 50
"""... and how often."""
DOWN = 3
"""While so many are down, the weather's clock stands still: a slow machine makes a run longer, not harder ..."""
PATIENCE = 20.0
"""... but whoever is not back after so many seconds is waited for no more."""
IDLE = 8.0
"""Seconds that a kill waits for its worker to be given a job."""


class Weather:
    """services: by name, as the supervisor keeps them.  folder: of the run; the command line of each names it.

    strangers: makes them, when the coordinator's address is known.
    """

    def __init__(
        self, services: Mapping[str, Service], gates: Gates, history: History, folder: Path, strangers: Callable[[], Strangers]
    ) -> None:
        self._services, self._gates, self._history, self._folder = services, gates, history, folder
        self._make_strangers = strangers
        self._strangers: Strangers | None = None
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self._stopped: set[int] = set()
        self.clock = 0.0  # seconds of weather so far
        self._down: dict[str, float] = {}  # killed and not back yet: since when
        self._armed: dict[str, list[Event]] = {}
        self._grants: SimpleQueue[str] = SimpleQueue()

    def run(self, events: Sequence[Event], seconds: float, over: Callable[[], bool]) -> None:
        """All of it, for so many seconds of its clock, then whatever still has to heal.  over: asked often; then the rest is left out."""
        todo = deque(events)
        last = time.monotonic()
        while not over() and (todo or self._due or self.clock < seconds):
            pauses = [0.05, *([todo[0].at - self.clock] if todo else []), *([self._due[0][0] - last] if self._due else [])]
            self._wait(min(pauses))
            now = time.monotonic()
            if not self._behind(now):
                self.clock += now - last
            last = now
            while todo and todo[0].at <= self.clock:
                self._happen(todo.popleft(), TRIES)
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
        self.calm()

    def back(self, name: str) -> None:
        """Any thread: this worker is ready again; of the coordinator: it grants again."""
        self._down.pop(name, None)

    def _behind(self, now: float) -> bool:
        """Has the mesh too much to recover from?  Then the weather waits: how fast processes start is not what is tried here."""
        for name in [name for name, since in list(self._down.items()) if now > since + PATIENCE]:
            self._down.pop(name, None)
        return len(self._down) >= DOWN

    def granted(self, name: str) -> None:
        """Any thread: this worker has just been given a job."""
        if self._armed.get(name):
            self._grants.put(name)

    def _wait(self, seconds: float) -> None:
        """So long, or until somebody is given a job who is to die of it."""
        with suppress(Empty):
            name = self._grants.get(timeout=max(0.001, seconds))
            if armed := self._armed.get(name):
                self._fire(armed[0], armed[0].number % 64 / 1000)

    def _fire(self, event: Event, after: float) -> None:
        """A kill that has waited for its moment."""
        if event in (armed := self._armed[event.target]):
            armed.remove(event)
            self._at(time.monotonic() + after, lambda: self._happen(replace(event, kind="kill"), TRIES))

    def calm(self) -> None:
        """Whoever was stopped goes on, all gates are open."""
        self._due.clear()
        for pid in list(self._stopped):
            self._signal(pid, signal.SIGCONT)
        self._stopped.clear()
        for name in self._services:
            self._gates.set(name, "open")
            for file in self._files(name):
                self._gates.deafen(file, "open")
        if self._strangers is not None:
            self._strangers.close()
            self._strangers = None

    # ---- one branch for each kind

    def _happen(self, event: Event, tries: int) -> None:
        if not self._done(event) and tries:  # whoever it is for has no process just now
            self._at(time.monotonic() + AGAIN, lambda: self._happen(event, tries - 1))

    def _done(self, event: Event) -> bool:
        """False: there was nobody to do it to."""
        match event.kind:
            case "kill" | "kill coordinator" | "kill client":
                return self._killed(event)
            case "kill busy":
                self._armed.setdefault(event.target, []).append(event)
                self._at(time.monotonic() + IDLE, lambda: self._fire(event, 0.0))
            case "kill all":
                self._history.say("blackout")
                for name in self._services:
                    if not name.startswith("client-"):
                        self._killed(replace(event, target=name, how="both"))
            case "pause":
                return self._paused(event)
            case "partition":
                self._gates.set(event.target, event.how)
                self._history.say("partitioned", name=event.target, how=event.how, seconds=event.seconds)
                self._at(time.monotonic() + event.seconds, lambda: self._gates.set(event.target, "open"))
            case "deafen":
                return self._deafened(event)
            case "bytes":
                if self._strangers is None:
                    self._strangers = self._make_strangers()
                inlets = [file for name in self._services for file in self._files(name)]
                lives = [life for name in self._services for life in self._lives(name)]
                thrown = self._strangers.throw(event.how, event.number, inlets, lives)
                self._history.say("threw", how=event.how, count=thrown)
            case _:
                raise ValueError(event.kind)
        return True

    def _killed(self, event: Event) -> bool:
        pids = self._pids(event.target, event.how)
        struck = [pid for pid in pids if self._signal(pid, signal.SIGKILL)]
        if struck:
            kind = event.target if event.target == "coordinator" else "client" if event.target.startswith("client-") else "worker"
            if kind != "client":
                self._down[event.target] = time.monotonic()
            self._history.say(f"killed {kind}", name=event.target, how=event.how, pids=struck)
        return bool(struck)

    def _paused(self, event: Event) -> bool:
        pids = [pid for pid in self._pids(event.target, event.how) if self._signal(pid, signal.SIGSTOP)]
        if not pids:
            return False
        self._stopped |= set(pids)
        self._history.say("paused", name=event.target, how=event.how, seconds=event.seconds)

        def goes_on() -> None:
            for pid in pids:
                self._signal(pid, signal.SIGCONT)
                self._stopped.discard(pid)

        self._at(time.monotonic() + event.seconds, goes_on)
        return True

    def _deafened(self, event: Event) -> bool:
        files = [file for file in self._files(event.target) if self._gates.deafen(file, event.how)]
        if not files:
            return False
        self._history.say("deafened", name=event.target, how=event.how, seconds=event.seconds)

        def hears() -> None:
            for file in files:
                self._gates.deafen(file, "open")

        self._at(time.monotonic() + event.seconds, hears)
        return True

    # ---- who is who

    def _at(self, when: float, do: Callable[[], object]) -> None:
        heapq.heappush(self._due, (when, next(self._serial), lambda: (do(), None)[1]))

    def _pids(self, name: str, how: str) -> list[int]:
        """Of a worker, its parent is what the supervisor started; whoever else it is, there is one."""
        service = self._services[name]
        parent = service.pid
        if not parent:
            return []
        if not service.stage:
            return [parent]
        children = _children(parent)
        return {"child": children, "parent": [parent], "both": [parent, *children]}[how]

    def _files(self, name: str) -> list[Path]:
        """The socket file of a process that is PUSHed to."""
        if name == "coordinator":
            return [socket_file(self._folder / STATE, name)]
        return [socket_file(self._folder / STATE, life) for life in self._lives(name)]

    def _lives(self, name: str) -> list[str]:
        return [life for child in self._pids(name, "child") if (life := _life(child))]

    def _signal(self, pid: int, number: signal.Signals) -> bool:
        """False: there is no such process, or it is none of ours."""
        with suppress(OSError):
            handle = os.pidfd_open(pid)  # from here on the number means this process, or none
            try:
                if str(self._folder).encode() in _words(pid):
                    signal.pidfd_send_signal(handle, number)
                    return True
            finally:
                os.close(handle)
        return False


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _words(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _life(pid: int) -> str:
    with suppress(OSError, ValueError):
        words = _words(pid).split(b"\0")
        return words[words.index(b"--life") + 1].decode()
    return ""
