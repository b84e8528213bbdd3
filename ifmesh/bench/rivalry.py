"""`ifmesh bench peers`: the same four stages that do nothing on what one would use instead of a mesh, beside the mesh and its floor."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ifmesh.bench.crossing import Crossing
from ifmesh.bench.crossing import Wanted as Crossed
from ifmesh.bench.head import Report
from ifmesh.bench.lines import Lines
from ifmesh.bench.taken import Row, Taken, row
from ifmesh.errors import MeshError
from ifmesh.own import Settings

PEERS = {"ray_actors": "ray", "ray_serve": "ray", "mosec": "mosec", "dask": "distributed"}
"""Modules of `bench.peers`, and the package that each needs."""
SAID = {"ray_actors": "Ray actors", "ray_serve": "Ray Serve", "mosec": "mosec", "dask": "dask.distributed"}
STARTING, MEASURING = 180.0, 600.0
"""Seconds in which a peer has to be ready, and to have measured once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """many: requests in flight, beside one at a time.  seconds, least: of one measurement, `rounds` times."""

    peers: tuple[str, ...] = tuple(PEERS)
    many: int = 16
    seconds: float = 2.0
    rounds: int = 3
    least: int = 20
    settings: Settings | None = None


class Rivalry:
    """tell, over: as of `Crossing`."""

    def __init__(self, wanted: Wanted, tell: Callable[[str, float], None], over: Callable[[], bool]) -> None:
        self._wanted, self._tell, self._over = wanted, tell, over
        self._found: dict[str, dict[str, Row]] = {}
        self._skipped: dict[str, str] = {}
        crossed = Crossed(("ipc",), (1, wanted.many), wanted.seconds, wanted.rounds, wanted.least, durable=False, settings=wanted.settings)
        parts = 1 + len(wanted.peers)
        self._crossing = Crossing(crossed, lambda line, done: tell(line, done / parts), over)

    def measure(self) -> None:
        self._crossing.measure()
        for place, name in enumerate(self._wanted.peers, 1):
            if self._over():
                return
            if find_spec(PEERS[name]) is None:
                self._skipped[SAID[name]] = f"{PEERS[name]} is not installed: pip install 'ifmesh[peers]'"
                continue
            try:
                self._measure(name, place / (1 + len(self._wanted.peers)))
            except MeshError as error:
                self._skipped[SAID[name]] = str(error)

    def report(self) -> Report:
        ours = self._crossing.report()
        found = {"ifmesh": ours["mesh"].get("ipc", {}), "bare chain, relayed": ours["floor"].get("ipc", {}), **self._found}
        one, many = "1", str(self._wanted.many)
        rows = []
        for name, by in found.items():
            if one in by and many in by:
                figures = {"p50_ms": by[one]["p50_ms"], "p95_ms": by[one]["p95_ms"], "requests_per_s": by[many]["requests_per_s"]}
                rounds = {"p50_ms": by[one]["rounds"]["p50_ms"], "requests_per_s": by[many]["rounds"]["requests_per_s"]}
                rows.append({"name": name, **figures, "rounds": rounds})
        columns = [("p50_ms", "alone: p50, ms"), ("p95_ms", "alone: p95, ms"), ("requests_per_s", f"requests/s, {many} in flight")]
        head = {key: ours[key] for key in ("at", "command", "machine", "configuration")}
        head["versions"] = {**ours["versions"], **self._versions()}
        notes = ["Over ipc, durability none; the mesh has a guard behind its four stages, the others have not, and promise nothing."]
        told = {"kind": "peers", **head, "asked": ours["asked"], "columns": columns, "rows": rows, "notes": notes}
        return {**told, "skipped": self._skipped, "interrupted": self._over()}

    def _measure(self, name: str, done: float) -> None:
        wanted = self._wanted
        self._tell(f"{SAID[name]} starts", done)
        safe = ["-P"] if sys.flags.safe_path else []
        line = Lines([sys.executable, *safe, "-m", "ifmesh.bench.peers", name], SAID[name], quiet=True)
        try:
            line.wait("ready", STARTING, self._over)
            for in_flight in (1, wanted.many):
                runs = []
                for turn in range(wanted.rounds):
                    self._tell(f"{SAID[name]}: {in_flight} in flight, round {turn + 1} of {wanted.rounds}", done)
                    order = {"in_flight": in_flight, "seconds": wanted.seconds, "least": wanted.least}
                    seconds, ends = line.ask(order, "taken", MEASURING, self._over)
                    runs.append(Taken(in_flight, seconds, ends))
                self._found.setdefault(SAID[name], {})[str(in_flight)] = row(runs)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(line.pid, signal.SIGTERM)  # all that it started and that stayed in its group
            line.end()
            with suppress(ProcessLookupError):
                os.killpg(line.pid, signal.SIGKILL)

    def _versions(self) -> dict[str, str]:
        found = {}
        for package in sorted(set(PEERS.values())):
            with suppress(PackageNotFoundError):
                found[package] = version(package)
        return found
