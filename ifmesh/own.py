"""A mesh of one's own: `ifmesh up` in a folder that goes with it.

Nothing is left, however its holder ends.  In order: the mesh is taken down, and its processes are counted out.  kill -9 of the holder:
the pipe that `ifmesh up --tied` reads ends, and with it all that it started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ifmesh import config, exits, lease, sockets, supervisor
from ifmesh.client import Client
from ifmesh.config import Config
from ifmesh.errors import MeshError

Settings = Mapping[str, object]
"""By dotted key, as in ifmesh.toml."""

Look = Callable[[Mapping[str, str]], None]
"""Told again and again how far each stage is that has been heard of, as in `ifmesh ps`."""

LOADING = 900.0
"""Seconds until all has to be ready."""
ENDING = 15.0
"""Seconds between SIGTERM and a firmer word."""
OWN: Settings = {
    "hosts": "",
    "mesh.listen": "tcp://127.0.0.1:0",
    "mesh.coordinator": "",
    "mesh.identity": "",
    "mesh.drain": 2.0,
}


class Own:
    """settings: beside those of ifmesh.toml and IFMESH_*; file: the ifmesh.toml, where it is not the usual one.  words: the command that
    starts it.  folder: above its state; None: where temporary files are.

    Within `with`, or from `start` to `end`.
    """

    def __init__(
        self,
        settings: Settings,
        words: Sequence[str] = ("up", "--tied", "--no-logs"),
        folder: Path | None = None,
        file: Path | None = None,
    ) -> None:
        self._settings, self._words, self._above, self._file = {**OWN, **settings}, tuple(words), folder, file
        self._up: subprocess.Popen[bytes] | None = None
        self.state = Path()
        self.config: Config

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def start(self) -> Self:
        """Misconfigured: the settings are not right."""
        self.state = Path(tempfile.mkdtemp(prefix="ifmesh-own-", dir=self._above)) / "state"
        settings = {**self._settings, "mesh.state": str(self.state)}
        try:
            self.config = config.read(self._file, os.environ, settings)
            self.config.check_weights()
            self.state.mkdir()
            words = [*self._words, *(["--config", str(self._file)] if self._file else [])]
            for key, value in settings.items():
                words += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
            with open(self.state / "up.log", "wb") as log:
                # A group of its own: a terminal's Ctrl-C reaches this process alone, which then ends the mesh in order.
                command = supervisor.python(*words)
                self._up = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0)
        except BaseException:
            self.end()
            raise
        return self

    def ready(self, look: Look | None = None) -> Self:
        """When every service is.  MeshError: it cannot become so, with the reason."""
        assert self._up is not None
        until = time.monotonic() + LOADING
        with contextlib.ExitStack() as stack:
            client: Client | None = None
            while not (told := lease.written(self.state)).get("ready"):
                rows = told.get("services")
                for row in rows if isinstance(rows, list) else []:
                    if row.get("code") == exits.CONFIGURATION or (row.get("starts", 0) > 3 and row.get("why")):
                        raise MeshError(f"{row['service']} does not start: {row.get('why')}{self._last(row['service'])}")
                if (code := self._up.poll()) is not None:
                    raise MeshError(f"`ifmesh up` has ended (exit {code}){self._last('coordinator')}")
                if time.monotonic() >= until:
                    raise MeshError(f"not ready after {LOADING:g} s{self._last()}")
                if look is not None:
                    if client is None and self.config.announced():
                        client = stack.enter_context(self.client(timeout=5.0))
                    look(_states(client))
                time.sleep(0.05)
        return self

    @property
    def pids(self) -> list[int]:
        """Of all its processes that live."""
        return list(_family(self._up.pid)) if self._up is not None else []

    @property
    def door(self) -> dict[str, Any]:
        """What a client of it is told: coordinator ("" before it listens), state, identity."""
        who: str | bool = str(self.state / "keys" / "operator.key") if self.config.mesh.curve else False
        return {"coordinator": self.config.announced(), "state": str(self.state), "identity": who}

    def client(self, timeout: float = 10.0) -> Client:
        """Its operator's.  It must listen: see `door`."""
        return Client(**self.door, timeout=timeout)

    def end(self) -> None:
        """Take it down, by force if need be; then nothing of it lives.  No signal gets between.  Once is enough, twice does no harm."""
        with _undisturbed():
            if self._up is not None:
                _take_down(self._up)
            if self.state != Path():
                shutil.rmtree(sockets.run_dir(self.state), ignore_errors=True)
                shutil.rmtree(self.state.parent, ignore_errors=True)

    def _last(self, service: str = "") -> str:
        """The last lines of the service's log, and of `up`."""
        lines: list[str] = []
        for path in (self.state / "logs" / f"{service}.log", self.state / "up.log"):
            with contextlib.suppress(OSError):
                lines += path.read_text(errors="replace").splitlines()[-12:]
        return "".join(f"\n  {line}" for line in lines)


def _states(client: Client | None) -> dict[str, str]:
    """By stage; {}: nobody answers yet."""
    with contextlib.suppress(MeshError):
        return {row.stage: row.state for row in client.status().services} if client is not None else {}
    return {}


def _take_down(up: subprocess.Popen[bytes]) -> None:
    family = _family(up.pid)
    for word in (up.terminate, up.terminate, up.kill):  # drain; kill what is left; enough
        with contextlib.suppress(subprocess.TimeoutExpired):
            word()
            up.wait(ENDING)
            break
    if up.stdin is not None:
        up.stdin.close()
    until = time.monotonic() + ENDING
    while (alive := [pid for pid, started in family.items() if _started(pid) == started]) and time.monotonic() < until:
        time.sleep(0.05)  # their pipes have ended: they go
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Without signals; only the main thread has any."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks: tells it from a later one with its number.  "": none, or dead already."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _family(pid: int) -> dict[int, str]:
    """The process and all its descendants: pid -> when it began."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(above, []).append(int(entry.name))
    found, queue = dict[int, str](), [pid]
    while queue:
        one = queue.pop()
        found[one] = _started(one)
        queue += children.get(one, [])
    return {one: started for one, started in found.items() if started}
