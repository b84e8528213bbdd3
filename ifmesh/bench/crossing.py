"""`ifmesh bench mesh`: what a request costs that nobody works on, beside a bare chain of processes, in turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ifmesh.bench import apart, durable, stages
from ifmesh.bench.clients import Clients, here
from ifmesh.bench.floor import CHAINS, REQUEST, Chain
from ifmesh.bench.head import Report, configuration, head
from ifmesh.bench.meshes import TRANSPORTS, measured, over, still
from ifmesh.bench.orders import Run
from ifmesh.bench.taken import Row, Taken, ratios, row
from ifmesh.errors import MeshError
from ifmesh.own import Settings
from ifmesh.request import STAGES

Drive = Callable[[int], Taken]
ASK = json.dumps({"prompt": REQUEST.prompt, "negative": REQUEST.negative, "stages": False})


@dataclass(frozen=True, slots=True)
class Wanted:
    """in_flight: each number is measured.  seconds: of one measurement, which takes turns with the others, `rounds` times.

    least: requests of one measurement, however long they take.  durability: of the mesh beside the floor; one of durability "full" is
    measured as well, one request at a time, unless durable is False.  folder: on the disk that is meant; None: where temporary files are.
    """

    transports: tuple[str, ...] = TRANSPORTS
    in_flight: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 2.0
    rounds: int = 3
    least: int = 20
    durability: str = "none"
    tiny: bool = False
    floor: bool = True
    durable: bool = True
    folder: Path | None = None
    settings: Settings | None = None


class Crossing:
    """tell: a line of progress, and how much of all is done (0 to 1).  over: is this to end?  Then what was measured is the report."""

    def __init__(self, wanted: Wanted, tell: Callable[[str, float], None], over: Callable[[], bool]) -> None:
        self._wanted, self._tell, self._over = wanted, tell, over
        self._runs: dict[tuple[str, str, int], list[Taken]] = {}
        self._skipped: dict[str, str] = {}
        self._disk: dict[str, dict[str, float]] = {}
        self._head: Report = head("mesh", None)

    def measure(self) -> None:
        wanted = self._wanted
        for number, transport in enumerate(wanted.transports):
            if self._over():
                break
            if transport != "ipc" and (why := apart.lacks()):
                self._skipped[transport] = why
                continue
            self._measure(transport, number)

    def report(self) -> Report:
        """Of what was measured so far."""
        wanted = self._wanted
        kept = {
            "in_flight": list(wanted.in_flight),
            "seconds": wanted.seconds,
            "rounds": wanted.rounds,
            "durability": wanted.durability,
            "bytes": {stage: _size(stage, wanted.tiny) for stage in STAGES},
        }
        rows = {what: self._rows(what) for what in (*CHAINS, "mesh", "durable")}
        told = {
            "floor": rows["relayed"],
            "mesh": rows["mesh"],
            "ratios": {
                transport: {number: ratios(found, rows["relayed"][transport].get(number, {})) for number, found in by.items()}
                for transport, by in rows["mesh"].items()
                if transport in rows["relayed"]
            },
            "chain": rows["chain"],
            "guarded": rows["guarded"],
            "durable": rows["durable"],
            "durable_write_ms": self._disk,
            "durable_writes": self._writes(rows),
            "curve_ms": self._curve(rows["mesh"]),
        }
        return {**self._head, "asked": kept, **told, "skipped": self._skipped, "interrupted": self._over()}

    # ---- inside

    def _measure(self, transport: str, number: int) -> None:
        wanted = self._wanted
        with ExitStack() as stack:
            drives: dict[str, Drive] = {}
            for name in CHAINS if wanted.floor else ():
                self._tell(f"{transport}: the bare chains start", number / len(wanted.transports))
                drives[name] = self._bare(stack.enter_context(Chain(name, transport, wanted.tiny)))
            ways = {"mesh": wanted.durability, **({"durable": "full"} if wanted.durable and wanted.durability != "full" else {})}
            for name, durability in ways.items():
                self._tell(f"{transport}: the mesh with durability {durability} starts", number / len(wanted.transports))
                drives[name] = self._served(stack, transport, durability)
            plan = [(in_flight, turn) for in_flight in wanted.in_flight for turn in range(wanted.rounds)]
            for place, (in_flight, turn) in enumerate(plan):
                names = list(drives)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    if self._over():
                        return
                    if name == "durable" and in_flight != min(wanted.in_flight):
                        continue
                    done = (number + place / len(plan)) / len(wanted.transports)
                    self._tell(f"{transport}: {name}, {in_flight} in flight, round {turn + 1} of {wanted.rounds}", done)
                    self._runs.setdefault((name, transport, in_flight), []).append(drives[name](in_flight))

    def _bare(self, chain: Chain) -> Drive:
        chain.drive(4, 0.1, 8)  # the links come up
        return lambda in_flight: chain.drive(in_flight, self._wanted.seconds, self._wanted.least, self._over)

    def _served(self, stack: ExitStack, transport: str, durability: str) -> Drive:
        wanted = self._wanted
        settings = {**still({"tiny": wanted.tiny}), **over(transport), "mesh.durability": durability, **(wanted.settings or {})}
        mesh = stack.enter_context(measured(settings, apart=transport != "ipc", folder=wanted.folder)).ready()
        if not self._head["configuration"]:
            self._head["configuration"] = configuration(mesh.config)
            self._head["configuration"].pop("mesh.curve", None)  # as each transport has it
        if not self._disk:
            self._disk = durable.writes(mesh.state)
        clients = stack.enter_context(Clients([here()], mesh.door))
        clients.run([Run((ASK,), in_flight=4, least=8)])  # the links come up

        def drive(in_flight: int) -> Taken:
            run = Run((ASK,), in_flight=in_flight, seconds=wanted.seconds, least=wanted.least, settle=60.0)
            (report,) = clients.run([run], self._over)
            taken = Taken(in_flight)
            for record in report.records:
                if record.how != "finished":
                    raise MeshError(f"a request that nobody works on was {record.how}: {record.error or 'the mesh is full'}")
                taken.add(record.seconds, record.end)
            return taken

        return drive

    def _rows(self, what: str) -> dict[str, dict[str, Row]]:
        """By transport, by number in flight as text."""
        found: dict[str, dict[str, Row]] = {}
        for (name, transport, in_flight), runs in self._runs.items():
            if name == what and (said := row(runs)):
                found.setdefault(transport, {})[str(in_flight)] = said
        return found

    def _writes(self, rows: dict[str, dict[str, dict[str, Row]]]) -> dict[str, float]:
        """How many durable writes of a page the p50 of one at a time takes longer, by transport."""
        one, disk = str(min(self._wanted.in_flight)), self._disk.get(str(durable.PAGE), {})
        found: dict[str, float] = {}
        for transport, by in rows["durable"].items():
            plain = rows["mesh"].get(transport, {})
            if one in by and one in plain and disk:
                found[transport] = round((by[one]["p50_ms"] - plain[one]["p50_ms"]) / disk["p50_ms"], 2)
        return found

    @staticmethod
    def _curve(mesh: dict[str, dict[str, Row]]) -> dict[str, float]:
        """What CURVE adds to the p50 over TCP, by number in flight."""
        plain, curve = mesh.get("tcp", {}), mesh.get("tcp+curve", {})
        return {number: round(curve[number]["p50_ms"] - plain[number]["p50_ms"], 3) for number in plain if number in curve}


def _size(stage: str, tiny: bool) -> int:
    """Bytes of the frame that leaves a stage."""
    from ifmesh import bags

    return len(bags.encode(stages.bag(stage, REQUEST, tiny)))
