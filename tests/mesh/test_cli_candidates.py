"""Best of N by the command line, with real processes: the question on a terminal, later commands, Ctrl-C, and the bytes that come of it."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.mesh.kit import LIMIT
from tests.mesh.test_cli_mesh import SLOW, Done, Shell, Terminal

QUESTION = b"continue with which? (e.g. 2,5; none) "
STEPS = ("--steps", "I=3,II=4,x4=2")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A mesh in the background: 20 ms a step of Stage I, six jobs at most."""
    made = Shell(tmp_path_factory.mktemp("toy"))
    made.up(*SLOW, "--set", "mesh.max_jobs=6")
    Image.effect_mandelbrot((96, 64), (-2.0, -1.5, 1.0, 1.5), 40).convert("RGB").save(made.folder / "fox.png")
    yield made
    made.end()
    made.gone()


def fine(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def whole(shell: Shell, name: str, *flags: str) -> bytes:
    """The file of a job that goes all the way at once."""
    fine(shell.run("submit", *flags, "--no-parameters", "-o", name))
    return (shell.folder / name).read_bytes()


def read(path: Path) -> bytes:
    return path.read_bytes()


def ended(shell: Shell) -> Counter[str]:
    """How many jobs each stage has done."""
    return Counter({row["stage"]: row["done"] for row in shell.ps()["services"] if row["stage"]})


def test_best_of_eight_on_a_terminal(toy: Shell) -> None:
    """More than the mesh takes at once.  The cost is that of Stage I of eight, and of everything else of one."""
    wishes = ("a fox", "--negative", "blur", *STEPS)
    before = ended(toy)
    command = ("submit", *wishes, "--seed", "7", "--candidates", "8", "-o", "best.png", "--no-parameters")
    with Terminal(toy, *command) as terminal:
        terminal.until(lambda text: QUESTION in text)
        for number in range(1, 9):
            assert re.search(rb"%d  seed %d  job \w{16}" % (number, 6 + number), terminal.text)
        assert not toy.ps()["jobs"]
        terminal.type(b"9\n")
        terminal.until(lambda text: text.count(QUESTION) == 2)
        assert b"'9': from 1 to 8, as in 2,5; or none" in terminal.text
        terminal.type(b"3\n")
        assert terminal.code() == 0
        assert b"upscaler" in terminal.text.rpartition(QUESTION)[2]  # its bars
    with Image.open(toy.folder / "best-candidates.png") as sheet:
        assert sheet.size == (1352, 848)
    assert ended(toy) - before == Counter(encoder=8, stage_one=8, stage_two=1, upscaler=1, guard=9)
    assert read(toy.folder / "best.png") == whole(toy, "direct.png", *wishes, "--seed", "9")


def test_a_later_command_goes_on(toy: Shell) -> None:
    """From the ids alone; the flags of the rest may be others."""
    wishes = ("a fox", "--image", "fox.png", "--strength", "0.6", "--style", "oil", "--positive-mixer", "I=0.25", "--seeding", "per_stage")
    jobs = fine(toy.run("submit", *wishes, *STEPS, "--seed", "3", "--candidates", "3", "-o", "later.png")).split()
    assert len(jobs) == 3
    told = fine(toy.run("proceed", jobs[2], jobs[0], "-o", "later.png", "--no-parameters", "--stages-dir", "stages", "--json"))
    for line, seed in zip(map(json.loads, told.splitlines()), (5, 3), strict=True):
        assert [run["stage"] for run in line["stages"]] == ["encoder", "stage_one", "stage_two", "upscaler", "guard"]
        assert line["seed"] == seed
        assert sorted(path.name for path in (toy.folder / "stages").glob(f"{line['job']}*")) == [
            f"{line['job']}-{n}.png" for n in (1024, 256, 64)
        ]
    assert read(toy.folder / "later-1.png") == whole(toy, "five.png", *wishes, *STEPS, "--seed", "5")
    assert read(toy.folder / "later-2.png") == whole(toy, "three.png", *wishes, *STEPS, "--seed", "3")
    fine(toy.run("proceed", jobs[0], "-o", "other.png", "--no-parameters", "--steps", "x4=5", "--size", "1024"))
    assert read(toy.folder / "other.png") == whole(toy, "changed.png", *wishes, "--steps", "I=3,II=4,x4=5", "--seed", "3")


def test_a_picture_goes_on_from_each_size(toy: Shell) -> None:
    job = fine(toy.run("submit", "a fox", *STEPS, "--seed", "4", "--size", "64", "--keep-for", "60", "--no-wait")).strip()
    middle = fine(toy.run("proceed", job, "--size", "256", "--keep-for", "60", "--no-wait")).strip()
    assert fine(toy.run("proceed", middle, "-o", "far.png", "--no-parameters")) == "far.png\n"
    assert read(toy.folder / "far.png") == whole(toy, "near.png", "a fox", *STEPS, "--seed", "4")


def test_ctrl_c_cancels_the_candidates(toy: Shell) -> None:
    with toy.start("submit", "a fox", "--candidates", "3", "--steps", "I=1000", "-o", "never.png") as waiting:
        jobs = {row["job"] for row in toy.running(count=3)}
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=LIMIT)
    assert (waiting.returncode, out) == (130, "")
    *cancelled, last = [line for line in err.splitlines() if line][-4:]
    assert (set(cancelled), last) == ({f"job {job} is cancelled" for job in jobs}, "ifmesh: interrupted")
    assert not toy.ps()["jobs"]
    assert json.loads(fine(toy.run("show", jobs.pop(), "--json")))["ending"] == "cancelled"


def test_ctrl_c_at_the_question_and_after_it(toy: Shell) -> None:
    for answer, said in ((b"", b"to go on later, within 3600 s: ifmesh proceed JOB"), (b"1,2\n", b"is cancelled")):
        with Terminal(toy, "submit", "a fox", "--candidates", "2", "--steps", "I=2,II=1000", "-o", "never.png") as terminal:
            terminal.until(lambda text: QUESTION in text)
            if answer:
                terminal.type(answer)
                terminal.until(lambda text: b"stage_two" in text.rpartition(QUESTION)[2])
            terminal.type(b"\x03")
            assert terminal.code() == 130
            assert said in terminal.text
            assert b"Traceback" not in terminal.text
        assert not toy.ps()["jobs"]
    assert not (toy.folder / "never.png").exists()


def test_a_picture_is_made_larger(toy: Shell) -> None:
    for flag, stages in (("--upscale", ["encoder", "stage_two", "upscaler", "guard"]), ("--upscale-alone", ["upscaler", "guard"])):
        told = json.loads(fine(toy.run("submit", "a fox", "--image", "fox.png", flag, "-o", "large.webp", "--json")))
        assert [run["stage"] for run in told["stages"]] == stages
    with Image.open(toy.folder / "large.webp") as picture:
        assert picture.format == "WEBP"
