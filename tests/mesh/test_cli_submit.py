"""What is asked for by `submit` and `encode`, and how it comes back: every flag, batches, early pictures, completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image, ImageDraw

from ifmesh import typed
from ifmesh.request import Request, Settings
from tests.mesh.kit import LIMIT
from tests.mesh.test_cli_mesh import LONG, SLOW, Done, Shell, Terminal

SLOWER = ("--set", "services.stage_two.options.step_ms=20")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A mesh in the background: 20 ms a step of Stage I and II, four jobs at most; and a few pictures in its folder."""
    made = Shell(tmp_path_factory.mktemp("toy"))
    made.up(*SLOW, *SLOWER, "--set", "mesh.max_jobs=4")
    source = Image.effect_mandelbrot((768, 512), (-2.0, -1.5, 1.0, 1.5), 40).convert("RGB")
    source.save(made.folder / "fox.png")
    mask = Image.new("L", (384, 256), 0)
    ImageDraw.Draw(mask).ellipse((100, 40, 300, 200), fill=255)
    mask.save(made.folder / "mask.png")
    yield made
    made.end()
    made.gone()


def fine(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(path: Path) -> dict[str, Any]:
    """What the picture says of itself."""
    with Image.open(path) as picture:
        said: dict[str, Any] = json.loads(picture.info["ifmesh"])
    return said


def asked(path: Path) -> Request:
    return typed.build(Request, told(path)["request"])


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def when(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """As soon as it does; the process goes on meanwhile."""
    end = time.monotonic() + LIMIT
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)  # a file, or what another process says: nothing to wait on


def batch(shell: Shell, *lines: dict[str, object] | str, name: str = "batch.jsonl") -> str:
    path = shell.folder / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return f"in/{name}"


# ---- one picture


def test_every_flag_of_a_new_picture_reaches_the_request(toy: Shell) -> None:
    flags = shlex.split(
        "--negative blur --seed 7 --size 256 --steps I=3,II=2 --guidance I=9 --guidance II=4.5 --noise-level II=200 "
        "--seeding per_stage --width 96 --height 64 --priority 3 --deadline 100 --deadline-queued 50 --deadline-running 60 --tied"
    )
    assert fine(toy.run("submit", "a fox", *flags, "-o", "flags.png")) == "flags.png\n"
    settings = {"stage_one": Settings(steps=3, guidance=9.0), "stage_two": Settings(steps=2, guidance=4.5, noise_level=200)}
    assert asked(toy.folder / "flags.png") == Request(
        "a fox",
        7,
        negative="blur",
        settings=settings,
        width=96,
        height=64,
        seeding="per_stage",
        last_stage="stage_two",
        stages=False,
        priority=3,
        deadline=100.0,
        deadline_queued=50.0,
        deadline_running=60.0,
        tied=True,
    )
    with Image.open(toy.folder / "flags.png") as picture:
        assert picture.size == (384, 256)


def test_timesteps(toy: Shell) -> None:
    (said,) = documents(fine(toy.run("submit", "a fox", "--timesteps", "I=999,500,0", "--size", "64", "-o", "times.png", "--json")))
    assert asked(toy.folder / "times.png").settings == {"stage_one": Settings(timesteps=(999, 500, 0))}
    assert [run["steps"] for run in said["stages"] if run["stage"] == "stage_one"] == [3]


def test_vary_and_inpaint(toy: Shell) -> None:
    fine(toy.run("submit", "a hat", "--image", "fox.png", "--strength", "0.5", "--size", "64", "-o", "varied.png"))
    varied = asked(toy.folder / "varied.png")
    assert (varied.task, varied.brings, varied.settings) == ("vary", ("source",), {"stage_one": Settings(strength=0.5)})
    flags = ("--mask", "mask.png", "--strength", "I=0.5,II=0.75", "--size", "256")
    fine(toy.run("submit", "a hat", "--image", "fox.png", *flags, "-o", "painted.png"))
    painted = asked(toy.folder / "painted.png")
    assert (painted.task, painted.brings) == ("inpaint", ("source", "mask"))
    assert painted.settings == {"stage_one": Settings(strength=0.5), "stage_two": Settings(strength=0.75)}


def test_a_source_from_a_url(toy: Shell) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(toy.folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            fine(toy.run("submit", "a hat", "--image", f"{url}/fox.png", "--size", "64", "--seed", "1", "-o", "far.png"))
            gone = toy.run("submit", "a hat", "--image", f"{url}/gone.png", "--size", "64")
            lines = {"prompt": "a hat", "size": 64, "image": f"{url}/gone.png", "seed": 3}, {"prompt": "a hat", "size": 64, "seed": 4}
            mixed = toy.run("submit", "--batch", batch(toy, *lines, name="far.jsonl"), "-o", "far", "--json")
        finally:
            server.shutdown()
    fine(toy.run("submit", "a hat", "--image", "fox.png", "--size", "64", "--seed", "1", "-o", "near.png"))
    assert asked(toy.folder / "far.png") == asked(toy.folder / "near.png")
    assert gone.returncode == 2
    assert f"--image: '{url}/gone.png': " in gone.stderr
    assert mixed.returncode == 6, mixed.stderr
    wrong, right = documents(mixed.stdout)
    assert (wrong["line"], wrong["job"], wrong["seed"], "gone.png" in wrong["error"]) == (1, None, 3, True)
    assert (right["line"], right["seed"]) == (2, 4)


def test_without_parameters_the_files_are_equal(toy: Shell) -> None:
    for name in ("bare-a.png", "bare-b.png"):
        fine(toy.run("submit", "a fox", "--size", "64", "--seed", "7", "--no-parameters", "-o", name))
    fine(toy.run("submit", "a fox", "--size", "64", "--seed", "7", "-o", "full.png"))
    bare, again, full = (toy.folder / name for name in ("bare-a.png", "bare-b.png", "full.png"))
    assert bare.read_bytes() == again.read_bytes()
    with Image.open(bare) as plain, Image.open(full) as with_texts:
        assert "parameters" not in plain.info
        assert with_texts.info["parameters"].startswith("a fox\nSteps: 5, Seed: 7, Size: 64x64")
        assert plain.tobytes() == with_texts.tobytes()


def test_the_texts_are_encoded_once_and_drawn_twice(toy: Shell) -> None:
    said = fine(toy.run("encode", "a fox zzz", "-o", "fox.safetensors", "--negative", "blur", "--json"))
    (document,) = documents(said)
    assert (document["path"], document["shape"], document["dtype"]) == ("fox.safetensors", [2, 77, 4096], "F16")
    assert len(document["notes"]) == 1
    fine(toy.run("submit", "--embeds", "fox.safetensors", "--size", "64", "--seed", "7", "-o", "drawn.png"))
    drawn = asked(toy.folder / "drawn.png")
    assert (drawn.prompt, drawn.negative, drawn.brings, drawn.first_stage) == ("a fox zzz", "blur", ("embeds",), "stage_one")
    other = toy.run("encode", "a fox", "-o", "plain.safetensors")
    assert (other.returncode, other.stdout) == (0, "plain.safetensors\n")
    assert toy.run("encode", "", "-o", "none.safetensors").returncode == 2


def test_what_the_encoder_could_not_read_is_said(toy: Shell) -> None:
    done = toy.run("submit", "a zzz", "--size", "64", "-o", "noted.png")
    assert fine(done) == "noted.png\n"
    assert "noted.png: 33 % of the prompt's tokens are unknown to the encoder" in done.stderr
    blanked = toy.run("submit", "toy:flag", "--size", "64", "-o", "blank.png")
    assert "blank.png: the safety checker has blanked it" in blanked.stderr
    with Terminal(toy, "submit", "a zzz", "--size", "64", "-o", "noted.png") as terminal:
        assert terminal.code() == 0
        assert re.search(rb"\x1b\[33mnoted.png: 33 % of", terminal.text)


# ---- early pictures


def test_early_pictures_are_written_while_the_job_runs(toy: Shell) -> None:
    with toy.start("submit", "a fox", "--size", "256", "--steps", "I=3,II=1000", "--stages-dir", "early", "-o", "late.png") as waiting:
        folder = toy.folder / "early"
        when(lambda: folder.is_dir() and any(folder.iterdir()), waiting)
        (path,) = folder.iterdir()
        job = path.name.removesuffix("-64.png")
        (row,) = toy.ps()["jobs"]
        assert (row["job"], row["stage"]) == (job, "stage_two")
        fine(toy.run("cancel", job))
        _, err = waiting.communicate(timeout=LIMIT)
    assert waiting.returncode == 5
    assert re.search(rf"^{job} 64 x 64 preview after [0-9.]+ s: early/{job}-64.png$", err, re.MULTILINE)
    assert err.count(f"{job} stage_one on stage_one-0") == 1
    with Image.open(path) as picture:
        assert picture.size == (64, 64)


def test_every_stage_is_written_in_the_end(toy: Shell) -> None:
    """By a batch as well, with its early pictures."""
    fine(toy.run("submit", "a fox", "-n", "2", "--seed", "7", "--stages-dir", "stages", "--json"))
    names = sorted(path.name.partition("-")[2] for path in (toy.folder / "stages").iterdir())
    assert names == ["1024.png", "1024.png", "256.png", "256.png", "64.png", "64.png"]
    lines = batch(toy, {"prompt": "a fox", "size": 256, "settings": {"stage_two": {"steps": 1000}}}, name="early.jsonl")
    with toy.start("submit", "--batch", lines, "--stages-dir", "soon", "-o", "soon") as waiting:
        folder = toy.folder / "soon"
        when(lambda: folder.is_dir() and any(folder.glob("*-64.png")), waiting)
        (row,) = toy.ps()["jobs"]
        fine(toy.run("cancel", row["job"]))
        waiting.communicate(timeout=LIMIT)
    assert waiting.returncode == 5


def test_a_terminal_tells_of_early_pictures(toy: Shell) -> None:
    with Terminal(toy, "submit", "a fox", "--steps", "I=3,II=100", "-o", "seen.png") as terminal:
        assert terminal.code() == 0
        assert re.search(rb"64 x 64 preview after [0-9.]+ s", terminal.text)
    with Terminal(toy, "submit", "--batch", batch(toy, {"prompt": "a fox", "size": 64, "out": "b"}, name="seen.jsonl")) as terminal:
        assert terminal.code() == 0
        assert b"1/1" in terminal.text
        assert b"b.png" in terminal.text


# ---- batches


def test_a_bad_line_is_named_and_nothing_is_handed_in(toy: Shell) -> None:
    before = sum(row["done"] for row in toy.ps()["services"])
    done = toy.run("submit", "--batch", batch(toy, {"prompt": "a fox"}, {"prompt": "a fox", "size": 65}), "-o", "never")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ifmesh: in/batch.jsonl, line 2: size: 65: 64, 256 or 1024 pixels (nothing was handed in)\n"
    assert (sum(row["done"] for row in toy.ps()["services"]), toy.ps()["jobs"]) == (before, [])
    assert not (toy.folder / "never").exists()


def test_a_batch_of_ten_with_one_that_fails(toy: Shell) -> None:
    """Four at most fit into the mesh: it is waited for."""
    lines: list[dict[str, object]] = [{"prompt": f"fox {n}", "seed": n, "out": f"fox-{n}"} for n in range(1, 11)]
    lines[3]["prompt"] = "toy:raise=stage_one"
    del lines[4]["out"]
    lines[5] |= {"image": "../fox.png", "strength": 0.5, "out": "sub/varied"}
    done = toy.run("submit", "--batch", batch(toy, *lines), "--size", "64", "-o", "ten", "--json")
    assert done.returncode == 6, done.stderr
    said = {one["line"]: one for one in documents(done.stdout)}
    assert sorted(said) == list(range(1, 11))
    assert all(said[n]["seed"] == n for n in said)
    assert "failed in stage_one" in said[4]["error"]
    assert f"ifmesh: line 4: job {said[4]['job']} failed in stage_one" in done.stderr
    assert said[5]["path"] == f"ten/{said[5]['job']}.png"
    assert said[6]["path"] == "ten/sub/varied.png"
    assert asked(toy.folder / "ten/sub/varied.png").task == "vary"
    written = {str(path.relative_to(toy.folder)) for path in (toy.folder / "ten").rglob("*.png")}
    assert written == {one["path"] for one in said.values() if "path" in one}
    assert toy.ps()["jobs"] == []


def test_more_of_one_than_the_mesh_takes_at_once(toy: Shell) -> None:
    done = toy.run("submit", "a fox", "-n", "7", "--size", "64", "--steps", "I=20", "--seed", "1", "-o", "seven.png", "--json")
    assert [(one["seed"], one["path"]) for one in documents(fine(done))] == [(n, f"seven-{n}.png") for n in range(1, 8)]
    assert len({asked(toy.folder / f"seven-{n}.png").seed for n in range(1, 8)}) == 7
    assert "5/7 waits: 4 jobs are" in done.stderr


def test_a_reader_that_goes_away_during_a_batch(toy: Shell) -> None:
    """As for Ctrl-C: what goes on is named, and what is tied ends."""
    steps = {"settings": {"stage_one": {"steps": 1000}}}
    lines: list[dict[str, object]] = [{"prompt": "short"}, {"prompt": "long", **steps}, {"prompt": "tied", "tied": True, **steps}]
    with toy.start("submit", "--batch", batch(toy, *lines, {"prompt": "last"}), "--size", "64", "-o", "gone", "--ahead", "3") as waiting:
        assert waiting.stdout
        assert waiting.stderr
        waiting.stdout.close()
        assert waiting.wait(LIMIT) == 1
        err = waiting.stderr.read()
    (row,) = toy.ps()["jobs"]
    assert row["prompt"] == "long"
    assert f"job {row['job']} goes on: ifmesh show {row['job']} -o out.png, or ifmesh cancel {row['job']}" in err
    assert re.search(r"^job \w+ is tied to this command, and ends with it$", err, re.MULTILINE)
    assert "1 were not handed in: lines 4" in err
    assert "Traceback" not in err
    fine(toy.run("cancel", row["job"]))


def test_a_batch_from_stdin_that_is_not_waited_for(toy: Shell) -> None:
    command = [sys.executable, "-m", "ifmesh", "submit", "--batch", "-", "--size", "64", "--no-wait"]
    lines = json.dumps({"prompt": "a fox", "image": "fox.png"}) + "\n" + json.dumps({"prompt": "an owl"})
    done = subprocess.run(
        command, cwd=toy.folder, env=toy.environ(), input=lines, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    jobs = fine(done).split()
    assert len(jobs) == 2
    for job, task in zip(jobs, ("vary", "generate"), strict=True):
        fine(toy.run("show", job, "-o", f"{job}.png"))
        assert asked(toy.folder / f"{job}.png").task == task
        fine(toy.run("show", job, "-o", f"{job}.png", "--no-parameters"))
        with Image.open(toy.folder / f"{job}.png") as picture:
            assert "ifmesh" not in picture.info


def test_ctrl_c_during_a_batch_says_what_goes_on(toy: Shell) -> None:
    lines = [{"prompt": f"fox {n}", "size": 64, "settings": {"stage_one": {"steps": 1000}}} for n in range(1, 5)]
    with toy.start("submit", "--batch", batch(toy, *lines), "-o", "broken", "--ahead", "2") as waiting:
        jobs = {row["job"] for row in toy.running(count=2)}
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=LIMIT)
    assert (waiting.returncode, out) == (130, "")
    *goes_on, rest, last = [line for line in err.splitlines() if line]
    assert set(goes_on) == {f"job {job} goes on: ifmesh show {job} -o out.png, or ifmesh cancel {job}" for job in jobs}
    assert (rest, last) == ("2 were not handed in: lines 3, 4", "ifmesh: interrupted")
    assert {row["job"] for row in toy.ps()["jobs"]} == jobs
    for job in jobs:
        fine(toy.run("cancel", job))


def test_ctrl_c_ends_what_is_tied(toy: Shell) -> None:
    with toy.start("submit", "a fox", *LONG, "--tied") as waiting:
        (row,) = toy.running()
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=LIMIT)
    assert waiting.returncode == 130
    assert f"job {row['job']} is tied to this command, and ends with it" in err
    assert json.loads(fine(toy.run("show", row["job"], "--json")))["ending"] == "cancelled"


# ---- what is under way


def test_show_draws_the_life_of_a_job(toy: Shell) -> None:
    job = toy.job("a fox", "--size", "256", "--steps", "I=20,II=20")
    fine(toy.run("show", job, "-o", "shown.png"))
    shown = fine(toy.run("show", job))
    bars = dict(re.findall(r"^(\w+) +\|(.{60})\| waits [0-9.]+ s, runs [0-9.]+ s$", shown, re.MULTILINE))
    assert list(bars) == ["encoder", "stage_one", "stage_two", "guard"]
    assert bars["stage_one"].rindex("█") <= bars["stage_two"].index("█")
    ascii_only = subprocess.run(
        [sys.executable, "-m", "ifmesh", "show", job],
        cwd=toy.folder,
        env=toy.environ(PYTHONIOENCODING="ascii"),
        capture_output=True,
        timeout=LIMIT,
        check=True,
    )
    assert b"#" in ascii_only.stdout
    assert ascii_only.stdout.isascii()


# ---- completion


def test_bash_completes_jobs_commands_and_stages(toy: Shell) -> None:
    """In a real bash, with the script that the command prints."""
    job = toy.job("a fox", *LONG)
    bin_dir = toy.folder / "bin"
    bin_dir.mkdir()
    ifmesh = bin_dir / "ifmesh"
    ifmesh.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ifmesh "$@"\n')
    ifmesh.chmod(0o755)
    script = r"""
source <(ifmesh completion bash)
complete -p ifmesh
compopt() { :; }  # outside of a completion there is nothing to set
offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _ifmesh_completion ifmesh; echo "${COMPREPLY[@]}"; }
offer ifmesh sho
offer ifmesh show ""
offer ifmesh cancel "$1"
offer ifmesh submit --steps x
"""
    environ = toy.environ(PATH=f"{bin_dir}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", job[:5]],
        cwd=toy.folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["complete -o nosort -F _ifmesh_completion ifmesh", "show", job, job, "x4="]
    fine(toy.run("cancel", job))
