"""The commands against a toy mesh of real processes: up, ps, submit, show, cancel, logs, down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]
ANY_PORT = ("--listen", "tcp://127.0.0.1:0")


def commands(folder: Path) -> Command:
    """`ifmesh ...` in this folder, with its own state."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("IFMESH_")} | {"IFMESH_STATE": str(folder / "state")}

    def ifmesh(*arguments: str) -> Done:
        command = [sys.executable, "-m", "ifmesh", *arguments]
        return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)

    return ifmesh


@pytest.fixture(scope="module")
def ifmesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """With a toy mesh up; at the end everything of it is gone."""
    folder = tmp_path_factory.mktemp("commands")
    ifmesh = commands(folder)
    try:
        started = ifmesh("up", "--toy", "--detach", "--wait", *ANY_PORT)
        assert started.returncode == 0, started.stderr
        assert started.stderr.startswith("ready: pid ")
        pids = [row["pid"] for row in json.loads(ifmesh("ps", "--json").stdout)["services"]]
        yield ifmesh
    finally:  # even of one that never became ready
        ended = ifmesh("down")
    assert (ended.returncode, ended.stderr) == (0, "down\n")
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    assert not alive
    assert ifmesh("ps").returncode == 4


def lines(done: Done) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_ps_knows_every_process(ifmesh: Command) -> None:
    (books,) = lines(ifmesh("ps", "--json", "--ready"))
    stages = ["encoder", "stage_one", "stage_two", "upscaler", "guard"]
    assert [row["service"] for row in books["services"]] == ["supervisor", "coordinator", *(f"{s}-0" for s in stages)]
    assert [row["stage"] for row in books["services"]] == ["", "", *stages]
    assert all(psutil.pid_exists(row["pid"]) and row["host"] for row in books["services"])
    assert {row["state"] for row in books["services"]} == {"up", "ready"}
    assert books["missing"] == []
    shown = ifmesh("ps").stdout
    assert "stage_one-0" in shown


def test_a_second_up_is_refused_with_the_pid_of_the_first(ifmesh: Command) -> None:
    (books,) = lines(ifmesh("ps", "--json"))
    for more in ((), ("--detach",)):
        again = ifmesh("up", "--toy", *ANY_PORT, *more)
        assert again.returncode == 1
        assert f"`ifmesh up` (pid {books['services'][0]['pid']}) runs this mesh already" in again.stderr


def test_submit_writes_the_picture(ifmesh: Command, tmp_path: Path) -> None:
    out = tmp_path / "panda.png"
    done = ifmesh(
        "submit",
        "a red panda",
        "-o",
        str(out),
        "--seed",
        "7",
        "--steps",
        "I=3",
        "--guidance",
        "I=9",
        "--stages-dir",
        str(tmp_path / "early"),
    )
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert "stage_one on stage_one-0" in done.stderr
    with Image.open(out) as picture:
        assert picture.size == (1024, 1024)
    assert [p.name.rpartition("-")[2] for p in sorted((tmp_path / "early").iterdir())] == ["1024.png", "256.png", "64.png"]


def test_one_json_line_for_each_picture(ifmesh: Command, tmp_path: Path) -> None:
    told = lines(ifmesh("submit", "a fox", "--size", "64", "--seed", "5", "-n", "2", "--json", "-o", str(tmp_path / "fox.png")))
    assert [(t["seed"], t["size"], t["flagged"], t["reproducible"]) for t in told] == [
        (5, [64, 64], False, True),
        (6, [64, 64], False, True),
    ]
    assert [Path(t["path"]).name for t in told] == ["fox-1.png", "fox-2.png"]
    assert [run["stage"] for run in told[0]["stages"]] == ["encoder", "stage_one", "guard"]
    again = lines(ifmesh("submit", "a fox", "--size", "64", "--seed", "6", "--json", "-o", str(tmp_path / "again.png")))
    assert Path(again[0]["path"]).read_bytes() == Path(told[1]["path"]).read_bytes()


