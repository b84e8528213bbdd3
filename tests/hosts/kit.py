"""Hosts on one machine: each with its own network, files, name and processes, and a switch between them that can be told to be bad.

A host is a set of Linux namespaces that lives as long as its first process (`host.py`), which ends with its standard input.  So nothing
has a name outside that could collide or be left behind: whatever becomes of the test, the kernel clears up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.hosts.switch import enter
from tests.hosts.wire import PLAIN, Link

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds after which a test that waits has failed.  Generous: the machine may be busy."""
SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")


@dataclass(slots=True)
class Process:
    """One command on a host.  log: its stdout and stderr."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """As this machine counts; on its host it has another.  LookupError: it has ended, or is just about to start."""
        children = psutil.Process(self.popen.pid).children()  # of nsenter, which ends as its child does
        if not children:
            raise LookupError(f"{self.popen.args!r} does not run")
        return int(children[0].pid)

    def family(self) -> list[psutil.Process]:
        """It, and those that it has started."""
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.popen.pid).children(recursive=True))
        return []

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, with all that it has started."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.popen.wait(LIMIT)

    def code(self) -> int:
        """Its exit code, once it has ended; negative: the signal."""
        return self.popen.wait(LIMIT)


@dataclass(slots=True)
class Host:
    """name: its host name, too.  address: in the network of all hosts.  init: `unshare`, whose child is the host's first process."""

    name: str
    address: str
    init: subprocess.Popen[bytes]
    logs: Path
    pid: int = 0  # of the first process, as this machine counts
    processes: list[Process] = field(default_factory=list)

    @property
    def files(self) -> Path:
        """The host's root folder, from outside.  Only while the host is up."""
        return Path(f"/proc/{self.pid}/root")

    def start(self, log: str, *command: str, env: Mapping[str, str] | None = None) -> Process:
        """Run a command there, in its /tmp, tied to this process: its standard input ends when the test does."""
        path = self.logs / f"{self.name}-{log}.log"
        with open(path, "ab") as out:
            made = subprocess.Popen(
                self._there(command), stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment(env), process_group=0
            )
        self.processes.append(Process(made, path))
        return self.processes[-1]

    def run(self, *command: str, limit: float = LIMIT) -> str:
        """Run a command there and wait; what it wrote.  CalledProcessError: its code is not 0."""
        there, silent = self._there(command), subprocess.DEVNULL
        done = subprocess.run(there, stdin=silent, capture_output=True, text=True, env=environment(), timeout=limit, check=False)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def python(self, code: str, *arguments: str, limit: float = LIMIT) -> str:
        """What this Python program writes there."""
        return self.run(sys.executable, "-c", code, *arguments, limit=limit)

    def hang_up(self, address: str, *ports: str) -> None:
        """Its TCP connections to that address end at once; what was on its way in them is lost.

        ports: of them all, those that `ss` selects so: "dport = :7640".
        """
        self.run("ss", "--kill", "--tcp", "dst", address, *ports)

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread is in the host's network.  Sockets, threads and ZeroMQ contexts that it makes meanwhile stay there."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            enter(inside)
            yield
        finally:
            enter(outside)
            os.close(inside)
            os.close(outside)

    def _there(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self.pid), *SPACES, "--wd=/tmp", "--", *command]


