"""What the commands promise to people and to scripts: exit codes, data on stdout only, colours, and what two Ctrl-C do."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest
from PIL import Image

from tests.mesh.kit import LIMIT

Done = subprocess.CompletedProcess[str]
COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7]m")
SLOW = ("--set", "services.stage_one.options.step_ms=20")
LONG = ("--size", "64", "--steps", "I=1000")  # 20 s in Stage I


@dataclass(slots=True)
class Shell:
    """Types `ifmesh ...` in one folder, with a state folder of its own.  seen: every process that `ps` has ever shown."""

    folder: Path
    seen: set[psutil.Process] = field(default_factory=set)

    def environ(self, **variables: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("IFMESH") and k not in ("NO_COLOR", "FORCE_COLOR")}
        return clean | {"IFMESH_STATE": str(self.folder / "state"), "TERM": "xterm-256color"} | variables

    def run(self, *arguments: str) -> Done:
        out, err = (process := self.start(*arguments)).communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ifmesh", *arguments],
            cwd=self.folder,
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def up(self, *flags: str) -> str:
        done = self.run("up", "--toy", "--detach", "--wait", "--listen", "tcp://127.0.0.1:0", *flags)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        self.ps()
        return done.stderr

    def ps(self) -> dict[str, Any]:
        done = self.run("ps", "--json")
        told: dict[str, Any] = json.loads(done.stdout)
        for row in told["services"]:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(row["pid"])
                self.seen |= {process, *process.children(recursive=True)}
        return told

    def pid(self, service: str) -> int:
        found: int = next(row["pid"] for row in self.ps()["services"] if row["service"] == service)
        return found

    def job(self, *arguments: str) -> str:
        """Handed in; its id."""
        done = self.run("submit", *arguments, "--no-wait")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def running(self, begun: int = 1, count: int = 1) -> list[dict[str, Any]]:
        """The unfinished jobs, once there are so many, and so many of them draw in Stage I: those first."""
        end = time.monotonic() + LIMIT
        while True:
            found = sorted(self.ps()["jobs"], key=lambda row: -row["step"])
            if len(found) == count and [row["stage"] for row in found if row["step"]] == ["stage_one"] * begun:
                return found
            assert time.monotonic() < end, found

    def gone(self) -> None:
        """Nothing of it lives."""
        _, alive = psutil.wait_procs(self.seen, timeout=LIMIT)
        assert not alive

    def end(self) -> None:
        self.run("down", "--now")
        for process in self.seen:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A mesh in the background: 20 ms a step of Stage I, three jobs at most."""
    made = Shell(tmp_path_factory.mktemp("slow"))
    said = made.up(*SLOW, "--set", "mesh.max_jobs=3")
    ready, modes = said.splitlines()
    assert re.fullmatch(r"ready: pid \d+, coordinator at tcp://127\.0\.0\.1:\d+; logs in .*/state/logs", ready)
    assert modes == "encoder-0, stage_one-0, stage_two-0, upscaler-0, guard-0: exact, one at a time: always the same bits"
    yield made
    made.end()
    made.gone()


# ---- data


