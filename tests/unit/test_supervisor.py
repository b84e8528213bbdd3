"""`ifmesh up` without a mesh in it: real processes, signals and pipes, with scripts in place of the services."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ifmesh import identity, lease, line
from ifmesh.config import read
from ifmesh.errors import MeshError
from ifmesh.kept import REFUSED, Backoff, Service, ending, killed, services
from ifmesh.renewal import LEAVING, LOADING, Renewal
from ifmesh.supervisor import Lines

SCRIPTS = Path(__file__).with_name("mesh_of_scripts.py")
LIMIT = 30.0


def test_the_wait_doubles_up_to_the_ceiling_and_starts_afresh_after_calm() -> None:
    backoff = Backoff()
    assert [backoff.died(1.0) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff.died(60.0) == 0.5
    assert backoff.died(0.0) == 1.0


@pytest.mark.parametrize(
    ("code", "outside", "words"),
    [
        (0, False, "ended by itself"),
        (1, False, "exit 1"),
        (3, False, "exit 3: its configuration"),
        (75, False, "exit 75"),
        (-9, True, "SIGKILL from outside"),
        (137, True, "SIGKILL from outside"),
        (-15, True, "SIGTERM from outside"),
        (130, True, "SIGINT from outside"),
        (-11, False, "SIGSEGV"),
        (134, False, "SIGABRT"),
        (255, False, "exit 255"),
    ],
)
def test_whose_fault_a_death_was(code: int, outside: bool, words: str) -> None:
    assert killed(code) is outside
    assert ending(code).startswith(words)


def test_what_crashed_at_work_is_soon_back_and_what_cannot_begin_is_not() -> None:
    crashed, broken = Service("guard-0", "guard", ()), Service("guard-1", "guard", ())
    assert [crashed.died(1.0, 134) for _ in range(6)] == [0.5, 1, 2, 2, 2, 2]
    assert [broken.died(1.0, 3) for _ in range(6)] == [0.5, 1, 2, 4, 8, 16]
    assert crashed.died(1.0, 137) == 0.0


def test_it_types_what_an_operator_would() -> None:
    config = read(None, {"HOME": "/users/anna"}, {"services.stage_one.copies": 2, "services.guard.copies": 0})
    typed = [" ".join(s.command) for s in services(config, ("--set", "cascade.toy=true"))]
    assert typed == [
        "coordinator --tied --set cascade.toy=true",
        "worker encoder --name encoder-0 --tied --set cascade.toy=true",
        "worker stage_one --name stage_one-0 --tied --set cascade.toy=true",
        "worker stage_one --name stage_one-1 --tied --set cascade.toy=true",
        "worker stage_two --name stage_two-0 --tied --set cascade.toy=true",
        "worker upscaler --name upscaler-0 --tied --set cascade.toy=true",
    ]


class Up:
    """A running supervisor: what it says, line by line, and the pids that it has named."""

    def __init__(self, state: Path, copies: int, what: str = "up") -> None:
        command = [sys.executable, str(SCRIPTS), what, str(state), str(copies)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self.said: list[str] = []
        self.pids: list[int] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as pipe:
            for line in pipe:
                self._lines.put(line.rstrip("\n"))

    def hears(self, pattern: str) -> str:
        """The next line that matches; an error with all that was said when none comes."""
        while True:
            try:
                line = self._lines.get(timeout=LIMIT)
            except queue.Empty:
                raise AssertionError(f"nothing like {pattern!r} in:\n" + "\n".join(self.said)) from None
            self.said.append(line)
            if found := re.match(r"up: \S+: pid (\d+)", line):
                self.pids.append(int(found[1]))
            if re.search(pattern, line):
                return line

    def pid(self, service: str) -> int:
        found = re.search(r"pid (\d+)", self.hears(rf"up: {service}: pid \d+"))
        assert found
        return int(found[1])

    def ended(self) -> int:
        """Its exit code; then nothing that it has started may live."""
        code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        while not self._lines.empty():
            self.hears("")
        left = [psutil.Process(pid) for pid in self.pids if psutil.pid_exists(pid)]
        _, alive = psutil.wait_procs(left, timeout=LIMIT)
        assert not alive
        return code


@pytest.fixture
def up(tmp_path: Path) -> Iterator[list[Up]]:
    """What was started here is killed at the end, if it must be."""
    started: list[Up] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.ended()


def start(up: list[Up], state: Path, copies: int = 1, what: str = "up") -> Up:
    up.append(Up(state, copies, what))
    return up[-1]


def test_coordinator_first_then_workers_then_down(up: list[Up], tmp_path: Path) -> None:
    mesh = start(up, tmp_path, copies=2)
    mesh.hears("up: coordinator: pid")
    mesh.hears("coordinator: here --tied")
    mesh.hears("up: ready: all of it")
    told = lease.written(tmp_path)
    assert (told["pid"], told["control"], told["ready"]) == (mesh.process.pid, "tcp://127.0.0.1:9", True)
    while not [line for line in mesh.said if line.startswith("stage_one-1: here")]:
        mesh.hears("stage_one-.: here stage_one --name stage_one-. --tied --coordinator tcp://127.0.0.1:9")
    mesh.process.send_signal(signal.SIGTERM)
    assert mesh.ended() == 0
    order = [line for line in mesh.said if line.endswith(("SIGTERM", "bye"))]
    assert order[:2] == ["coordinator: SIGTERM", "coordinator: bye"]
    assert sorted(order[2:]) == ["stage_one-0: SIGTERM", "stage_one-0: bye", "stage_one-1: SIGTERM", "stage_one-1: bye"]
    assert not (tmp_path / "up.json").exists()
    assert lease.holder(tmp_path) == 0
    assert "here --tied\nSIGTERM\nbye\n" in (tmp_path / "logs" / "coordinator.log").read_text()


def test_killed_from_outside_it_starts_again_at_once(up: list[Up], tmp_path: Path) -> None:
    mesh = start(up, tmp_path)
    for _ in range(3):
        pid = mesh.pid("stage_one-0")
        mesh.hears("stage_one-0: here")
        os.kill(pid, signal.SIGKILL)
        mesh.hears("up: stage_one-0: SIGKILL from outside; again at once")


def test_a_death_of_its_own_making_waits_longer_each_time(up: list[Up], tmp_path: Path) -> None:
    (tmp_path / "stage_one-0.does").write_text("exit 1")
    mesh = start(up, tmp_path)
    mesh.hears(r"stage_one-0: cannot work like this")
    mesh.hears(r"up: stage_one-0: exit 1; again in 0\.5 s")
    mesh.hears(r"up: stage_one-0: exit 1; again in 1 s")
    (tmp_path / "stage_one-0.does").write_text("exit 3")
    mesh.hears(r"up: stage_one-0: exit 3: its configuration does not work, see its log; again in 2 s")
    (tmp_path / "stage_one-0.does").write_text("well")
    mesh.hears("stage_one-0: here")


def test_the_coordinator_comes_back_and_the_workers_stay(up: list[Up], tmp_path: Path) -> None:
    mesh = start(up, tmp_path)
    pid = mesh.pid("coordinator")
    mesh.hears("stage_one-0: here")
    os.kill(pid, signal.SIGKILL)
    again = mesh.pid("coordinator")
    mesh.hears("coordinator: here")
    assert again != pid
    mesh.process.send_signal(signal.SIGINT)
    assert mesh.ended() == 0
    assert len([line for line in mesh.said if line.startswith("up: stage_one-0: pid")]) == 1


def test_a_coordinator_that_cannot_run_ends_it(up: list[Up], tmp_path: Path) -> None:
    (tmp_path / "coordinator.does").write_text("exit 3")
    mesh = start(up, tmp_path)
    assert mesh.ended() == 3
    assert mesh.said[-1] == "up: the coordinator cannot run: taking down the rest"


def test_the_second_signal_kills(up: list[Up], tmp_path: Path) -> None:
    (tmp_path / "coordinator.does").write_text("deaf")
    mesh = start(up, tmp_path)
    mesh.hears("stage_one-0: here")
    mesh.process.send_signal(signal.SIGINT)
    mesh.hears("coordinator: SIGTERM")
    mesh.process.send_signal(signal.SIGINT)
    assert mesh.ended() == 1


def test_a_worker_that_dies_while_draining_comes_back(up: list[Up], tmp_path: Path) -> None:
    (tmp_path / "coordinator.does").write_text("deaf")
    mesh = start(up, tmp_path)
    pid = mesh.pid("stage_one-0")
    mesh.hears("stage_one-0: here")
    mesh.process.send_signal(signal.SIGTERM)
    mesh.hears("coordinator: SIGTERM")
    os.kill(pid, signal.SIGKILL)
    mesh.hears("stage_one-0: here")


def test_nothing_outlives_it(up: list[Up], tmp_path: Path) -> None:
    mesh = start(up, tmp_path)
    mesh.hears("stage_one-0: here")
    mesh.process.kill()
    assert mesh.ended() == -9
    assert lease.holder(tmp_path) == 0
    assert lease.written(tmp_path) == {}  # up.json lies there still, and is not believed


def test_one_mesh_for_each_state_folder(up: list[Up], tmp_path: Path) -> None:
    mesh = start(up, tmp_path)
    mesh.hears("stage_one-0: here")
    with pytest.raises(MeshError, match=rf"`ifmesh up` \(pid {mesh.process.pid}\) runs this mesh already"), lease.lock(tmp_path):
        pass


def test_workers_alone_for_a_coordinator_elsewhere(up: list[Up], tmp_path: Path) -> None:
    mesh = start(up, tmp_path, copies=2, what="away")
    pid = mesh.pid("stage_one-0")
    mesh.hears("stage_one-0: here stage_one --name stage_one-0@far --tied --coordinator tcp://127.0.0.1:9")
    os.kill(pid, signal.SIGTERM)
    mesh.hears("stage_one-0: bye")
    mesh.hears(r"up: stage_one-0: ended by itself; again in 10 s")  # a coordinator that is being taken down has sent it away
    mesh.process.send_signal(signal.SIGTERM)
    assert mesh.ended() == 0
    assert not [line for line in mesh.said if "coordinator:" in line]


def renewed(state: Path, text: str) -> None:
    """The key of Stage I is this one now."""
    (state / "keys").mkdir(exist_ok=True)
    identity.put(state / "keys" / "worker-stage_one.key", text)


@pytest.mark.parametrize("what", ["up", "away"])
def test_a_new_key_has_the_workers_start_again_one_after_another(up: list[Up], tmp_path: Path, what: str) -> None:
    renewed(tmp_path, "old")
    mesh = start(up, tmp_path, copies=3, what=what)
    first = [mesh.pid(f"stage_one-{n}") for n in range(3)]
    mesh.hears("stage_one-2: .* is loaded")
    renewed(tmp_path, "new")
    for n in range(3):
        mesh.hears(f"up: stage_one-{n}: its key has changed")
        mesh.hears(f"up: stage_one-{n}: ended by itself; again at once")
        assert mesh.pid(f"stage_one-{n}") not in first
        mesh.hears(f"stage_one-{n}: .* is loaded")
    begun = [line for line in mesh.said if "its key has changed" in line]
    mesh.process.send_signal(signal.SIGTERM)
    assert mesh.ended() == 0
    assert [line for line in mesh.said if "its key has changed" in line] == begun


def test_the_others_wait_for_one_that_does_not_come_up_again(up: list[Up], tmp_path: Path) -> None:
    renewed(tmp_path, "old")
    mesh = start(up, tmp_path, copies=2)
    mesh.hears("stage_one-1 is loaded")
    (tmp_path / "stage_one-0.does").write_text("exit 3")
    renewed(tmp_path, "new")
    mesh.hears("up: stage_one-0: its key has changed")
    for _ in range(3):
        mesh.hears("up: stage_one-0: exit 3")
    (tmp_path / "stage_one-0.does").write_text("well")
    mesh.hears("stage_one-0 is loaded")
    assert not [line for line in mesh.said if line.startswith("stage_one-1: SIGTERM")]
    mesh.hears("up: stage_one-1: its key has changed")


def test_a_mesh_without_keys_does_not_look_at_them() -> None:
    config = read(None, {"HOME": "/users/anna"}, {"mesh.curve": "false"})
    service = Service("guard-0", "guard", ())
    service.process = subprocess.Popen(["true"])
    service.process.wait()
    renewal = Renewal(config)
    assert renewal.next(0.0, [service]) is None


def test_who_does_not_leave_is_killed_and_who_is_never_loaded_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """The hours pass here, not in the test."""
    renewed(tmp_path, "old")
    config = read(None, {}, {"mesh.state": str(tmp_path), "mesh.drain": "90"})
    kept = [Service(f"stage_one-{n}", "stage_one", ()) for n in range(2)]
    renewal = Renewal(config)
    for service in kept:
        renewal.started(0.0, service)
        service.starts, service.process = 1, subprocess.Popen(["true"])
        service.process.wait()
    assert renewal.next(10.0, kept) is None
    renewed(tmp_path, "new one")
    assert renewal.next(20.0, kept) == (kept[0], signal.SIGTERM)
    assert renewal.asked(kept[0])
    assert renewal.next(20.0 + 90 + LEAVING - 1, kept) is None
    assert renewal.next(20.0 + 90 + LEAVING, kept) == (kept[0], signal.SIGKILL)
    assert renewal.next(20.0 + 90 + LEAVING + 1, kept) is None, "once"
    renewal.started(200.0, kept[0])
    kept[0].starts = 2
    assert not renewal.asked(kept[0])
    assert renewal.next(200.0 + LOADING - 1, kept) is None
    assert renewal.next(200.0 + LOADING, kept) == (kept[1], signal.SIGTERM)


def test_who_is_refused_has_nothing_to_finish(tmp_path: Path) -> None:
    """The old key is over already: all are to have the new one, and none waits for another."""
    assert REFUSED.decode() in line._TROUBLE.values()
    renewed(tmp_path, "old")
    kept = [Service(f"stage_one-{n}", "stage_one", (), process=subprocess.Popen(["true"]), starts=1) for n in range(3)]
    renewal = Renewal(read(None, {}, {"mesh.state": str(tmp_path)}))
    for service in kept:
        assert service.process
        service.process.wait()
        renewal.started(0.0, service)
    kept[0].refused = True
    assert renewal.next(1.0, kept) is None, "there is no other key for it"
    renewed(tmp_path, "new one")
    kept[1].refused = True
    assert renewal.next(2.0, kept) == (kept[0], signal.SIGKILL)
    assert renewal.next(2.0, kept) == (kept[1], signal.SIGKILL)
    assert renewal.next(2.0, kept) == (kept[2], signal.SIGTERM)


def test_lines_of_a_pipe_that_was_closed_in_the_same_round() -> None:
    hear, tell = os.pipe()
    pipe = os.fdopen(hear, "rb", buffering=0)
    heard: list[bytes] = []
    lines = Lines(Service("a", "", ()), pipe, lambda service, line: heard.append(line))
    os.write(tell, b"one\ntwo")
    os.set_blocking(hear, False)
    assert lines.read()
    lines.close()
    os.close(tell)
    assert lines.read()
    assert heard == [b"one", b"two"]
