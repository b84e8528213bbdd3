"""A whole run: `ifmesh up` with a gate before each process, clients, weather, and then calm until all has ended.

The main thread supervises; a second one makes the weather; a third has the gates.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from ifmesh import sockets
from ifmesh.chaos.agents import CALM, CLOCK, THROUGH, Plan
from ifmesh.chaos.gates import Gates
from ifmesh.chaos.history import SEEN, STATE, WORK, History, lines
from ifmesh.chaos.schedule import Event
from ifmesh.chaos.strangers import Strangers
from ifmesh.chaos.weather import Weather
from ifmesh.config import Config
from ifmesh.credentials import of_client
from ifmesh.supervisor import Service, Supervisor, python, services

EVERY = 5.0
"""Seconds between two lines of progress."""
CAUSES = ("assigned", "adopted", "advanced", "retried", "completed", "exhausted", "cancelled", "expired")
_MOVED = re.compile(rf"[\d:.]+ info (\S+) (\w+): ({'|'.join(CAUSES)})(?:: (.*))?")
_READY = re.compile(r"[\d:.]+ info - (\S+) is ready")
_FELL = re.compile(r"(\S+): (.*); again (?:at once|in .*)")

Say = Callable[[str], None]
Ready = Callable[[], str]


def workers(config: Config) -> list[str]:
    return [service.name for service in services(config, ()) if service.stage]


def clients(count: int) -> list[str]:
    return [f"client-{number}" for number in range(count)]


class Run:
    """One run in one folder.  settle: seconds of calm in which all must end.  ready: as the supervisor's.  say: a line of progress."""

    def __init__(
        self, config: Config, flags: Sequence[str], plan: Plan, events: Sequence[Event], settle: float, ready: Ready, say: Say
    ) -> None:
        self._config, self._plan, self._events, self._settle, self._say = config, plan, events, settle, say
        self._folder = config.mesh.state.parent
        kept = services(config, tuple(flags))
        for name in clients(plan.clients):
            kept.append(Service(name, "", ("chaos", "agent", str(self._folder), "--name", name, "--tied")))
        self._gates = Gates(self._aim, sockets.run_dir(config.mesh.state))
        self._services = {service.name: service for service in kept}
        self._supervisor = Supervisor(config, kept, self._heard, ready, self._program)
        self._done: dict[str, str] = {}
        self._history = History(self._folder / SEEN, "chaos")
        self._work = History(self._folder / WORK, "coordinator")
        self._weather = Weather(self._services, self._gates, self._history, self._folder, lambda: Strangers(self._aim(), of_client(config)))
        self._driver = threading.Thread(target=self._drive, name="weather")
        self._over = threading.Event()

    def run(self) -> int:
        """To its end; the supervisor's exit code.  Call it in the main thread."""
        self._plan.write(self._folder)
        self._history.say("prepared", seed=self._plan.seed)
        with self._gates:
            self._driver.start()
            try:
                return self._supervisor.run()
            finally:
                self._over.set()
                self._driver.join()
                self._history.close()
                self._work.close()

    # ---- the second thread

    def _drive(self) -> None:
        try:
            while not self._supervisor.is_ready:
                if self._stopped() or self._over.wait(0.05):
                    return
            begun = time.monotonic()
            self._history.say("began", seed=self._plan.seed, requests=self._plan.requests, seconds=self._plan.seconds)
            threading.Thread(target=self._report, args=(begun,), daemon=True).start()
            self._weather.run(self._events, self._plan.seconds, self._tick)
            self._history.say("calm")
            (self._folder / CALM).touch()
            until = time.monotonic() + self._settle
            while not self._through() and time.monotonic() < until and not self._stopped():
                self._over.wait(0.1)
            self._history.say("settled", through=self._through())
        finally:
            if not self._stopped():
                os.kill(os.getpid(), signal.SIGTERM)  # as an operator ends `ifmesh up`

    def _stopped(self) -> bool:
        return self._over.is_set() or self._supervisor.ending

    def _tick(self) -> bool:
        """Tell the clients how far the weather is; True: it is to end."""
        part = self._folder / f"{CLOCK}.part"
        part.write_text(f"{self._weather.clock:.2f}")
        part.replace(self._folder / CLOCK)
        return self._stopped()

    def _through(self) -> bool:
        return all(self._done.get(name) == THROUGH for name in clients(self._plan.clients))

    def _report(self, begun: float) -> None:
        while not self._over.wait(EVERY):
            parts = [f"{name} {self._done.get(name, '...')}" for name in clients(self._plan.clients)]
            starts = sum(service.starts for service in self._services.values()) - len(self._services)
            left = max(0.0, self._plan.seconds - self._weather.clock)
            phase = f"{left:.0f} s of weather left" if not (self._folder / CALM).exists() else "calm"
            self._say(f"{time.monotonic() - begun:.0f} s: {', '.join(parts)}; {starts} restarts; {phase}")

    # ---- what the supervisor calls

    def _aim(self) -> tuple[str, int]:
        parts = urlsplit(self._config.control())
        return parts.hostname or "127.0.0.1", parts.port or 0

    def _program(self, *words: str) -> list[str]:
        """Whoever is told where the coordinator is, is told of a gate before it."""
        if "--coordinator" not in words:
            return python(*words)
        name = words[words.index("--name") + 1]
        return python(*words[: words.index("--coordinator")], "--coordinator", self._gates.url(name))

    def _heard(self, name: str, line: str) -> None:
        if name == "coordinator" and (moved := _MOVED.fullmatch(line)):
            job, stage, cause, why = moved.groups()
            self._work.say("moved", job=job, stage=stage, cause=cause, why=why or "")
            if cause == "assigned":
                self._weather.back("coordinator")
                self._weather.granted(why)
        elif name == "coordinator" and (ready := _READY.fullmatch(line)):
            self._weather.back(ready[1])
        elif name.startswith("client-"):
            self._done[name] = line
        elif name == "up" and (fell := _FELL.fullmatch(line)) and not fell[2].endswith("from outside"):
            self._history.say("fell", name=fell[1], why=fell[2])


def known(folder: Path) -> dict[str, dict[str, str]]:
    """What an undisturbed run gave, by job."""
    return {record["job"]: record["pictures"] for record in lines(folder / SEEN) if record["what"] == "fetched"}


def undisturbed(config: Config, flags: Sequence[str], plan: Plan, settle: float, ready: Ready, say: Say) -> Plan:
    """The plan, with what its requests give when nothing happens to the mesh."""
    code = Run(config, flags, replace(plan, calm=True, seconds=0.0), (), settle, ready, say).run()
    if code == 0:
        file = config.mesh.state.parent / "known.json"
        file.write_text(json.dumps(known(config.mesh.state.parent)) + "\n")
        return replace(plan, known=str(file))
    return plan


__all__ = ["STATE", "Run", "clients", "undisturbed", "workers"]