def test_ps_is_one_document(slow: Shell) -> None:
    job = slow.job("a fox", *LONG)
    (row,) = slow.running()
    told = slow.ps()
    assert list(told) == ["services", "jobs", "queued", "missing"]
    services = {s["service"]: s for s in told["services"]}
    assert list(services) == ["supervisor", "coordinator", *(f"{s}-0" for s in ("encoder", "stage_one", "stage_two", "upscaler", "guard"))]
    keys = {"service", "stage", "pid", "host", "host_name", "device", "state", "running", "held", "done", "seen_s", "numeric", "slots"} | {
        "needs"
    }
    assert all(set(service) == keys for service in services.values())
    assert (services["stage_one-0"]["state"], services["stage_one-0"]["running"]) == ("busy", 1)
    assert {s["device"] for s in services.values() if s["stage"]} == {"cpu"}
    assert set(row) == {"job", "state", "stage", "step", "steps", "worker", "age_s", "prompt"}
    assert (row["job"], row["stage"], row["steps"], row["worker"], row["prompt"]) == (job, "stage_one", 1000, "stage_one-0", "a fox")
    assert told["queued"].keys() == {"encoder", "stage_one", "stage_two", "upscaler", "guard"}
    table = slow.run("ps", "--jobs")
    assert table.returncode == 0
    assert all(word in table.stdout for word in ("supervisor", "guard-0", "busy", job, "a fox"))
    running = slow.run("show", job)
    assert re.search(rf"^{job}  running  stage_one  step \d+ of 1000  a fox$", running.stdout, re.MULTILINE)
    assert "stage_one: begun on stage_one-0" in running.stdout
    assert re.search(r"^stage_one +\|[ ·]*█+\| waits [0-9.]+ s, runs [0-9.]+ s$", running.stdout, re.MULTILINE)
    assert slow.run("cancel", job, "--json").stdout == json.dumps({"job": job, "ended": "cancelled"}) + "\n"


def test_submit_is_one_json_line(slow: Shell) -> None:
    done = slow.run("submit", "a fox", "--json", "--seed", "7", "--negative", "blur", "--size", "256", "-o", "fox.png")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    told = json.loads(done.stdout)
    assert list(told) == ["job", "seed", "path", "size", "flagged", "reproducible", "seconds", "notes", "stages"]
    assert (told["seed"], told["path"], told["size"]) == (7, "fox.png", [256, 256])
    assert [run["stage"] for run in told["stages"]] == ["encoder", "stage_one", "stage_two", "guard"]
    keys = {"stage", "worker", "pid", "device", "queued_s", "run_s", "steps", "bytes_in", "bytes_out", "runs"}
    assert all(set(run) == keys for run in told["stages"])
    with Image.open(slow.folder / "fox.png") as picture:
        assert picture.size == (256, 256)
    assert done.stderr.splitlines()[-1] == f"{told['job']} guard on guard-0"
    assert "\x1b" not in done.stderr
    shown = json.loads(slow.run("show", told["job"], "--json").stdout)
    assert shown["stages"] == told["stages"]


def test_logs_follow(slow: Shell) -> None:
    """Of one service, from now on, until Ctrl-C."""
    with slow.start("logs", "coordinator", "-f", "-n", "1") as following:
        assert following.stdout
        assert following.stderr
        assert following.stdout.readline()  # the one of before: it listens
        job = slow.job("a fox", "--size", "64")
        while f"{job} guard: completed" not in following.stdout.readline():
            assert following.poll() is None
        following.send_signal(signal.SIGINT)
        assert following.wait(LIMIT) == 130
        assert following.stderr.read().strip() == "ifmesh: interrupted"
    one = slow.run("logs", "guard-0", "-n", "1")
    assert (one.returncode, one.stdout.count("\n"), one.stderr) == (0, 1, "")


# ---- exit codes


def test_a_cancelled_job_is_exit_5_where_it_was_waited_for(slow: Shell) -> None:
    with slow.start("submit", "a fox", *LONG, "-o", "never.png") as waiting:
        (row,) = slow.running()
        done = slow.run("cancel", row["job"])
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{row['job']} cancelled\n", "")
        out, err = waiting.communicate(timeout=LIMIT)
        assert (waiting.returncode, out) == (5, "")
        assert err.splitlines()[-1] == f"ifmesh: job {row['job']} was cancelled"
    assert not (slow.folder / "never.png").exists()
    ended = slow.run("show", row["job"])
    assert ended.returncode == 0
    assert "cancelled" in ended.stdout
    late = slow.run("show", row["job"], "-o", "never.png")
    assert late.returncode == 5
    assert late.stderr == f"ifmesh: job {row['job']} was cancelled\n"


