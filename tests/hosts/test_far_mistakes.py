"""What a human must mend before a host can work: each is one line that names the key and what to do, and never a secret."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifmesh import authorized
from tests.hosts.conftest import why_not
from tests.hosts.far import ENVIRONMENT, Far, keygen, why_no_ssh
from tests.hosts.kit import LIMIT, ROOT, Hosts
from tests.hosts.mesh import PORT, STATE

BASE = str(Path(sys._base_executable).resolve())  # type: ignore[attr-defined]  # the Python of the environment, which has nothing installed
SOURCES = ENVIRONMENT["PYTHONPATH"]
OTHER = {**ENVIRONMENT, "PYTHONPATH": "/run/other"}

ELSEWHERE = {**ENVIRONMENT, "XDG_STATE_HOME": "/mnt"}
REAL = {**ENVIRONMENT, "IFMESH_CASCADE_TOY": "false"}
TYPO = {**ENVIRONMENT, "IFMESH_CASCADEE": "x"}

Case = tuple[dict[str, object], int, tuple[str, ...]]
KNOWN = "hosts.two.known_hosts: "
OFTEN: dict[str, Case] = {
    "wrong host key": ({"known_hosts": "/run/mine/wrong"}, 3, (KNOWN, "another host key", "ssh-keygen -f")),
    "refused key": ({"key": "/run/mine/stranger"}, 3, ("hosts.two.key: ", "refuses the key /run/mine/stranger for root", "ssh-copy-id")),
    "another version": ({"environment": OTHER}, 3, ("hosts.two.python: another ifmesh is there", "protocol 999", "-m pip install")),
    "full disk": ({"environment": ELSEWHERE}, 3, ("hosts.two: ", "No space left", "make room")),
}
"""More keys of [hosts.two], the exit code, and what the line says."""
SELDOM: dict[str, Case] = {
    "unknown host key": ({"known_hosts": "/run/mine/nobody"}, 3, (KNOWN, "does not hold the host key", "ssh-keyscan -p 22")),
    "no known hosts": ({"known_hosts": "/run/mine/gone"}, 3, (f"{KNOWN}'/run/mine/gone': no such file",)),
    "no key": ({"key": "/run/mine/gone"}, 3, ("hosts.two.key: '/run/mine/gone': no such file",)),
    "no key in it": ({"key": "/run/mine/nobody"}, 3, ("hosts.two.key: ", "no private key that can be read", "ssh-keygen -t")),
    "no python": ({"python": "python3.99"}, 3, ("hosts.two.python: 'python3.99': there is no such command", "install Python")),
    "no ifmesh": ({"python": BASE, "environment": {}}, 3, ("hosts.two.python: ifmesh is not installed", "-m pip install")),
    "a package is missing": ({"python": BASE}, 3, ("hosts.two.python: missing there: zmq, msgpack", "-m pip install")),
    "read-only home": ({"environment": {"PYTHONPATH": SOURCES}}, 3, ("hosts.two: /root", "Read-only file system", "XDG_STATE_HOME")),
    "wrong variable": ({"environment": TYPO}, 3, ("IFMESH_CASCADEE: no such setting; did you mean",)),
    "missing cascade": ({"environment": REAL}, 3, ("cascade.path: '/run/mine/weights'", "no folder")),
    "nobody listens": ({"port": 23}, 4, ("hosts.two.port: nobody listens at [10.77.0.2]:23", "start sshd")),
    "no such name": ({"address": "two.invalid"}, 4, ("hosts.two.address: 'two.invalid': no such name",)),
}
CASES = OFTEN | SELDOM


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """Host one has all that it needs, and somebody listens where the coordinator would."""
    if why := why_not() or why_no_ssh():
        pytest.skip(why)
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        made = Far(hosts, {"two": {"stage_one": 1}})
        made.open()
        folder = made.folder
        keygen(folder / "stranger")
        (folder / "nobody").write_text("")
        (folder / "wrong").write_text(f"{hosts['two'].address} {keygen(folder / 'another')}")
        (folder / "weights").mkdir()
        (folder / "weights/cascade.json").write_text("{}")
        authorized.prepare(hosts["one"].files / STATE[1:])
        other = hosts["two"].files / "run/other"
        shutil.copytree(ROOT / "ifmesh", other / "ifmesh", ignore=shutil.ignore_patterns("__pycache__"))
        source = other / "ifmesh/protocol.py"
        source.write_text(f"{source.read_text()}\nVERSION = 999\n")
        hosts["two"].run("mount", "-t", "tmpfs", "-o", "size=16k", "full", "/mnt")
        hosts["two"].run("sh", "-c", "mkdir -p /mnt/ifmesh; head -c 1M /dev/zero > /mnt/filling 2>/dev/null || true")
        with hosts["one"].network():
            listener = socket.create_server((hosts["one"].address, PORT))
        with listener:
            yield made


@pytest.mark.parametrize("case", [*OFTEN, *(pytest.param(case, marks=pytest.mark.matrix) for case in SELDOM)])
def test_one_line_says_what_to_mend(far: Far, case: str) -> None:
    told, code, words = CASES[case]
    far.extra["two"] = told
    far.configure()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        far.here("remote", "two", "--set", "cascade.path=/run/mine/weights", "--coordinator", far.url)
    lines = (caught.value.stdout + caught.value.stderr).splitlines()
    said = [line for line in lines if not line.startswith(("connected", "bash: ", "pyenv: "))]  # what the shell there says is its own
    assert (caught.value.returncode, len(said)) == (code, 1), said
    assert [word for word in words if word not in said[0]] == [], said[0]


@pytest.mark.matrix
def test_a_coordinator_that_the_host_cannot_reach(far: Far) -> None:
    far.extra["two"] = {}
    far.configure()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        far.here("remote", "two", "--coordinator", f"tcp://{far.hosts['one'].address}:1")
    assert caught.value.returncode == 4
    assert "from there the coordinator at tcp://10.77.0.1:1 cannot be reached (Connection refused): open that port" in caught.value.stdout


@pytest.mark.matrix
def test_a_control_port_that_is_taken(far: Far) -> None:
    far.extra["two"] = {}
    far.configure()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        far.here("up")
    assert caught.value.returncode == 3
    assert "choose another: --listen, mesh.listen" in caught.value.stderr


@pytest.mark.matrix
def test_without_asyncssh_it_says_what_to_install(far: Far) -> None:
    lacking = far.hosts["one"].files / "run/lacking"
    lacking.mkdir()
    (lacking / "asyncssh.py").write_text("raise ImportError")
    far.extra["two"] = {}
    far.configure()
    command = [sys.executable, "-m", "ifmesh", "remote", "two", "--config", "/run/mine/ifmesh.toml", "--coordinator", far.url]
    process = far.hosts["one"].start("lacking", *command, env={"PYTHONPATH": f"/run/lacking:{SOURCES}"})
    assert process.popen.wait(LIMIT) == 3
    assert process.log.read_text() == "ifmesh: hosts.two: asyncssh is not installed: pip install 'ifmesh[ssh]'\n"
