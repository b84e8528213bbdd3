"""A mesh for one measurement: `ifmesh up` in a folder of its own, which goes with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ifmesh import config, exits, lease, sockets, supervisor
from ifmesh.config import CLASSES, Config
from ifmesh.errors import MeshError
from ifmesh.request import STAGES

Settings = Mapping[str, object]
"""By dotted key, as in ifmesh.toml."""

LOADING = 900.0
"""Seconds until all has to be ready; the built-in cascade may be built first."""
ENDING = 15.0
"""Seconds between SIGTERM and a firmer word."""
OWN: Settings = {
    "hosts": "",
    "mesh.listen": "tcp://127.0.0.1:0",
    "mesh.coordinator": "",
    "mesh.identity": "",
    "mesh.drain": 2.0,
    "mesh.results_bytes": 1 << 29,  # pictures that nobody fetches again
}
TRANSPORTS = ("ipc", "tcp", "tcp+curve")


def still(options: Settings | None = None, each: Mapping[str, Settings] | None = None) -> dict[str, object]:
    """Settings for stages that do nothing, with these options (`bench.stages`); each: more of them, of single stages."""
    made: dict[str, object] = {"cascade.toy": True, "cascade.path": ""}
    for stage in STAGES:
        made[f"services.{stage}.run"] = f"ifmesh.bench.stages:{CLASSES[stage]}"
        for key, value in {**(options or {}), **(each or {}).get(stage, {})}.items():
            made[f"services.{stage}.options.{key}"] = value
    return made


def over(transport: str) -> dict[str, object]:
    """Settings for one of TRANSPORTS."""
    return {"mesh.curve": transport.endswith("curve")}


class Mesh:
    """settings: beside those of ifmesh.toml and IFMESH_*.  apart: its processes reach each other by TCP, as those of different hosts.

    folder: above its state; None: where temporary files are.  file: the ifmesh.toml, where it is not the usual one.
    """

    def __init__(self, settings: Settings, apart: bool = False, folder: Path | None = None, file: Path | None = None) -> None:
        self._settings, self._apart, self._above, self._file = {**OWN, **settings}, apart, folder, file
        self._up: subprocess.Popen[bytes] | None = None
        self._state = Path()
        self.config: Config

    def __enter__(self) -> Self:
        above = Path(tempfile.mkdtemp(prefix="ifmesh-bench-", dir=self._above))
        self._state = above / "state"
        settings = {**self._settings, "mesh.state": str(self._state)}
        try:
            self.config = config.read(self._file, os.environ, settings)
            self.config.check_weights()
            self._state.mkdir()
            words = ["bench", "up", *(["--apart"] if self._apart else []), *(["--config", str(self._file)] if self._file else [])]
            for key, value in settings.items():
                words += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
            with open(self._state / "up.log", "wb") as log:
                # A group of its own: a terminal's Ctrl-C reaches this process alone, which then ends the mesh in order.
                command = supervisor.python(*words)
                self._up = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    @property
    def door(self) -> dict[str, Any]:
        """For `Clients`."""
        who: str | bool = str(self._state / "keys" / "operator.key") if self.config.mesh.curve else False
        return {"coordinator": self.config.announced(), "state": str(self._state), "identity": who}

    @property
    def state(self) -> Path:
        return self._state

    def ready(self, tell: Callable[[str], None] = lambda line: None) -> Self:
        """When every service is.  MeshError: it cannot become so, with the reason."""
        assert self._up is not None
        until = time.monotonic() + LOADING
        while True:
            told = lease.written(self._state)
            if told.get("ready"):
                return self
            rows = told.get("services")
            for row in rows if isinstance(rows, list) else []:
                if row.get("code") == exits.CONFIGURATION or (row.get("starts", 0) > 3 and row.get("why")):
                    raise MeshError(f"{row['service']} does not start: {row.get('why')}{self._last(row['service'])}")
            if self._up.poll() is not None:
                raise MeshError(f"the mesh to be measured has ended (exit {self._up.returncode}){self._last('coordinator')}")
            if time.monotonic() >= until:
                raise MeshError(f"the mesh to be measured is not ready after {LOADING:g} s{self._last()}")
            tell("the mesh starts")
            time.sleep(0.05)

    def _last(self, service: str = "") -> str:
        """The last lines of the service's log, and of `up`."""
        lines: list[str] = []
        for path in (self._state / "logs" / f"{service}.log", self._state / "up.log"):
            with suppress(OSError):
                lines += path.read_text(errors="replace").splitlines()[-12:]
        return "".join(f"\n  {line}" for line in lines)

    def _end(self) -> None:
        if self._up is not None:
            for word in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):  # drain; kill what is left; enough, and its pipes end
                self._up.send_signal(word)
                with suppress(subprocess.TimeoutExpired):
                    self._up.wait(ENDING)
                    break
            if self._up.stdin is not None:
                self._up.stdin.close()
        shutil.rmtree(sockets.run_dir(self._state), ignore_errors=True)
        shutil.rmtree(self._state.parent, ignore_errors=True)