def test_some_of_several_is_exit_6(slow: Shell) -> None:
    with slow.start("submit", "a fox", "-n", "2", "--seed", "5", "--size", "64", "--steps", "I=200", "--json", "-o", "two.png") as waiting:
        _, row = slow.running(count=2)  # one is drawn, and one waits behind it
        slow.run("cancel", row["job"])
        out, err = waiting.communicate(timeout=LIMIT)
    assert waiting.returncode == 6, err
    first, second = map(json.loads, out.splitlines())
    assert (first["seed"], first["path"]) == (5, "two-1.png")
    assert second == {"job": row["job"], "seed": 6, "error": f"job {row['job']} was cancelled"}
    assert sorted(p.name for p in slow.folder.glob("two*")) == ["two-1.png"]


def test_a_deadline_is_exit_5(slow: Shell) -> None:
    done = slow.run("submit", "a fox", *LONG, "--deadline", "0.3", "-o", "late.png")
    assert (done.returncode, done.stdout) == (5, "")
    assert re.fullmatch(r"ifmesh: job \w+: its deadline of 0.3 s passed", done.stderr.splitlines()[-1])


def test_a_full_mesh_is_exit_4(slow: Shell) -> None:
    jobs = [slow.job("a fox", *LONG) for _ in range(3)]
    done = slow.run("submit", "one more", *LONG)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "ifmesh: 3 jobs are under way, the limit; try again in 2 s\n"
    for job in jobs:
        assert slow.run("cancel", job).returncode == 0
    assert slow.run("submit", "one more", "--size", "64").returncode == 0


def test_ctrl_c_leaves_the_job_and_says_its_name(slow: Shell) -> None:
    with slow.start("submit", "a fox", *LONG, "-o", "later.png") as waiting:
        (row,) = slow.running()
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=LIMIT)
    assert (waiting.returncode, out) == (130, "")
    goes_on = f"job {row['job']} goes on: ifmesh show {row['job']} -o out.png, or ifmesh cancel {row['job']}"
    assert [line for line in err.splitlines() if line][-2:] == [goes_on, "ifmesh: interrupted"]
    assert slow.running()[0]["job"] == row["job"]
    assert slow.run("cancel", row["job"]).returncode == 0


# ---- a terminal


