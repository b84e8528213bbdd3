"""A mesh that one `ifmesh up` starts on several hosts, over real sshds with keys of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ifmesh import Client, Image
from ifmesh.cascade import PICTURE
from ifmesh.client import Job
from ifmesh.request import STAGES, Request
from ifmesh.shipped import literal
from ifmesh.stage import Tensor
from tests.hosts.kit import LIMIT, ROOT, Host, Hosts, Process, until
from tests.hosts.mesh import PORT, STATE, Mesh, when
from tests.mesh.kit import bringing, expected

SSHD = "/usr/sbin/sshd"
FOX = Request("a red fox in the snow", seed=7)
SOURCE = Tensor("U8", (70_000,), bytes(range(250)) * 280)
MASK = Tensor("U8", (900,), b"mask file" * 100)
SETTINGS = """
Port 22
HostKey /run/ssh/host_key
AuthorizedKeysFile /run/ssh/authorized_keys
StrictModes no
UsePAM no
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
"""
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}", "PYTHONDONTWRITEBYTECODE": "1", "XDG_STATE_HOME": "/run"}
"""Of what runs on a host: the home folder there can only be read."""
STATE_THERE = "run/ifmesh/hosted"
WORKING = ("ready", "busy")


def why_no_ssh() -> str:
    """Why there can be no sshd here; "": there can."""
    missing = [name for name in (SSHD, "ssh-keygen") if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)}: apt-get install openssh-server"
    try:
        import asyncssh  # noqa: F401
    except ImportError:
        return "asyncssh is not installed: pip install 'ifmesh[ssh]'"
    return ""


def keygen(path: Path) -> str:
    """A new key; its public line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=LIMIT)
    return path.with_name(f"{path.name}.pub").read_text()


@dataclass(frozen=True, slots=True)
class Asked:
    """A job and what it brought."""

    job: Job
    request: Request
    upload: bytes

    def check(self) -> Image:
        """Its picture, byte for byte that of one process alone."""
        image = self.job.result(2 * LIMIT)
        assert image.data == expected(self.request, upload=self.upload)[PICTURE[self.request.last_stage].name][2], (
            f"{self.job.id}: other pixels"
        )
        return image


class Far(Mesh):
    """places: copies by stage by host, of those over SSH.  The hub is the host "one", with all other stages.  everywhere: its coordinator
    listens on loopback, too."""

    def __init__(self, hosts: Hosts, places: Mapping[str, Mapping[str, int]], step_ms: int = 0, everywhere: bool = False) -> None:
        super().__init__(hosts, hub="one")
        self.places = places
        self._everywhere = everywhere
        self._step_ms = step_ms
        self.sshds: dict[str, Process] = {}
        self.extra: dict[str, dict[str, object]] = {name: {} for name in places}
        """More keys of [hosts.NAME], or others in place of the good ones."""

    @property
    def folder(self) -> Path:
        """Of the operator, on the hub; there it is /run/mine."""
        return self.hosts[self.hub].files / "run/mine"

    def open(self) -> None:
        """Hosts, sshds, keys and ifmesh.toml."""
        self.hosts.add(self.hub, *self.places)
        self.folder.mkdir()
        self.public = keygen(self.folder / "id")
        for name in self.places:
            self.known(name, self.sshd(name))

    def known(self, name: str, public: str) -> None:
        """The operator knows this host key."""
        with open(self.folder / "known_hosts", "a") as file:
            file.write(f"{self.hosts[name].address} {public}")

    def sshd(self, name: str) -> str:
        """Its host key, once it listens; the same one as before."""
        host = self.hosts[name]
        folder = host.files / "run/ssh"
        if not folder.exists():
            keygen(folder / "host_key")
            (folder / "authorized_keys").write_text(self.public)
            (folder / "config").write_text(SETTINGS)
        (host.files / "run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.sshds[name] = host.start("sshd", SSHD, "-D", "-e", "-f", "/run/ssh/config")
        until(lambda: bool(host.run("ss", "-Hltn", "sport = :22").strip()), "sshd does not listen")
        return (folder / "host_key.pub").read_text()

    def configure(self) -> None:
        """Write the operator's ifmesh.toml."""
        listen = f"tcp://0.0.0.0:{PORT}" if self._everywhere else self.url
        text = f'[mesh]\nstate = "{STATE}"\nlisten = "{listen}"\naddress = "{self.hosts[self.hub].address}"\n[cascade]\ntoy = true\n'
        text += "".join(f"[services.{stage}]\noptions = {{ step_ms = {self._step_ms} }}\n" for stage in STAGES)
        for name, copies in self.places.items():
            told = {
                "address": self.hosts[name].address,
                "user": "root",
                "key": "/run/mine/id",
                "known_hosts": "/run/mine/known_hosts",
                "python": sys.executable,
                "environment": ENVIRONMENT,
                "copies": copies,
                **self.extra[name],
            }
            text += f"[hosts.{name}]\n" + "".join(f"{key} = {literal(value)}\n" for key, value in told.items())
        (self.folder / "ifmesh.toml").write_text(text)

    def start(self) -> Process:
        """`ifmesh up` on the hub; the coordinator is there, and the rest on its way."""
        self.configure()
        command = [sys.executable, "-m", "ifmesh", "up", "--tied", "--config", "/run/mine/ifmesh.toml"]
        process = self.hosts[self.hub].start("up", *command)
        told = self.hosts[self.hub].files / STATE[1:] / "endpoint.json"
        until(told.exists, "the coordinator does not come up")
        return process

    def here(self, *arguments: str) -> str:
        """What this command of ifmesh says, on the hub.  CalledProcessError: its code is not 0."""
        return self.hosts[self.hub].run(sys.executable, "-m", "ifmesh", *arguments, "--config", "/run/mine/ifmesh.toml")

    def names(self, *hosts: str) -> set[str]:
        """What the services of these hosts are called."""
        return {f"{stage}-{n}@{host}" for host in hosts for stage, copies in self.places[host].items() for n in range(copies)}

    def works(self, client: Client, *hosts: str) -> None:
        """Wait until everything on these hosts, or on all, is ready."""
        wanted = self.names(*(hosts or self.places))
        when(client, lambda books: wanted <= {row.service for row in books.services if row.state in WORKING})


def ask(client: Client, prefix: str, number: int, **more: object) -> list[Asked]:
    """So many jobs of three kinds in turn, under PREFIX-0 ..."""
    made = []
    for n in range(number):
        request = Request(FOX.prompt, seed=100 + n, task=("generate", "vary", "inpaint")[n % 3], **more)  # type: ignore[arg-type]
        upload = b""
        if request.task == "vary":
            request, upload = bringing(request, source=SOURCE)
        if request.task == "inpaint":
            request, upload = bringing(request, source=SOURCE, mask=MASK)
        made.append(Asked(client.ask(request, f"{prefix}-{n}", upload), request, upload))
    return made


def far_pids(host: Host, words: str) -> list[int]:
    """Of what runs on that host with these words in its command line, as the host counts."""
    said = host.run("sh", "-c", f"grep -al -- '[{words[0]}]{words[1:].replace(' ', '.')}' /proc/[0-9]*/cmdline 2>/dev/null || true")
    return [int(line.split("/")[2]) for line in said.split()]


def nothing_stays(host: Host) -> None:
    """Wait until nothing of ifmesh runs on that host, nor anything that is about to become it."""
    until(lambda: not far_pids(host, "-m ifmesh") + far_pids(host, "exec(eval("), f"something stays behind on {host.name}")