class Hosts:
    """The hosts of one test, and their switch.  seed: of all that the switch leaves to chance."""

    def __init__(self, logs: Path, seed: int = 0) -> None:
        self._logs, self._seed = logs, seed
        self._switch: subprocess.Popen[bytes] | None = None
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.hosts.switch", str(self._seed)]
        self._switch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, process_group=0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for host in list(self.hosts.values()):
                self.remove(host.name)
        finally:
            assert self._switch is not None
            self._switch.communicate(timeout=LIMIT)
        if kind is not None:
            for path in sorted(self._logs.iterdir()):
                print(f"---- {path.name}\n{path.read_text(errors='replace')[-4000:]}")

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def add(self, *names: str, mtu: int = 1500) -> list[Host]:
        """These hosts, up and connected.  mtu: bytes; 65000 where the speed of the switch itself matters."""
        keep = {str(ROOT), *(str(Path(p)) for p in (sys.prefix, sys.base_prefix))}
        made = []
        for name in names:
            assert name not in self.hosts, name
            first = ["unshare", *SPACES, "--fork", "--kill-child", sys.executable, "-S", "-E", str(ROOT / "tests/hosts/host.py"), name]
            init = subprocess.Popen([*first, *sorted(keep)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
            self.hosts[name] = Host(name, f"10.77.0.{self._number()}", init, self._logs)
            made.append(self.hosts[name])
        for host in made:
            assert host.init.stdout is not None
            assert host.init.stdout.readline() == b"up\n", f"{host.name} does not come up"
            host.pid = psutil.Process(host.init.pid).children()[0].pid
            number = int(host.address.rpartition(".")[2])
            self._order("plug", name=host.name, pid=host.pid, address=f"{host.address}/24", mac=f"02:00:00:00:00:{number:02x}", mtu=mtu)
        return made

    def remove(self, name: str) -> None:
        """As if its power failed: from one moment to the next it is silent, and gone with all that ran and lay there."""
        host = self.hosts.pop(name)
        if self._switch is not None and self._switch.poll() is None:
            self._order("unplug", name=name)
        running = [host.init, *(process.popen for process in host.processes)]
        inside = [one for process in host.processes for one in process.family()]
        host.init.kill()  # and the kernel everything there
        for popen in running:
            if popen.stdin is not None:
                with suppress(BrokenPipeError):
                    popen.stdin.close()
            popen.wait(LIMIT)
        if host.init.stdout is not None:
            host.init.stdout.close()
        psutil.wait_procs(inside, LIMIT)

    # ---- the links

    def link(self, a: str, b: str, how: Link, both: bool = True) -> None:
        """From now on frames go from a to b so, and back if `both`."""
        for source, target in ((a, b), (b, a)) if both else ((a, b),):
            self._order("link", source=source, target=target, **({} if how == PLAIN else asdict(how)))

    def all(self, how: Link) -> None:
        """Every link so."""
        for a, b in combinations(self.hosts, 2):
            self.link(a, b, how)

    def blackhole(self, a: str, b: str, both: bool = True) -> None:
        """Nothing comes from a to b any more, nor back if `both`; nobody is told."""
        self.link(a, b, Link(dead=True), both)

    def isolate(self, name: str) -> None:
        """Nothing comes to this host or from it; nobody is told."""
        for other in self.hosts:
            if other != name:
                self.blackhole(name, other)

    def heal(self) -> None:
        """Every link is plain, and every cable in."""
        for name in self.hosts:
            self.plug(name)
        self.all(PLAIN)

    def cut(self, name: str) -> None:
        """Pull the cable of this host: it notices at once that it has no carrier, the others do not."""
        self._order("cable", name=name, plugged=False)

    def plug(self, name: str) -> None:
        self._order("cable", name=name, plugged=True)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Frames carried and dropped so far, by "from>to"."""
        told = self._order("count")
        assert isinstance(told, dict)
        return {pair: (carried, dropped) for pair, (carried, dropped) in told.items()}

    def _order(self, order: str, **arguments: object) -> object:
        """Tell the switch; it holds when this returns."""
        assert self._switch is not None
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(json.dumps({"order": order, **arguments}).encode() + b"\n")
        self._switch.stdin.flush()
        answer = self._switch.stdout.readline()
        assert answer, f"the switch ended at {order} {arguments}"
        told: object = json.loads(answer)
        return told

    def _number(self) -> int:
        used = {int(host.address.rpartition(".")[2]) for host in self.hosts.values()}
        return min(set(range(1, 255)) - used)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a process on a host: nothing of ifmesh's but what is said here, and folders that are the host's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("IFMESH", "XDG_", "TMP", "PYTEST"))}
    return {**kept, "HOME": "/tmp", "PYTHONPATH": f"{ROOT}:{ROOT / 'services'}", "PYTHONDONTWRITEBYTECODE": "1", **(more or {})}


def last(seconds: float) -> None:
    """Let a fault last so long."""
    time.sleep(seconds)


def until(holds: Callable[[], bool], what: str = "never came true", limit: float = LIMIT) -> None:
    """Wait for something that has no event of its own to wait for."""
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def missing() -> str:
    """Why there can be no hosts here; "": there can."""
    if os.geteuid():
        return "hosts need root (network namespaces)"
    if not os.path.exists("/dev/net/tun"):
        return "hosts need /dev/net/tun"
    try:
        subprocess.run(["unshare", *SPACES, "--fork", "ip", "link", "set", "lo", "up"], capture_output=True, check=True, timeout=LIMIT)
        subprocess.run(["nsenter", "--version"], capture_output=True, check=True, timeout=LIMIT)
    except FileNotFoundError as error:
        return f"hosts need {error.filename} (util-linux, iproute2)"
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or b""
        return f"hosts need namespaces: {said.decode(errors='replace').strip() or error}"
    return ""
