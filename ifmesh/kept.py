"""What `ifmesh up` keeps running: the commands that an operator would type, how each has ended, and when it is started again."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass, field
from itertools import cycle
from typing import IO

from ifmesh import exits
from ifmesh.config import Config
from ifmesh.request import STAGES

COORDINATOR = "coordinator"
REMOTE = "remote"  # the command that runs another host
AT = "@"  # STAGE-N@HOST is what a worker on another host is called
ENDINGS = {
    exits.OK: "ended by itself",
    exits.CONFIGURATION: "exit 3: its configuration does not work, see its log",
    exits.STALLED: "stalled: killed because it did not advance",
}
OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
LOADED = (b" is loaded: ", b" when it is its turn")  # in the log line of a worker that may be given work
REFUSED = b"this key is not authorised there"  # ... and of one that the coordinator does not hear any more
SENT_AWAY = 10.0  # seconds until a worker knocks again at a coordinator elsewhere that is being taken down
CRASHED = 2.0  # seconds, at most, until a process that a signal ended is started again


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next start.  Pure: it is told how long the last one lived.  Seconds."""

    floor: float = 0.5
    ceiling: float = 30.0
    calm: float = 60.0  # a process that lived this long starts afresh
    _wait: float = 0.0

    def died(self, lived: float) -> float:
        self._wait = self.floor if lived >= self.calm else min(self.ceiling, max(self.floor, 2 * self._wait))
        return self._wait


def killed(code: int) -> bool:
    """Was it killed from outside?  code: of Popen, or of a parent that passes its child's on (128 + signal)."""
    return (-code if code < 0 else code - 128) in OUTSIDE


def signalled(code: int) -> int:
    """The signal that ended it; 0: none did."""
    number = -code if code < 0 else code - 128
    return number if number > 0 and number in {s.value for s in signal.Signals} else 0


def ending(code: int) -> str:
    """An exit code in words."""
    if number := signalled(code):
        return f"{signal.Signals(number).name}{' from outside' if killed(code) else ''}"
    return ENDINGS.get(code, f"exit {code}")


@dataclass(slots=True)
class Service:
    """One command that is kept running.  due: when to start it (monotonic; None: it runs, or is not to be started).

    rest: seconds, at least, until it starts again after it has ended in order.  loaded, refused: it has said so since it was started.
    """

    name: str
    stage: str
    command: tuple[str, ...]
    rest: float = 0.0
    due: float | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    starts: int = 0
    loaded: bool = False
    refused: bool = False
    why: str = ""
    code: int | None = None
    backoff: Backoff = field(default_factory=Backoff)
    log: IO[bytes] | None = None

    @property
    def host(self) -> str:
        """The host that it runs; "": none, it is a process of this machine."""
        return self.name if self.command[:1] == (REMOTE,) else ""

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def died(self, now: float, code: int) -> float:
        """When to start it again: at once after a kill from outside, later and later after deaths of its own making.

        Not much later when a signal ended it: what cannot be loaded ends with a code, but what crashed was mostly at work, and the
        coordinator bounds how often a request may do that.  A stage's only worker, 30 s away after each, is a stage that stands still.
        """
        self.process, self.code, self.why = None, code, ending(code)
        wait = 0.0 if killed(code) else self.backoff.died(now - self.started)
        if signalled(code):
            wait = min(wait, CRASHED)
        if code == exits.OK:
            wait = max(wait, self.rest)
        self.due = now + wait
        return wait


def services(config: Config, flags: tuple[str, ...], host: str = "") -> list[Service]:
    """The commands of a whole mesh on this machine; with mesh.coordinator, of its workers alone.  flags: given to each, so that all read
    the same configuration.  host: the name of this one of several, "" for the coordinator's; it tells the workers of a stage apart.
    """
    made = [] if config.mesh.coordinator else [Service(COORDINATOR, "", ("coordinator", "--tied", *flags))]
    devices = cycle(config.hosts[host].devices if host in config.hosts else ())
    for stage in STAGES:
        for copy in range(config.copies(stage, host)):
            name, device = f"{stage}-{copy}", next(devices, "")
            command = ("worker", stage, "--name", f"{name}{AT}{host}" if host else name, "--tied")
            command = (*command, *(("--device", device) if device else ()), *flags)
            made.append(Service(name, stage, command, SENT_AWAY if config.mesh.coordinator else 0.0))
    return made


def hosts(config: Config, flags: tuple[str, ...]) -> list[Service]:
    """One command for each host that has workers, which starts an `ifmesh up` there."""
    return [Service(name, "", (REMOTE, name, "--tied", *flags)) for name, host in config.hosts.items() if any(host.copies.values())]
