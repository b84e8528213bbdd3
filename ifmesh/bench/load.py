"""`ifmesh bench load`: client processes that ask a mesh, and what they and the mesh saw of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ifmesh.bench.clients import Clients, here
from ifmesh.bench.crews import Crews
from ifmesh.bench.head import Report
from ifmesh.bench.merge import Figures, Goal, Seat, crews, figures, hops, repeated
from ifmesh.bench.orders import Record, Run
from ifmesh.bench.orders import Report as Seen
from ifmesh.bench.schedules import Kind, dealt, shared
from ifmesh.bench.statistics import percentile, quantiles
from ifmesh.client import Client
from ifmesh.errors import MeshError

Arrivals = Literal["closed", "poisson", "constant"]
PROMPTS = ("a red fox in the snow", "a lighthouse at dusk, oil painting", "a bowl of lemons on a blue table", "an owl made of paper")


@dataclass(frozen=True, slots=True)
class Wanted:
    """arrivals: closed (in_flight at once), or open at `rate` a second.  warm: seconds before the `seconds` that are measured.

    asks: as in `orders.Run`.  unloaded: requests that go one at a time before, for what the hops take.  goal: of goodput.
    clients: processes, on each of `hosts`; (): on this one.
    """

    arrivals: Arrivals = "closed"
    rate: float = 0.0
    in_flight: int = 8
    seconds: float = 30.0
    warm: float = 5.0
    clients: int = 1
    hosts: tuple[str, ...] = ()
    repeat: int = 1
    seed: int = 0
    previews: bool = True
    unloaded: int = 2
    goal: Goal | None = None
    asks: tuple[str, ...] = tuple(json.dumps({"prompt": prompt}) for prompt in PROMPTS)

    @property
    def length(self) -> float:
        """Seconds of one run."""
        return self.warm + self.seconds

    @property
    def places(self) -> list[str]:
        """The host of each client; "": this one."""
        return [host for host in self.hosts or ("",) for _ in range(self.clients)]

    @property
    def longest(self) -> float:
        """Seconds after which all has ended, whatever the mesh does."""
        settle = Run(()).settle
        return (self.repeat + 1) * (self.length + settle) + self.unloaded * settle

    def runs(self, number: int) -> list[Run]:
        """One for each client.  number: of the repeat, which has seeds of its own."""
        seed, clients = self.seed + number * 1_000_000, len(self.places)
        seeds = [seed + client * 10_000 for client in range(clients)]
        if self.arrivals == "closed":
            share = dealt(self.in_flight, clients)
            return [Run(self.asks, s, n, self.length if n else 0.0, 0, (), self.previews) for s, n in zip(seeds, share, strict=True)]
        kind: Kind = self.arrivals
        dues = shared(kind, self.rate, self.length, clients, seed)
        return [Run(self.asks, s, at=at, previews=self.previews) for s, at in zip(seeds, dues, strict=True)]


def asks(path: Path, wishes: Mapping[str, Any]) -> tuple[str, ...]:
    """The lines of a prompts file: a prompt each, or a JSON object of what `Client.submit` takes; empty ones and # are left out.

    wishes: for those that do not say otherwise.  MeshError names the line that is neither.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        ask: object = {"prompt": text}
        if text.startswith("{"):
            try:
                ask = json.loads(text)
            except ValueError as error:
                raise MeshError(f"{path}, line {number}: neither a prompt nor a JSON object: {error}") from None
        assert isinstance(ask, dict)
        found.append(json.dumps({**wishes, **ask}))
    if not found:
        raise MeshError(f"{path}: no prompt in it: one each line")
    return tuple(found)


