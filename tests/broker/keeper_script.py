"""The interpreter of the stories of a worker's mind; see `script`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ifmesh import chores
from ifmesh.keeper import Keeper
from ifmesh.prober import Cast
from ifmesh.protocol import Endpoint, Header, Hello
from tests.broker.teller import INLET, Teller, frame, numbers, show


class KeeperStory(Teller):
    """The story of a worker.  WHO is hub (a message), data (a bag over PULL), compute (the compute thread) or shell."""

    def __init__(self, keeper_type: type[Keeper] = Keeper) -> None:
        super().__init__()
        self._type = keeper_type
        self._keeper: Keeper | None = None
        self._stage = ""

    def begin(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        if word == "keeper":
            life, self._stage, *more = rest.split()
            hello = Hello(self._stage, life, life.partition(".")[0], 1, "here", "cpu", (Endpoint("", f"tcp://{life}"),), 2, "")
            self._keeper = self._type(hello, **numbers(" ".join(more)))
        return word == "keeper"

    def wakeup(self) -> float | None:
        assert self._keeper is not None
        return self._keeper.wakeup() if self.now or self._started else None

    _started = False

    def tick(self) -> list[str]:
        assert self._keeper is not None
        return self._said(self._keeper.tick(self.now))

    def hear(self, who: str, what: str) -> list[str]:
        mind = self._keeper
        assert mind is not None
        if who == "hub":
            names = self.names | {"INLET": INLET, "to": lambda life: (Endpoint("", f"tcp://{life}"),)}
            return self._said(mind.receive(self.now, eval(what, {"__builtins__": {}}, names)))
        doing: dict[str, Callable[..., list[Any]]] = {
            "bag": lambda job, token: mind.arrived(self.now, Header("bag", job, self._stage, token, "d"), frame(job)),
            "checkpoint": lambda job, token, step: mind.arrived(
                self.now, Header("checkpoint", job, self._stage, token, "d", step), f"{job} after {step}".encode()
            ),
            "probe": lambda token, step, size=0: mind.arrived(self.now, Header("probe", "", "", token, "d", step), bytes(size)),
            "answer": lambda token, step, told=0.0: mind.arrived(
                self.now, Header("probe", "", "", token, "d", step), struct.pack("<d", told)
            ),
            "saved": lambda job, token, step: mind.saved(self.now, job, token, step, b"saved", "d"),
            "start": lambda: mind.start(self.now),
            "weighed": lambda needs, budget: mind.weighed(self.now, needs, budget),
            "denied": lambda: mind.denied(self.now),
            "cleared": lambda: mind.cleared(self.now),
            "loaded": lambda numeric: mind.loaded(self.now, numeric),
            "advanced": lambda *a: mind.advanced(self.now, *a),
            "completed": lambda job, token: mind.completed(self.now, job, token, frame(job), f"{self._stage}-{job}", 1.0),
            "raised": lambda *a: mind.raised(self.now, *a),
            "spoiled": lambda *a: mind.spoiled(self.now, *a),
            "drain": lambda: mind.drain(self.now),
            "wait": list,
            "take": list,
        }
        self._started = True
        if what == "take()":
            task, commands = mind.take(self.now)
            on = f", from {bytes(task.saved).decode()!r} on" if task and task.saved else ""
            return [f"task: {task.job!r} under {task.token}{on}" if task else "task: none", *self._said(commands)]
        return self._said(eval(what, {"__builtins__": {}}, self.names | doing))

    def _said(self, commands: list[Any]) -> list[str]:
        out = []
        for c in commands:
            if isinstance(c, chores.Send):
                out.append(f"hub < {show(c.message)}")
            elif isinstance(c, chores.Carry):
                out.append(f"{c.life or 'hub'} << {c.header.kind} of {c.header.job!r} under {c.header.token} to {show(c.to)}")
            elif isinstance(c, Cast):
                out.append(f"{c.life or 'hub'} << frame {c.header.step} of probe {c.header.token}, {len(c.frame)} bytes, to {show(c.to)}")
            elif isinstance(c, chores.Forget):
                out.append(f"compute: forget {c.job!r} under {c.token}")
            else:
                out.append(f"shell: {show(c)}")
        return out
