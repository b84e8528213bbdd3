"""diffusers in one process, as the published notebooks use it: one part in memory at a time (`ifmesh_services.bench.notebook`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ifmesh.bench.lines import Lines, Message
from ifmesh.config import Config
from ifmesh.errors import MeshError, Misconfigured
from ifmesh.request import Request
from ifmesh.worker import device

LIMIT = 7200.0
"""Seconds for one picture, at most, and for building weights of the published sizes."""


class Alone:
    """config: of the mesh beside it, whose devices, dtypes, threads and options it has.  stages: those that are drawn with.

    Within `with`; then it has ended.  What it is asked for raises KeyboardInterrupt when all is over meanwhile.
    """

    def __init__(self, config: Config, stages: Sequence[str], over: Callable[[], bool]) -> None:
        if find_spec("torch") is None or find_spec("diffusers") is None:
            raise Misconfigured("diffusers: torch or diffusers is not installed: pip install 'ifmesh[services]'")
        self._over = over
        self._stages = {stage: _setup(config, stage) for stage in stages}

    def __enter__(self) -> Self:
        safe = ["-P"] if sys.flags.safe_path else []
        self._line = Lines([sys.executable, *safe, "-W", "ignore", "-m", "ifmesh_services.bench.notebook"], "diffusers", quiet=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line.end()

    @property
    def pid(self) -> int:
        return self._line.pid

    def build(self, real: str, folder: Path) -> None:
        """Random weights of a published size in a new folder."""
        self._ask({"build": {"real": real, "folder": str(folder), "stages": self._stages}}, "built")

    def inflate(self, folder: Path) -> None:
        """Random weights of 1.4 GB in a new folder: much to load, little to compute with."""
        self._ask({"inflate": {"folder": str(folder)}}, "built")

    def open(self, cascade: str) -> str:
        """From now on it draws with this one.  Its name."""
        return str(self._ask({"open": {"cascade": cascade, "stages": self._stages}}, "name"))

    def draw(
        self, request: Request, source: Path | None = None, mask: Path | None = None, folder: Path | None = None
    ) -> tuple[float, dict[str, int]]:
        """(seconds, how often it has loaded each stage since it was opened).  folder: for what it makes."""
        files = {name: str(path) if path else None for name, path in (("source", source), ("mask", mask), ("folder", folder))}
        told: dict[str, Any] = self._ask({"draw": {"request": asdict(request), **files}}, "drawn")
        return told["seconds"], told["loads"]

    def _ask(self, order: Message, key: str) -> Any:
        try:
            return self._line.ask(order, key, LIMIT, self._over)
        except MeshError:
            if self._over():
                raise KeyboardInterrupt from None
            raise


def _setup(config: Config, stage: str) -> dict[str, Any]:
    service = config.services[stage]
    return {"device": device(config, stage), "dtype": service.dtype, "threads": service.threads, "options": service.options}