def seats(door: Mapping[str, Any]) -> list[Seat]:
    """The workers of that mesh, as its books show them.  MeshError: a stage has none."""
    with Client(door["coordinator"], state=door["state"] or None, identity=door["identity"]) as client:
        books = client.status()
        rows = list(books.services)
        for page in range(1, books.pages):
            rows += client.status(page=page).services
    if books.missing:
        raise MeshError(f"no worker for {', '.join(books.missing)}: start one, or wait until it is ready (`ifmesh ps`)")
    return [Seat(row.service, row.stage, row.host, row.device, row.slots) for row in rows if row.serves]


class Load:
    """door: where the mesh is, as in `orders`.  aboard: the clients, where they are on other hosts.

    tell: a line of progress, and how much of all is done.  over: is this to end?  Then what was measured is the report.
    """

    def __init__(
        self,
        wanted: Wanted,
        door: Mapping[str, Any],
        tell: Callable[[str, float], None],
        over: Callable[[], bool],
        aboard: Crews | None = None,
    ) -> None:
        self._wanted, self._door, self._tell, self._over = wanted, dict(door), tell, over
        self._clients: Clients | Crews = aboard or Clients([here()] * wanted.clients, self._door)
        self._seats: list[Seat] = []
        self._unloaded: list[Record] = []
        self._runs: list[Figures] = []
        self._seconds: list[float] = []

    def measure(self) -> None:
        wanted = self._wanted
        self._seats = seats(self._door)
        with self._clients as clients:
            if wanted.unloaded:
                self._tell(f"{wanted.unloaded} requests, one at a time", 0.0)
                alone = Run(wanted.asks, wanted.seed, 1, 0.0, wanted.unloaded, (), wanted.previews)
                rest = [Run(wanted.asks)] * (len(wanted.places) - 1)
                self._unloaded = list(clients.run([alone, *rest], self._over)[0].records)
            for number in range(wanted.repeat):
                if self._over():
                    return
                self._take(clients.run(wanted.runs(number), self._over, lambda s, n=number: self._progress(n, s)))  # type: ignore[misc]

    def figures(self) -> Report:
        """Of what was measured so far: what follows the head of a report."""
        asked = {name: value for name, value in asdict(self._wanted).items() if name not in ("asks", "goal")}
        alone = [record for record in self._unloaded if record.how == "finished"]
        quarter = sorted(self._seconds)
        return {
            "asked": {**asked, "prompts": len(self._wanted.asks), "goal": asdict(self._wanted.goal) if self._wanted.goal else None},
            "figures": repeated(self._runs),
            "runs": self._runs,
            "unloaded": {"requests": len(alone), "latency_ms": quantiles([record.seconds for record in alone], (50,)), "hops": hops(alone)},
            "latency_ms_by_percent": [round(1000 * percentile(quarter, percent), 2) for percent in range(101)] if quarter else [],
            "hosts": self._clients.machines if isinstance(self._clients, Crews) else {},
            "interrupted": self._over(),
        }

    def _take(self, reports: Sequence[Seen]) -> None:
        wanted, length = self._wanted, self._wanted.length
        if self._over():  # what was due is all that was asked
            length = min(length, max((record.sent for report in reports for record in report.records), default=0.0))
            if length <= wanted.warm:
                return
        broken = [record for report in reports for record in report.records if record.how in ("failed", "lost")]
        for record in broken[:1]:
            self._tell(f"{len(broken)} requests did not end well; the first: {record.error}", 1.0)
        told = figures(reports, self._seats, wanted.warm, length, wanted.goal)
        self._runs.append(told | {"crews": crews(reports, wanted.places, wanted.warm, length)})
        due = (record for report in reports for record in report.records if record.how == "finished" and record.at >= wanted.warm)
        self._seconds += [record.seconds for record in due]

    def _progress(self, number: int, seconds: float) -> None:
        wanted = self._wanted
        done = (number + min(1.0, seconds / wanted.length)) / wanted.repeat
        phase = "warming up" if seconds < wanted.warm else "measuring" if seconds < wanted.length else "waiting for what is under way"
        self._tell(f"run {number + 1} of {wanted.repeat}: {phase}", done)
