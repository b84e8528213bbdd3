"""A mesh over test hosts: the coordinator on one, workers on others, the client on yet another, and nothing between them but the switch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ifmesh import Client, Image, Request, authorized, identity
from ifmesh.authorized import Entry
from ifmesh.cascade import PICTURE
from ifmesh.client import Job
from ifmesh.identity import Identity
from ifmesh.protocol import Books
from tests.hosts.kit import LIMIT, Host, Hosts, Process, until
from tests.mesh.kit import expected

PORT = 7640
STATE = "/run/state"  # of each process, on its own host
WORKING = ("ready", "busy")


@dataclass(frozen=True, slots=True)
class Asked:
    """A job and what it is to look like."""

    job: Job
    request: Request

    def check(self, limit: float) -> Image:
        """Its picture, which is that of an undisturbed run, byte for byte.  TimeoutError: there is none in so many seconds."""
        image = self.job.result(limit)
        assert image.data == expected(self.request)[PICTURE[self.request.last_stage].name][2], f"{self.job.id}: other pixels"
        return image


class Mesh:
    """settings: by dotted key, as in ifmesh.toml.  hub: the host of the coordinator."""

    def __init__(self, hosts: Hosts, hub: str = "hub", settings: Mapping[str, str | int | float] | None = None) -> None:
        self.hosts, self.hub = hosts, hub
        self._invitation = ""
        self.settings = {"mesh.state": STATE, "cascade.toy": "true", **(settings or {})}

    @property
    def url(self) -> str:
        return f"tcp://{self.hosts[self.hub].address}:{PORT}"

    def coordinator(self) -> Process:
        """Started and bound."""
        host = self.hosts[self.hub]
        process = self._start(host, "coordinator", "coordinator", "--set", f"mesh.listen={self.url}")
        told = host.files / STATE[1:] / "endpoint.json"
        until(lambda: told.exists() or process.popen.poll() is not None, "the coordinator does not come up")
        assert process.popen.poll() is None, process.log.read_text()
        return process

    def worker(self, host: str, stage: str) -> Process:
        """With a key of its own, in a file on its host."""
        name, there = named(stage, host), self.hosts[host]
        file = there.files / f"tmp/{name}.key"
        if not file.exists():
            identity.write(file, self.invite(name, f"worker:{stage}"))
        arguments = ("worker", stage, "--name", name, "--set", f"mesh.identity=/tmp/{name}.key")  # it tells the address, too
        return self._start(there, name, *arguments)

    def invite(self, name: str, role: str) -> Identity:
        """A new key that the coordinator is to know; one that the name had before is known no more."""
        keys = self.hosts[self.hub].files / STATE[1:] / "keys"
        server = identity.read(keys / "coordinator.key").server
        made = Identity(name, role, identity.generate(), server, self.url)
        authorized.remove(keys / authorized.FILE, name)
        authorized.add(keys / authorized.FILE, Entry(name, role, made.keys.public))
        return made

    def up(self, places: Mapping[str, Iterable[str]], client: str = "client") -> dict[str, Process]:
        """The coordinator and these stages, by host, all of them ready; the processes by their names."""
        made = {"coordinator": self.coordinator()}
        made |= {named(stage, host): self.worker(host, stage) for host, stages in places.items() for stage in stages}
        with self.client(client) as one:
            ready(one, *(set(made) - {"coordinator"}))
        return made

    @contextmanager
    def client(self, host: str = "client") -> Iterator[Client]:
        """A client in this process that has only that host's network, as has whatever else is connected meanwhile."""
        if not self._invitation:
            self._invitation = identity.dumps(self.invite("client", "client"))
        with self.hosts[host].network(), Client(self.url, identity=self._invitation, timeout=600.0) as made:
            yield made

    def _start(self, host: Host, log: str, *arguments: str) -> Process:
        flags = [part for key, value in {**self.settings, "mesh.address": host.address}.items() for part in ("--set", f"{key}={value}")]
        return host.start(log, sys.executable, "-m", "ifmesh", *arguments, "--tied", *flags)


def named(stage: str, host: str) -> str:
    """The service of this stage on this host."""
    return f"{stage}-{host}"


def host_of(name: str) -> str:
    """Where the service of this name is."""
    return name.rpartition("-")[2]


def ask(client: Client, requests: Iterable[Request], prefix: str = "job") -> list[Asked]:
    """Submitted, under the ids PREFIX-0, PREFIX-1 ...  It does not wait for the mesh."""
    return [Asked(client.ask(request, f"{prefix}-{n}"), request) for n, request in enumerate(requests)]


def when(client: Client, holds: Callable[[Books], bool], job: str = "") -> Books:
    """The first books of which this holds."""
    books: list[Books] = []

    def look() -> bool:
        books[:] = [client.status(job)]
        return holds(books[0])

    until(look, "the books never say so")
    return books[0]


def ready(client: Client, *names: str) -> None:
    """Wait for these services."""
    when(client, lambda books: set(names) <= {row.service for row in books.services if row.state in WORKING})


def back(client: Client, names: Iterable[str], since: float) -> float:
    """Wait until each of these services was heard after that moment, and has its place; seconds from that moment on."""
    wanted = set(names)

    def heard(books: Books) -> bool:
        young = {row.service for row in books.services if row.state in WORKING and row.seen_s < time.monotonic() - since}
        return wanted <= young

    when(client, heard)
    return time.monotonic() - since


def works(client: Client, job: str, stage: str) -> str:
    """Wait until a worker has begun this stage of the job; its name."""

    def begun() -> list[str]:
        return [what for what in story(client, job) if what.startswith(f"{stage}: begun on ")]

    until(lambda: bool(begun()), f"{job}: {stage} is never begun")
    return begun()[-1].rpartition(" ")[2]


def story(client: Client, job: str) -> list[str]:
    """What happened to it, without the times."""
    return [what for _, what in client.status(job).story]


def starts(client: Client, job: str) -> dict[str, int]:
    """How often each stage of a finished job was granted."""
    return {run.stage: run.runs for run in client.status(job).runs}


def ended(client: Client, asked: Iterable[Asked], limit: float = LIMIT) -> None:
    """Every one has ended, once, with the pixels of an undisturbed run; and nothing is open."""
    for one in asked:
        one.check(limit)
        told = story(client, one.job.id)
        print(one.job.id, told)
        assert [what.partition(" ")[0] for what in told].count("accepted") == 1, told
        assert sum(": completed: " in what for what in told) == 1, told
        assert client.status(one.job.id).ending == "finished"
    assert client.status().jobs == ()