def test_handed_in_and_come_back_to(ifmesh: Command, tmp_path: Path) -> None:
    (told,) = lines(ifmesh("submit", "a fox", "--no-wait", "--json", "--size", "64"))
    out = tmp_path / "later.png"
    shown = ifmesh("show", told["job"], "-o", str(out))
    assert shown.returncode == 0, shown.stderr
    assert out.exists()
    (story,) = lines(ifmesh("show", told["job"], "--json"))
    assert (story["job"], story["state"], story["prompt"]) == (told["job"], "finished", "a fox")
    assert story["story"][0]["what"] == "accepted"
    assert [run["worker"] for run in story["stages"]] == ["encoder-0", "stage_one-0", "guard-0"]
    assert "guard-0" in ifmesh("show", told["job"]).stdout
    late = ifmesh("cancel", told["job"])
    assert (late.returncode, late.stdout) == (1, f"{told['job']} finished\n")


def test_cancel(ifmesh: Command) -> None:
    job = ifmesh("submit", "toy:hang=stage_one", "--no-wait", "--size", "64").stdout.strip()
    done = ifmesh("cancel", job)
    assert (done.returncode, done.stdout) == (0, f"{job} cancelled\n")
    hung = next(row["pid"] for row in lines(ifmesh("ps", "--json"))[0]["services"] if row["service"] == "stage_one-0")
    os.kill(hung, signal.SIGKILL)  # it never returns from there; its parent and the supervisor start another


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit", ""], 2, "prompt: '': say what to draw"),
        (["submit", "x" * 2001], 2, "2001 characters; at most 2000"),
        (["submit", "a fox", "--priority", "101"], 2, "priority: 101: from -100 to 100"),
        (["submit", "a fox", "--steps", "I=0"], 2, "--steps I: 0: from 1 to 1000"),
        (["submit", "toy:bad=encoder"], 2, "toy:bad=encoder"),
        (["submit", "toy:raise=encoder"], 5, "failed in encoder on encoder-0"),
        (["show", "nope"], 2, "job: 'nope': no such job"),
        (["cancel", "nope"], 2, "job: 'nope': no such job"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(ifmesh: Command, arguments: list[str], code: int, said: str) -> None:
    done = ifmesh(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_failures_in_json(ifmesh: Command) -> None:
    done = ifmesh("submit", "toy:raise=encoder", "-n", "2", "--json", "--seed", "1")
    assert done.returncode == 5
    assert [json.loads(line)["seed"] for line in done.stdout.splitlines()] == [1, 2]
    assert "failed in encoder" in json.loads(done.stdout.splitlines()[0])["error"]


def test_logs(ifmesh: Command) -> None:
    assert "listening on tcp://127.0.0.1:" in ifmesh("logs", "coordinator", "-n", "100000").stdout
    assert "guard-0" in ifmesh("logs").stdout


def test_a_stage_without_a_worker_is_said_at_once(tmp_path: Path) -> None:
    ifmesh = commands(tmp_path)
    state = tmp_path / "state"
    command = [sys.executable, "-m", "ifmesh", "coordinator", "--tied", "--state", str(state), *ANY_PORT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stderr
        while "listening" not in process.stderr.readline():
            assert process.poll() is None
        done = ifmesh("submit", "a fox", "--no-wait", "--size", "64")
        assert done.returncode == 0, done.stderr
        assert "no worker for encoder, stage_one, guard: the job will wait; start `ifmesh worker encoder`" in done.stderr
        ready = ifmesh("ps", "--ready")
        assert ready.returncode == 4
        assert "no ready worker for encoder, stage_one, stage_two, upscaler, guard" in ready.stderr
        process.stdin.close()  # tied: it ends
        process.wait(30)


def test_a_taken_port_is_said_and_ends_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        for more in ((), ("--detach", "--wait")):
            done = commands(tmp_path)("up", "--toy", "--listen", url, *more)
            assert done.returncode == 3, done.stderr
            assert url in done.stderr
            assert "Traceback" not in done.stderr


def test_a_worker_without_a_coordinator_is_told_of_bad_weights_first(tmp_path: Path) -> None:
    done = commands(tmp_path)("worker", "guard", "--cascade", "nowhere")
    assert done.returncode == 3
    assert "cascade.path" in done.stderr
