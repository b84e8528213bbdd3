"""`ifmesh chaos`, in short: a mesh that is broken on purpose loses nothing; one whose journal is broken does, and that is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ifmesh.chaos.asks import asks, made
from ifmesh.chaos.history import SEEN, lines
from ifmesh.chaos.oracle import Oracle
from ifmesh.request import STAGES
from tests.mesh.kit import Mesh, expected

FORGETFUL = """
import sys
if "coordinator" in sys.orig_argv:
    from ifmesh.journal import Journal
    Journal.commit = lambda self, commands: None
"""

ONE_EACH = [word for stage in STAGES for word in ("--copies", f"{stage}=1")]  # a mesh that starts soon
SHORT = ("--minutes", "0.12", "--every", "0.6", "--clients", "2", *ONE_EACH)


def chaos(folder: Path, *flags: str, path: str = "") -> tuple[int, dict[str, Any], str]:
    """The exit code, the summary, and what went to stderr."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("IFMESH")}
    environ["PYTHONPATH"] = os.pathsep.join(p for p in (path, *sys.path[:1], environ.get("PYTHONPATH", "")) if p)
    command = [sys.executable, "-m", "ifmesh", "chaos", "--json", "--out", str(folder), *flags]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, told, done.stderr


@pytest.mark.timeout(300)
def test_a_mesh_that_is_killed_stopped_and_cut_loses_nothing(tmp_path: Path) -> None:
    code, told, said = chaos(tmp_path / "run", "--seed", "11", "--requests", "24", "--checkpoint-steps", "2", *SHORT)
    assert (code, told["right"], told["faults"]) == (0, True, []), said
    assert told["requests"] == told["accepted"] == 24
    assert told["finished"] + told["failed"] + told["cancelled"] == 24
    assert told["worker_kills"] >= 8
    assert told["coordinator_kills"] >= 1
    assert told["pauses"] + told["partitions"] >= 1
    assert told["durations"]["steps_run"] > 0


@pytest.mark.timeout(300)
def test_a_journal_that_does_not_commit_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(FORGETFUL)
    flags = ("--seed", "3", "--requests", "12", "--settle", "60")
    code, told, said = chaos(tmp_path / "run", *flags, *SHORT, path=str(tmp_path / "broken"))
    assert (code, told["right"]) == (1, False), said
    assert told["lost"] > 0, told


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_more_of_it(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("IFMESH")}
    command = [sys.executable, "-m", "ifmesh", "chaos", "--json", "--seed", "12", "--requests", "300", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1100, check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["faults"]) == (0, []), done.stderr
    assert told["poison"] == 0 or told["poison_kills_max"] <= 4


@pytest.mark.timeout(180)
def test_interrupted_it_ends_and_leaves_no_process(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("IFMESH")}
    command = [sys.executable, "-m", "ifmesh", "chaos", "--requests", "400", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        history = tmp_path / "run" / SEEN
        try:
            Mesh.wait_for(lambda: history.exists() and any(record["what"] == "prepared" for record in lines(history)))
            Mesh.wait_for(lambda: len(_named(str(tmp_path))) > 1)
            started.send_signal(signal.SIGINT)
            said, _ = started.communicate(timeout=120)
        finally:
            started.kill()  # and whatever it has started goes with it
    assert started.returncode == 1
    assert "NOT right" in said
    assert not _named(str(tmp_path))


def test_the_oracle_gives_what_the_kit_expects() -> None:
    """Two ways to run the toy stages without a mesh, told apart by nobody."""
    oracle = Oracle()
    done = set()
    for ask in asks(4, 200, 1, 2, real=False):
        if ask.fate in ("fine", "flag") and (ask.task, ask.fate) not in done and ask.task != "encode" and ask.size < 1024:
            done.add((ask.task, ask.fate))
            request, brought = made(ask)
            pictures = {name.removeprefix("picture_"): tensor[2] for name, tensor in expected(request, upload=brought.frame).items()}
            told = oracle.expected(request, brought.frame)
            drawn = {stage: _digest(data) for stage, data in pictures.items() if stage in told}
            assert drawn
            assert drawn.items() <= told.items()
            assert oracle.expected(request, brought.frame) == told
    assert {task for task, _ in done} >= {"generate", "vary", "inpaint", "upscale"}


def _digest(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()[:32]


def _named(text: str) -> list[int]:
    """The processes whose command line holds this."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if text.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
            except OSError:
                pass
    return found
