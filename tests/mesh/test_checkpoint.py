"""`kill -9` in the middle of a stage: with checkpoints what is run twice is less than the steps between two of them."""

from __future__ import annotations

import os
import re
import signal

from ifmesh import Request, Settings
from ifmesh.protocol import Progress
from tests.mesh.conftest import Make
from tests.mesh.kit import Mesh, expected, published

STEPS, EACH, STRIKE = 12, 2, 5
"""Steps of Stage I, between two checkpoints, and that after which it dies."""
NAME = "stage_one-0"


def disturbed(made: Make, each: int) -> tuple[list[int], list[str]]:
    """The steps that were run, as they were run, and the job's story; its pixels are right."""
    request = Request("a fox", 7, settings={"stage_one": Settings(steps=STEPS)}, last_stage="stage_one")
    options = {"services__stage_one__options__step_ms": 150, "services__stage_one__options__log_steps": "true"}
    mesh = made(**options, services__stage_one__checkpoint_steps=each)
    worker = mesh.all(("encoder", "stage_one", "guard"))["stage_one"]
    with mesh.speaker() as fan:
        pid = mesh.ready(fan, NAME)[NAME].pid
        fan.submit("a", request)
        fan.until(Progress, lambda m: m.stage == "stage_one" and m.step >= STRIKE)
        os.kill(pid, signal.SIGKILL)
        assert worker.code() == 128 + signal.SIGKILL
        mesh.worker("stage_one")
        finished = fan.finished("a")
        assert published(fan.result("a")) == expected(request)
        assert {run.stage: run.runs for run in finished.runs} == {"encoder": 1, "stage_one": 2, "guard": 1}
        assert finished.reproducible
        return steps(mesh), [what for _, what in fan.books("a").story]


def steps(mesh: Mesh) -> list[int]:
    """Of both lives: they write one log."""
    return [int(n) for n in re.findall(rf" a step (\d+) of {STEPS} in stage_one", (mesh.logs / f"{NAME}.log").read_text())]


def test_with_checkpoints_few_steps_are_run_twice(mesh: Make) -> None:
    ran, story = disturbed(mesh, EACH)
    twice = len(ran) - STEPS
    assert set(ran) == set(range(1, STEPS + 1))
    assert 0 <= twice <= EACH, ran
    (after,) = (int(line.rpartition(" ")[2]) for line in story if "to go on after step" in line)
    assert after % EACH == 0
    assert ran[-(STEPS - after)] == after + 1, "it does not go on where it is said to"


def test_without_them_all_that_was_done_is_done_again(mesh: Make) -> None:
    ran, story = disturbed(mesh, 0)
    assert len(ran) - STEPS >= STRIKE
    assert ran[-STEPS:] == list(range(1, STEPS + 1))
    assert not [line for line in story if "to go on after step" in line]