class Terminal:
    """A command on a terminal of its own.  text: all that it has shown."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        os.close(self.ours)

    def __init__(self, shell: Shell, *arguments: str, **variables: str) -> None:
        self.ours, theirs = pty.openpty()
        self.text = b""

        def control() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "ifmesh", *arguments],
            cwd=shell.folder,
            env=shell.environ(COLUMNS="200", **variables),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=control,
        )
        os.close(theirs)

    def until(self, holds: Callable[[bytes], bool]) -> None:
        end = time.monotonic() + LIMIT
        while not holds(self.text):
            assert time.monotonic() < end, self.text
            assert self._read(1.0), self.text

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def code(self) -> int:
        while self._read(LIMIT):
            pass
        return self.process.wait(LIMIT)

    def _read(self, seconds: float) -> bool:
        """False: everything is said."""
        if not select.select([self.ours], [], [], seconds)[0]:
            return self.process.poll() is None
        try:
            some = os.read(self.ours, 1 << 16)
        except OSError:  # EIO: the last process has closed it
            return False
        self.text += some
        return bool(some)


@pytest.mark.parametrize("command", [("ps", "--jobs"), ("submit", "a fox", "--size", "64", "-o", "tty.png"), ("ps", "--set", "a=b")])
def test_colours_on_a_terminal_and_none_with_no_color(slow: Shell, command: tuple[str, ...]) -> None:
    codes = set()
    for variables in ({}, {"NO_COLOR": "1"}):
        with Terminal(slow, *command, **variables) as terminal:
            codes.add(terminal.code())
            assert bool(COLOUR.search(terminal.text)) == (not variables and command != ("ps", "--jobs")), terminal.text
    assert len(codes) == 1
    piped = slow.run(*command)
    assert piped.returncode in codes
    assert "\x1b" not in piped.stdout + piped.stderr


def test_the_first_ctrl_c_drains(shell: Shell) -> None:
    """Typed on the terminal of a foreground `up`: the job under way is finished and its picture delivered."""
    with Terminal(shell, "up", "--toy", "--listen", "tcp://127.0.0.1:0", *SLOW) as terminal:
        terminal.until(lambda text: b"ready: 5 workers" in text)
        shell.ps()
        assert re.search(rb"\x1b\[36mcoordinator *\| ", terminal.text)
        with shell.start("submit", "a fox", "--size", "64", "--steps", "I=250", "-o", "last.png") as waiting:
            shell.running()
            terminal.type(b"\x03")
            terminal.until(lambda text: b"draining, at most 90 s; once more kills" in text)
            refused = shell.run("submit", "too late")
            assert refused.returncode == 4
            assert "the mesh is being stopped" in refused.stderr
            out, err = waiting.communicate(timeout=LIMIT)
            assert (waiting.returncode, out) == (0, "last.png\n"), err
        assert terminal.code() == 0
    shell.gone()
    assert not (shell.folder / "state" / "up.json").exists()


def test_the_second_kills(shell: Shell) -> None:
    with shell.start("up", "--toy", "--listen", "tcp://127.0.0.1:0", "--no-logs") as up:
        assert up.stderr
        while "ready: 5 workers" not in up.stderr.readline():
            assert up.poll() is None
        job = shell.job("toy:hang=stage_one", "--size", "64")
        shell.running()
        for said in ("draining", "killing what is left"):
            up.send_signal(signal.SIGINT)
            while said not in (line := up.stderr.readline()):
                assert line
            assert "\x1b" not in line
        out, _ = up.communicate(timeout=LIMIT)
        assert (up.returncode, out) == (1, "")
    shell.gone()
    shell.up()
    assert shell.run("cancel", job).returncode == 0  # it was accepted: it is still known


def test_down_waits_for_what_is_under_way(shell: Shell) -> None:
    """The jobs that have begun are finished, and their pictures are there when the mesh is started again."""
    shell.up(*SLOW)
    jobs = [shell.job("a fox", "--size", "64", "--steps", "I=250") for _ in range(2)]
    shell.running(count=2)
    done = shell.run("down")
    assert (done.returncode, done.stdout) == (0, "")
    *waiting, last = done.stderr.splitlines()
    assert last == "down"
    # a busy machine may have ended the first by now, and the other's first step not be told
    assert re.match(r"waiting for [12] jobs? under way \(\w+ in stage_one(, step \d+ of 250)?\), at most \d+ s more; `ifmesh", waiting[0])
    shell.gone()
    shell.up()
    for job in jobs:
        shown = shell.run("show", job, "-o", f"{job}.png")
        assert shown.returncode == 0, shown.stderr
        assert "started again" not in shown.stdout
        assert (shell.folder / f"{job}.png").exists()


def test_kill_nine_of_up_leaves_nothing_and_loses_nothing(shell: Shell) -> None:
    shell.up(*SLOW)
    job = shell.job("a fox", "--size", "64", "--steps", "I=400")  # a busy machine takes seconds for one `ps`
    shell.running()
    os.kill(shell.pid("supervisor"), signal.SIGKILL)
    shell.gone()
    down = shell.run("down")
    assert down.returncode == 0
    assert "nothing to end" in down.stderr
    shell.up(*SLOW)
    done = shell.run("show", job, "-o", "after.png")
    assert done.returncode == 0, done.stderr
    assert (shell.folder / "after.png").exists()
    assert "the coordinator was started again" in done.stdout


def test_a_stage_that_is_not_to_run_here_is_not_waited_for(shell: Shell) -> None:
    said = shell.up("--copies", "upscaler=0")
    assert said.endswith("no worker for upscaler (copies = 0); what needs one waits: start `ifmesh worker upscaler`\n")
    assert [row for row in shell.ps()["services"] if row["stage"] == "upscaler"] == []


def test_a_folder_for_bags_that_is_none_is_told_at_the_start(shell: Shell) -> None:
    (shell.folder / "bags").write_text("a file")
    done = shell.run("up", "--toy", "--keep-bags", "bags")
    assert (done.returncode, done.stdout) == (3, "")
    assert "mesh.keep_bags: " in done.stderr
    assert "File exists; name a folder that can be written" in done.stderr
