"""The client processes of a benchmark on other hosts: as `clients`, with a crew of them on each host, over one connection of SSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from secrets import token_hex
from time import time
from types import TracebackType
from typing import Any, Self

from ifmesh import authorized, identity, typed
from ifmesh.bench.clients import STARTING, Command, answers
from ifmesh.bench.lines import Lines, Message
from ifmesh.bench.orders import Report, Run
from ifmesh.config import Config
from ifmesh.errors import Lost, MeshError, Misconfigured

BOARDING = 2 * STARTING
"""Seconds in which the clients of a host have to be ready: the connection, and its checks, come before."""
KINDS: Mapping[str, type[MeshError]] = {"Misconfigured": Misconfigured, "Lost": Lost}


class Crew(Lines):
    """Its errors name the host already."""

    def failure(self, told: Message) -> MeshError:
        return KINDS.get(told.get("kind", ""), MeshError)(told["error"])


class Crews:
    """commands: of the near end (`remote`), by host.  each: clients on every host.  mesh: where it is, as in `orders`, seen from there.

    over: is this to end?  It is asked while they start.
    """

    def __init__(self, commands: Mapping[str, Command], each: int, mesh: Message, over: Callable[[], bool]) -> None:
        self._commands, self._each, self._mesh, self._over = commands, each, mesh, over
        self._lines: dict[str, Crew] = {}
        self.machines: dict[str, Any] = {}
        """What each host is, as in `head.machine`."""

    def __enter__(self) -> Self:
        try:
            for name, command in self._commands.items():
                self._lines[name] = Crew(command, f"hosts.{name}: what asks there")
                self._lines[name].say({"name": name, "clients": self._each, "mesh": self._mesh})
            for name, line in self._lines.items():
                self.machines[name] = line.wait("ready", BOARDING, self._over)
        except BaseException:
            self._end()
            if self._over():
                raise KeyboardInterrupt from None
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def run(
        self, runs: Sequence[Run], over: Callable[[], bool] = lambda: False, tell: Callable[[float], None] = lambda s: None
    ) -> list[Report]:
        """As `Clients.run`; the runs of one host stand beside each other."""
        for number, line in enumerate(self._lines.values()):
            line.say({"run": [asdict(run) for run in runs[number * self._each : (number + 1) * self._each]]})
        told = answers(list(self._lines.values()), over, tell)
        return [typed.build(Report, report, "report") for reports in told for report in reports]

    def _end(self) -> None:
        for line in self._lines.values():
            line.end()


@contextmanager
def door(config: Config, seconds: float) -> Iterator[Message]:
    """Where the mesh is for clients on other hosts, as in `orders`.  The invite in it goes from pipe to pipe, and never into a file there.

    On the coordinator's host it is a key of its own, of a gateway as these clients have no end of jobs, which is let in no longer than
    this; elsewhere the one that this process has itself.  seconds: that it may take.  Misconfigured: there is no key.
    """
    url = config.control()
    told = {"coordinator": url, "state": "", "identity": False}
    if not config.mesh.curve:
        yield told
        return
    me = config.identity("client")
    if config.invited() is not None:
        yield told | {"identity": identity.dumps(me)}
    else:
        name = f"bench-{token_hex(4)}"
        made = authorized.invite(config.mesh.state, name, "gateway", url, float(int(time() + seconds)))
        try:
            yield told | {"identity": identity.dumps(made)}
        finally:
            authorized.remove(config.mesh.state / "keys" / authorized.FILE, name)
