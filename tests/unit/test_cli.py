"""The command line without a mesh: help, errors, exit codes, and what it does not import."""

from __future__ import annotations

import gc
import io
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from ifmesh import cli, cli_batch, cli_options, cli_targets, cli_timeline, cli_up, cli_wishes, exits
from ifmesh.cli import exit_code, run
from ifmesh.cli_targets import Output
from ifmesh.cli_timeline import Span
from ifmesh.cli_wishes import Order
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError, Misconfigured
from ifmesh.image import Image as Picture
from ifmesh.image import Picture as OfStage
from ifmesh.image import Preview
from ifmesh.protocol import ClientMessage, Inspect, JobRow, ToClient
from ifmesh.request import DEADLINES, STAGES, Settings
from tests.unit.stand_in import BOOKS, StandIn

COMMANDS = sorted(cli.COMMANDS)
NOBODY = "tcp://127.0.0.1:1"
NOTHING = [part for stage in STAGES for part in ("--copies", f"{stage}=0")]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's configuration, nobody's mesh."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IFMESH_STATE", str(tmp_path / "state"))


def _command(name: str) -> click.Command:
    found = cli.cli.get_command(click.Context(cli.cli), name)
    assert found is not None
    assert found.name == name
    return found


def test_help_shows_the_commands_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    listed, _, codes = said.partition("Commands:")[2].partition("Exit codes:")
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == [name for name in cli.COMMANDS if not _command(name).hidden]
    meant = (exits.USAGE, exits.CONFIGURATION, exits.UNREACHABLE, exits.JOB_FAILED, exits.SOME_FAILED, exits.INTERRUPTED)
    assert [int(code) for code in re.findall(r"\d+", codes)] == [exits.OK, exits.FAILURE, *meant]
    every = [
        "up",
        "down",
        "plan",
        "pull",
        "submit",
        "proceed",
        "encode",
        "show",
        "cancel",
        "demo",
        "ps",
        "logs",
        "coordinator",
        "worker",
        "keys",
        "invite",
        "join",
        "doctor",
        "journal",
        "bench",
        "verify",
        "chaos",
        "completion",
    ]
    assert [name for name in cli.COMMANDS if not _command(name).hidden] == every


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "-h"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Usage: ifmesh {command}")
    assert "--life" not in said  # between a worker's parent and its child


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ifmesh ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ups"], "No such command"),
        (["submit"], "Missing argument 'PROMPT'"),
        (["encode", "a fox"], "Missing option '-o'"),
        (["encode", "a fox", "-o", "fox.png"], "a name that ends in .safetensors"),
        (["completion", "tcsh"], "bash"),
        (["submit", "a fox", "--size", "65"], "64"),
        (["submit", "a fox", "--steps", "III=4"], "I, II or x4"),
        (["submit", "a fox", "--steps", "I=many"], "STAGE=NUMBER, as in I=27"),
        (["submit", "a fox", "-o", "gone/out.png"], "no folder gone"),
        (["submit", "a fox", "-o", "out"], "as in out.png"),
        (["submit", "a fox", "--steps", "I=3,"], "STAGE=NUMBER, as in I=27"),
        (["submit", "a fox", "--strength", "much"], "STAGE=NUMBER, as in I=0.7"),
        (["submit", "a fox", "--timesteps", "999,500"], "as in I=999,500,0"),
        (["submit", "a fox", "--timesteps", "encoder=999"], "I, II or x4"),
        (["submit", "a fox", "--timesteps", "I=999,then"], "STAGE=N,N,..., falling, as in I=999,500,0"),
        (["submit", "a fox", "--seeding", "none"], "per_stage"),
        (["submit", "a fox", "--schedule", "III=fast27"], "I, II or x4"),
        (["submit", "a fox", "--scheduler", "guard=ddim"], "I, II or x4"),
        (["submit", "a fox", "--threshold-max", "I=most"], "STAGE=NUMBER, as in I=2"),
        (["submit", "a fox", "--stages-dir", "gone/stages"], "no folder gone to make it in"),
        (["submit", "a fox", "--stages-dir", "file"], "file: a file; the name of a folder"),
        (["submit", "a fox", "--batch", "-"], "every line of --batch has its own: leave it out"),
        (["submit", "--batch", "-", "-o", "out.png"], "out.png: with --batch the name of a folder"),
        (["submit", "--batch", "-", "-o", "file"], "file: a file; the name of a folder"),
        (["submit", "a fox", "--tied", "--no-wait"], "--tied: with --no-wait this command is gone at once"),
        (["submit", "a fox", "--upscale"], "--upscale: what? give a picture, too: --image"),
        (["submit", "a fox", "--upscale-alone"], "--upscale-alone: what? give a picture, too: --image"),
        (["submit", "a fox", "--positive-mixer", "I=some"], "STAGE=NUMBER, as in I=0.25"),
        (["submit", "a fox", "--keep-for", "0"], "'--keep-for': 0.0 is not in the range x>0"),
        (["submit", "a fox", "--format", "gif"], "'gif' is not one of 'png', 'webp', 'jpeg'"),
        (["submit", "a fox", "--candidates", "1"], "2<=x<=100"),
        (["submit", "a fox", "--candidates", "8", "--keep", "2,9"], "Invalid value for --keep: '9': from 1 to 8, as in 2,5; or none"),
        (["submit", "a fox", "--candidates", "8", "--keep", "0"], "'0': from 1 to 8"),
        (["submit", "a fox", "--candidates", "8", "--keep", "some"], "'some': from 1 to 8"),
        (["submit", "a fox", "--candidates", "8", "--keep", ""], "Invalid value for --keep: from 1 to 8"),
        (["submit", "a fox", "--keep", "2"], "give --candidates N, too (or did you mean --keep-for S?)"),
        (["submit", "a fox", "--candidates", "8", "--keep", "2", "--no-wait"], "--keep with --no-wait: not with --candidates"),
        (["submit", "a fox", "--candidates", "8", "-n", "2"], "--count: not with --candidates"),
        (["submit", "--batch", "-", "--candidates", "8"], "--batch: not with --candidates"),
        (["submit", "a fox", "--candidates", "8", "--size", "64"], "nothing comes after: -n 8, or a larger size"),
        (["submit", "a fox", "--candidates", "8", "--image", "file", "--upscale"], "--upscale leaves out Stage I"),
        (["submit", "a fox", "--candidates", "8", "--image", "file", "--upscale-alone"], "--upscale-alone leaves out Stage I"),
        (["proceed"], "Missing argument 'JOB...'"),
        (["proceed", "job1", "--size", "64"], "'64' is not one of '256', '1024'"),
        (["proceed", "job1", "-o", "gone/out.png"], "no folder gone"),
        (["proceed", "job1", "--tied", "--no-wait"], "--tied: with --no-wait this command is gone at once"),
        (["worker", "stage_on"], "stage_one"),
        (["up", "--copies", "stage_on=2"], "STAGE=N, as in stage_one=2"),
        (["up", "--copies", "stage_one=some"], "STAGE=N, as in stage_one=2"),
    ],
)
def test_wrong_use_is_exit_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert not out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ps", "--set", "mesh.litsen=x"], "--set mesh.litsen: no such key; did you mean mesh.listen?"),
        (["ps", "--set", "mesh.listen"], "write KEY=VALUE"),
        (["ps", "--config", "gone.toml"], "gone.toml: No such file"),
        (["ps", "--coordinator", "here"], "mesh.coordinator: 'here': tcp://HOST:PORT"),
        (["up", "--set", "mesh.curve=false", "--listen", "tcp://0.0.0.0:1"], "loopback only"),
        (["up", "--toy", "--set", f"mesh.coordinator={NOBODY}", *NOTHING], "say what is to run on this host"),
        (["up", "--cascade", "if-xk"], "did you mean if-xl?"),
        (["worker", "guard", "--device", "gpu"], "services.guard.device: 'gpu'"),
    ],
)
def test_wrong_configuration_is_exit_3(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IFMESH_MESH_IDENTITY")  # which `up` refuses first
    assert run(arguments) == 3
    out, err = capsys.readouterr()
    assert said in err
    assert len(err.splitlines()) == 1
    assert not out


def test_an_unknown_variable_is_exit_3(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFMESH_COORDINATER", NOBODY)
    assert run(["ps"]) == 3
    assert capsys.readouterr().err == "ifmesh: IFMESH_COORDINATER: no such setting; did you mean IFMESH_COORDINATOR?\n"


def test_nobody_there_is_exit_4(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ps", "--json", "--coordinator", NOBODY]) == 4
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document == {"services": [], "jobs": [], "queued": {}, "missing": ["encoder", "stage_one", "stage_two", "upscaler", "guard"]}
    assert f"no answer from the mesh at {NOBODY}" in err
    assert "ifmesh up" in err


def test_ps_turns_all_pages(capsys: pytest.CaptureFixture[str]) -> None:
    """A job that moved to the next page meanwhile is told once."""

    def pages(message: ClientMessage) -> list[ToClient] | None:
        if not isinstance(message, Inspect):
            return None
        rows = tuple(
            JobRow(f"job{n}", "running", "stage_one", n, 9, "one", 1.0, "a fox") for n in range(2 * message.page, 2 * message.page + 3)
        )
        return [replace(BOOKS, page=message.page, pages=3, jobs=rows)]

    mesh = StandIn(pages)
    try:
        run(["ps", "--json", "--coordinator", mesh.url])
        document = json.loads(capsys.readouterr().out)
        assert [row["job"] for row in document["jobs"]] == [f"job{n}" for n in range(7)]
        run(["ps", "--jobs", "--coordinator", mesh.url])
        assert [line.split() for line in capsys.readouterr().out.splitlines() if "job6" in line] == [
            ["job6", "running", "stage_one", "6/9", "one", "1.0", "a", "fox"]
        ]
    finally:
        mesh.close()


def test_nothing_to_end_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down"]) == 0
    assert "nothing to end" in capsys.readouterr().err


def test_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs"]) == 1
    assert "no logs" in capsys.readouterr().err
    folder = tmp_path / "state" / "logs"
    folder.mkdir(parents=True)
    (folder / "guard-0.log").write_text("1\n2\n[bold]3\nnot whole yet")
    (folder / "coordinator.log").write_text("")
    assert run(["logs", "guard"]) == 1
    assert "did you mean guard-0?" in capsys.readouterr().err
    assert run(["logs", "guard-0", "-n", "2"]) == 0
    assert capsys.readouterr().out == "2\n[bold]3\n"
    assert run(["logs", "-n", "1"]) == 0
    assert capsys.readouterr().out == "guard-0     | [bold]3\n"
    assert run(["logs", "-n", "0"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRequest("prompt", "", "say what to draw"), 2),
        (Misconfigured("mesh.listen"), 3),
        (Lost("no answer"), 4),
        (MeshBusy("full", 2.0), 4),
        (JobFailed("j", "stage_one", "stage_one-0", "boom"), 5),
        (DeadlineExceeded("j"), 5),
        (JobCancelled("j"), 5),
        (MeshError("else"), 1),
    ],
)
def test_the_exit_code_says_whose_fault_it_was(error: MeshError, code: int) -> None:
    assert exit_code(error) == code


# ---- what is wished for


def wished(*flags: str) -> dict[str, object]:
    """Of the flags of a picture."""
    with _command("submit").make_context("submit", ["a fox", *flags]) as context:
        names = ("strength", "negative", "seed", "size", "width", "height", "steps", "timesteps_of", "guidance", "noise_level", "schedule")
        more = ("scheduler", "threshold_ratio", "threshold_max", "aspect_ratio", "seeding", "priority", *DEADLINES, "tied")
        new = ("style", "positive_mixer", "upscale", "format", "keep")
        return cli_wishes.wished(
            **{name: context.params[name] for name in (*names, *more, *new)}, way=cli_wishes.gone_through(context.params["upscale"])
        )


PLAIN = {"size": 1024, "priority": 0, "tied": False}
MIXED = {"stage_one": {"positive_mixer": 0.2}, "stage_two": {"positive_mixer": 1.0}}


@pytest.mark.parametrize(
    ("flags", "wishes"),
    [
        ([], {}),
        (
            ["--steps", "I=27,stage_two=5", "--steps", "x4=3", "--guidance", "I=7.5"],
            {"settings": {"stage_one": {"steps": 27, "guidance": 7.5}, "stage_two": {"steps": 5}, "upscaler": {"steps": 3}}},
        ),
        (["--steps", "4"], {"settings": {stage: {"steps": 4} for stage in ("stage_one", "stage_two", "upscaler")}}),
        (["--steps", "II=9,4"], {"settings": {"stage_one": {"steps": 4}, "stage_two": {"steps": 9}, "upscaler": {"steps": 4}}}),
        (["--noise-level", "100"], {"settings": {"stage_two": {"noise_level": 100}, "upscaler": {"noise_level": 100}}}),
        (["--noise-level", "II=250,x4=20"], {"settings": {"stage_two": {"noise_level": 250}, "upscaler": {"noise_level": 20}}}),
        (["--timesteps", "I=999,500,0"], {"settings": {"stage_one": {"timesteps": [999, 500, 0]}}}),
        (
            ["--schedule", "I=fast27,II=smart50"],
            {"settings": {"stage_one": {"schedule": "fast27"}, "stage_two": {"schedule": "smart50"}}},
        ),
        (
            ["--schedule", "I=10,10,3,2,2,II=ddim50"],
            {"settings": {"stage_one": {"schedule": "10,10,3,2,2"}, "stage_two": {"schedule": "ddim50"}}},
        ),
        (["--schedule", "II=2,1", "--schedule", "9,0"], {"settings": {"stage_one": {"schedule": "9,0"}, "stage_two": {"schedule": "2,1"}}}),
        (
            ["--scheduler", "I=dpm++,ddim"],
            {"settings": {"stage_one": {"scheduler": "dpm++"}, "stage_two": {"scheduler": "ddim"}, "upscaler": {"scheduler": "ddim"}}},
        ),
        (
            ["--threshold-ratio", "I=0.9", "--threshold-max", "2"],
            {"settings": {"stage_one": {"threshold_ratio": 0.9, "threshold_max": 2.0}, "stage_two": {"threshold_max": 2.0}}},
        ),
        (["--aspect-ratio", "3:2"], {"aspect_ratio": "3:2"}),
        (["--style", "oil", "--positive-mixer", "I=0.2,1"], {"style": "oil", "settings": MIXED}),
        (["--upscale"], {"upscale": True}),
        (["--upscale-alone"], {"upscale": "alone"}),
        (["--upscale", "--steps", "4"], {"upscale": True, "settings": {stage: {"steps": 4} for stage in ("stage_two", "upscaler")}}),
        (["--upscale-alone", "--steps", "4"], {"upscale": "alone", "settings": {"upscaler": {"steps": 4}}}),
        (["--upscale", "--threshold-max", "2"], {"upscale": True, "settings": {"stage_two": {"threshold_max": 2.0}}}),
        (["--format", "webp", "--keep-for", "60"], {"format": "webp", "keep": 60.0}),
        (["--strength", "0.5"], {"strength": 0.5}),
        (["--strength", "I=0.5,II=0.75"], {"settings": {"stage_one": {"strength": 0.5}, "stage_two": {"strength": 0.75}}}),
        (["--strength", "0.5", "--strength", "II=0.75"], {"strength": 0.5, "settings": {"stage_two": {"strength": 0.75}}}),
        (
            ["--negative", "blur", "--seed", "7", "--size", "64", "--width", "96", "--height", "64", "--seeding", "per_stage"],
            {"negative": "blur", "seed": 7, "size": 64, "width": 96, "height": 64, "seeding": "per_stage"},
        ),
        (["--priority", "-3", "--deadline", "60", "--tied"], {"priority": -3, "deadline": 60.0, "tied": True}),
        (["--deadline-queued", "6", "--deadline-running", "9"], {"deadline_queued": 6.0, "deadline_running": 9.0}),
        (["--tied", "--detached"], {}),
    ],
)
def test_flags_become_wishes(flags: list[str], wishes: dict[str, object]) -> None:
    assert wished(*flags) == PLAIN | wishes


def test_several_have_seeds_that_count_on_and_names_of_their_own() -> None:
    three = Order("a fox", {"seed": 7}, target=Path("fox.png")).times(3)
    assert [(order.seed, order.path("j")) for order in three] == [(7 + i, Path(f"fox-{i + 1}.png")) for i in range(3)]
    drawn = Order("a fox", {}).times(2)
    assert drawn[1].seed == drawn[0].seed + 1
    assert drawn[0].path("j") == Path("j.png")


def test_the_request_says_what_the_flags_say(tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), "red").save("fox.png")
    Image.new("L", (48, 32), 255).save("mask.png")
    wishes = {"seed": 7, "size": 256, "strength": 0.5, "settings": {"stage_one": {"steps": 9, "timesteps": None}}}
    request, brought = Order("a hat", wishes, "fox.png", "mask.png").made()
    assert (request.task, request.last_stage, request.brings) == ("inpaint", "stage_two", ("source", "mask"))
    assert request.settings == {"stage_one": Settings(steps=9, strength=0.5), "stage_two": Settings(strength=0.5)}
    assert brought.source == Path("fox.png").read_bytes()
    assert Order("a hat", wishes, "fox.png").made()[0].task == "vary"


@pytest.mark.parametrize(
    ("name", "wishes", "format", "path"),
    [
        (None, {}, "png", "j.png"),
        (None, {"format": "jpeg"}, "jpeg", "j.jpg"),
        ("fox.WEBP", {}, "webp", "fox.WEBP"),
        ("fox.jpeg", {}, "jpeg", "fox.jpeg"),
        ("fox.jpg", {"format": "jpeg"}, "jpeg", "fox.jpg"),
        ("fox.tiff", {}, "png", "fox.tiff"),
    ],
)
def test_name_and_format_agree(name: str | None, wishes: dict[str, object], format: str, path: str) -> None:
    order = Order("a fox", {"seed": 7, **wishes}, target=Path(name) if name else None)
    assert order.made()[0].format == format
    assert order.path("j") == Path(path)


def test_what_is_made_larger() -> None:
    Image.new("RGB", (96, 64), "red").save("fox.png")
    both, alone = (Order("a fox", {"seed": 7, "upscale": how}, "fox.png").made()[0] for how in (True, "alone"))
    assert (both.task, both.first_stage, both.last_stage, both.brings) == ("upscale", "encoder", "upscaler", ("source",))
    assert (alone.task, alone.first_stage, alone.brings) == ("upscale", "upscaler", ("source",))
    far = Order("a fox", {"seed": 7, "upscale": True}, "http://127.0.0.1:1/fox.png").made(fetch=False)[0]
    assert (far.task, far.brings) == ("upscale", ("source",))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([""], "prompt: '': say what to draw"),
        (["a fox", "--image", "gone.png"], "--image: 'gone.png': no such file"),
        (["a fox", "--image", "text.png"], "--image: 'text.png': is no picture of a known format: send PNG, JPEG or WebP"),
        (["a fox", "--image", "long.png"], "--image: 'long.png': 50 x 10: the longer side at most 4 times the shorter"),
        (["a fox", "--mask", "fox.png"], "--mask: 'fox.png': a mask says where to repaint a source: give the source, too"),
        (["a fox", "--image", "fox.png", "--mask", "tall.png"], "--mask: '64 x 96': of another aspect than the source, 96 x 64"),
        (["a fox", "--strength", "0.5"], "--strength: 0.5: belongs to vary and inpaint: give a source"),
        (["a fox", "--image", "fox.png", "--strength", "0"], "--strength: 0.0: above 0, at most 1"),
        (["a fox", "--image", "fox.png", "--strength", "II=1.5"], "--strength II: 1.5: above 0, at most 1"),
        (
            ["a fox", "--image", "fox.png", "--strength", "0.01", "--steps", "I=50"],
            "--strength I: 0.01: leaves no step of 50: at least 0.02",
        ),
        (["a fox", "--image", "fox.png", "--width", "64"], "--width: 64: vary follows its source: leave it out"),
        (["a fox", "--steps", "I=0"], "--steps I: 0: from 1 to 1000"),
        (["a fox", "--guidance", "nan"], "--guidance I: nan: a finite number"),
        (["a fox", "--noise-level", "I=3"], "--noise-level I: 3: Stage I has none: leave it out"),
        (["a fox", "--noise-level", "x4=351"], "--noise-level x4: 351: from 0 to 350"),
        (["a fox", "--timesteps", "I=1,2"], "--timesteps I: (1, 2): a strictly falling list within 999..0"),
        (["a fox", "--timesteps", "I=9,2", "--steps", "I=2"], "--steps I: 2: give steps or timesteps, not both"),
        (["a fox", "--schedule", "I=fast28"], "--schedule I: 'fast28': one of fast27, smart27"),
        (["a fox", "--schedule", "I=fast27", "--steps", "9"], "--schedule I: 'fast27': give schedule or steps, not both"),
        (["a fox", "--schedule", "x4=super27"], "--schedule x4: 'super27': the upscaler takes steps only"),
        (
            ["a fox", "--scheduler", "I=euler"],
            "--scheduler I: 'euler': does not apply dynamic thresholding: pictures burn out; one of ddpm",
        ),
        (["a fox", "--scheduler", "ddim", "--schedule", "II=smart50"], "--scheduler II: 'ddim': strides evenly"),
        (["a fox", "--threshold-ratio", "II=2"], "--threshold-ratio II: 2.0: a quantile: above 0, at most 1"),
        (["a fox", "--threshold-max", "x4=2"], "--threshold-max x4: 2.0: the upscaler draws latents"),
        (["a fox", "--aspect-ratio", "3/2"], "--aspect-ratio: '3/2': width to height in whole numbers, as in 3:2"),
        (["a fox", "--aspect-ratio", "3:2", "--width", "64"], "--aspect-ratio: '3:2': give aspect_ratio or width, not both"),
        (["a fox", "--image", "fox.png", "--aspect-ratio", "3:2"], "--aspect-ratio: '3:2': vary follows its source: leave it out"),
        (["a fox", "--height", "60"], "--height: 60: base pixels (Stage I): a multiple of 8 from 8 to 256"),
        (["a fox", "--positive-mixer", "0.5"], "--positive-mixer I: 0.5: belongs to stage_one and stage_two of a request with a style"),
        (["a fox", "--style", "oil", "--positive-mixer", "II=2"], "--positive-mixer II: 2.0: from 0"),
        (["a fox", "--style", "x" * 2001], "--style: 'xxx"),
        (["a fox", "--keep-for", "60"], "--keep-for: 60.0: nothing comes after upscaler"),
        (["a fox", "--format", "webp", "-o", "out.jpg"], "--format: 'webp': out.jpg is to be jpeg: leave one of them out"),
        (["a fox", "--image", "large.png", "--upscale"], "--image: '512 x 512': at most 256 pixels a side by Stage II"),
        (["a fox", "--image", "fox.png", "--upscale", "--size", "64"], "--size: 64: upscale begins with Stage II"),
        (["a fox", "--image", "fox.png", "--upscale", "--strength", "0.5"], "--strength: 0.5: belongs to vary and inpaint"),
        (["a fox", "--image", "fox.png", "--upscale", "--steps", "I=5"], "--steps I: 5: upscale does not go through stage_one"),
        (["a fox", "--image", "fox.png", "--upscale-alone", "--steps", "II=5"], "--steps II: 5: drawing begins with upscaler"),
        (["a fox", "--image", "fox.png", "--upscale-alone", "--schedule", "fast27"], "--schedule I: 'fast27': upscale does not go"),
        (["a fox", "--image", "fox.png", "--upscale-alone", "--size", "256"], "--size: 256: the upscaler alone draws four times its"),
        (["a fox", "--candidates", "8", "--format", "webp", "-o", "out.jpg"], "--format: 'webp': out.jpg is to be jpeg"),
        (["a fox", "--candidates", "8", "--steps", "x4=0"], "--steps x4: 0: from 1 to 1000"),
        (["a fox", "--candidates", "8", "--keep-for", "1e9"], "--keep-for: 1000000000.0: seconds: from 0 to 86400"),
        (["a fox", "--candidates", "8", "--seed", str(2**63 - 1)], "--seed: 9223372036854775814: from 0 to 2**63 - 1"),
        (["a fox", "--priority", "101"], "--priority: 101: from -100 to 100"),
        (["a fox", "--deadline", "0"], "--deadline: 0.0: seconds from acceptance: above 0"),
        (["a fox", "--deadline-running", "0"], "--deadline-running: 0.0: seconds from its beginning: above 0"),
        (["a fox", "--negative", "x" * 2001], "--negative: 'xxx"),
        (["a fox", "--seed", str(2**63 - 1), "-n", "2"], "--seed: 9223372036854775808: from 0 to 2**63 - 1"),
        (["--embeds", "gone.safetensors"], "--embeds: 'gone.safetensors': cannot be read: No such file"),
        (["--embeds", "fox.png"], "--embeds: 'fox.png': no safetensors file of embeddings"),
        (["--batch", "gone.jsonl"], "--batch: 'gone.jsonl': cannot be read: No such file"),
        (["--batch", "empty.jsonl"], "--batch: 'empty.jsonl': holds no line"),
    ],
)
def test_what_can_never_work_is_said_before_connecting(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (96, 64)).save("fox.png")
    Image.new("L", (64, 96)).save("tall.png")
    Image.new("L", (50, 10)).save("long.png")
    Image.new("RGB", (512, 512)).save("large.png")
    Path("text.png").write_text("a fox")
    Path("empty.jsonl").write_text("\n \n")
    assert run(["submit", *flags, "--coordinator", NOBODY]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert len(err.splitlines()) == 1
    assert not out


# ---- batches


def lines(*texts: str) -> str:
    Path("in").mkdir(exist_ok=True)
    Path("in/batch.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return "in/batch.jsonl"


def test_a_line_says_what_differs() -> None:
    Image.new("RGB", (64, 64)).save("shared.png")
    path = lines(
        '\ufeff{"prompt": "a fox", "seed": 7, "out": "sub/fox"}',
        "",
        '{"image": "own.png", "size": 256, "negative": null, "settings": {"stage_one": {"steps": 3}}}',
    )
    Image.new("RGB", (64, 64)).save("in/own.png")
    shared = Order("all", {"size": 64, "negative": "blur", "settings": {"stage_one": {"steps": 9}}})
    first, second = cli_batch.read(path, shared, Path("out"))
    assert (first.line, first.prompt, first.wishes) == (1, "a fox", {**shared.wishes, "seed": 7})
    assert (first.image, first.path("j")) == (None, Path("out/sub/fox.png"))
    assert (second.line, second.prompt, second.image) == (3, "all", "in/own.png")
    settings = {"stage_one": {"steps": 3}}
    assert second.wishes == {"size": 256, "negative": "blur", "settings": settings, "seed": second.seed}
    assert second.path("j") == Path("out/j.png")


def test_flags_of_a_batch_are_for_the_stages_that_a_line_goes_through() -> None:
    Path("in").mkdir()
    Image.new("RGB", (64, 64)).save("in/own.png")
    path = lines(
        '{"prompt": "a fox"}',
        '{"prompt": "a fox", "image": "own.png", "upscale": true}',
        '{"prompt": "a fox", "image": "own.png", "upscale": "alone"}',
    )
    shared = Order("", {"settings": {stage: {"steps": 9} for stage in ("stage_one", "stage_two", "upscaler")}})
    ways = [list(order.made()[0].settings) for order in cli_batch.read(path, shared, Path("out"))]
    assert ways == [["stage_one", "stage_two", "upscaler"], ["stage_two", "upscaler"], ["upscaler"]]
    own = lines('{"prompt": "a fox", "image": "own.png", "upscale": true, "settings": {"stage_one": {"steps": 3}}}')
    with pytest.raises(BadRequest, match=r"line 1: settings.stage_one.steps: 3: upscale does not go through stage_one"):
        cli_batch.read(own, shared, Path("out"))


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_of_every_stage_one_file_is_left(format: str, tmp_path: Path) -> None:
    def file(kind: str) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(data, kind)
        return data.getvalue()

    output, last = Output(tmp_path / "stages"), OfStage("stage_one", file(format))
    assert output.early(Preview("stage_one", file("png"), "job1", False)) == tmp_path / "stages" / "job1-64.png"
    (tmp_path / "stages" / "job2-64.png").touch()
    output.stages(Picture("stage_one", last.data, "job1", 7, {"stage_one": last}, (), False, True))
    suffix = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}[format]
    assert {path.name for path in (tmp_path / "stages").iterdir()} == {f"job1-64{suffix}", "job2-64.png"}
    assert (tmp_path / "stages" / f"job1-64{suffix}").read_bytes() == last.data


def test_a_line_may_wish_for_whatever_the_flags_can() -> None:
    Path("in").mkdir()
    Image.new("RGB", (64, 64)).save("in/own.png")
    path = lines(
        '{"prompt": "a fox", "style": "oil", "settings": {"stage_one": {"positive_mixer": 0.5}}, "format": "webp", "out": "fox"}',
        '{"prompt": "a fox", "image": "own.png", "upscale": "alone", "out": "large.jpg"}',
        '{"prompt": "a fox", "size": 64, "keep": 60, "format": "jpeg"}',
    )
    styled, larger, kept = cli_batch.read(path, Order("", {}), Path("out"))
    request = styled.made()[0]
    assert (request.style, request.settings, request.format) == ("oil", {"stage_one": Settings(positive_mixer=0.5)}, "webp")
    assert styled.path("j") == Path("out/fox.webp")
    assert (larger.made()[0].first_stage, larger.made()[0].format) == ("upscaler", "jpeg")
    assert (kept.made()[0].keep, kept.path("j")) == (60.0, Path("out/j.jpg"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a fox", "JSON: 'a fox': cannot be read: Expecting value"),
        ("\udcff", "JSON: "),
        ("[" * 100_000, "JSON: "),
        ('["a fox"]', "JSON: ['a fox']: one object each line, such as"),
        ("{}", "prompt: '': say what to draw"),
        ('{"prompt": 7}', "prompt: 7: "),
        ('{"prompt": "a fox", "sede": 7}', "sede: 7: no such wish; did you mean seed?"),
        ('{"prompt": "a fox", "generator": 7}', "generator: 7: no such wish"),
        ('{"prompt": "a fox", "continues": "job1"}', "continues: 'job1': no such wish"),
        ('{"prompt": "a fox", "format": "gif"}', "format: 'gif': "),
        ('{"prompt": "a fox", "format": ["png"], "out": "fox"}', "format: ['png']: "),
        ('{"prompt": "a fox", "format": "webp", "out": "fox.png"}', "format: 'webp': fox.png is to be png"),
        ('{"prompt": "a fox", "upscale": true}', "image: None: a path"),
        ('{"prompt": "a fox", "style": 7}', "style: 7: "),
        ('{"prompt": "a fox", "keep": 9}', "keep: 9.0: nothing comes after upscaler"),
        ('{"prompt": "a fox", "seed": -1}', "seed: -1: from 0"),
        ('{"prompt": "a fox", "seed": true}', "seed: True: "),
        ('{"prompt": "a fox", "size": 65}', "size: 65: 64, 256 or 1024 pixels"),
        ('{"prompt": "a fox", "settings": {"stage_one": {"steps": 0}}}', "settings.stage_one.steps: 0: from 1 to 1000"),
        ('{"prompt": "a fox", "settings": {"stage_one": {"stepps": 1}}}', "settings.stage_one.stepps"),
        ('{"prompt": "a fox", "strength": 0.5}', "strength: 0.5: belongs to vary and inpaint"),
        ('{"prompt": "a fox", "image": "gone.png"}', "image: 'in/gone.png': no such file"),
        ('{"prompt": "a fox", "image": 7}', "image: 7: a path, relative to the file of the batch, or a URL"),
        ('{"prompt": "a fox", "image": "http://127.0.0.1:1/fox.png", "strength": 0}', "strength: 0: above 0"),
        ('{"prompt": "a fox", "embeds": "gone.safetensors"}', "embeds: 'in/gone.safetensors': cannot be read"),
        ('{"prompt": "a fox", "out": "../fox.png"}', "out: '../fox.png': the name of a file within the folder that --out names"),
        ('{"prompt": "a fox", "out": "/fox.png"}', "out: '/fox.png': the name of a file within"),
        ('{"prompt": "a fox", "out": "fox.xyz"}', "no picture format to write has the suffix '.xyz'"),
        ('{"prompt": "a fox", "out": "good.png"}', "out: 'good.png': line 1 has it, too"),
        ('{"prompt": "a fox", "out": "\\ud800.png"}', "out: '\\ud800.png': the name of a file within"),
        ('{"prompt": "a fox", "out": "\\udcff.png"}', "out: '\\udcff.png': the name of a file within"),
        ('{"prompt": "a fox", "embeds": "a\\u0000b"}', "embeds: 'in/a\\x00b': cannot be read"),
        ('{"prompt": "a fox", "image": "\\ud800.png"}', "image: 'in/\\ud800.png': cannot be read"),
    ],
)
def test_a_wrong_line_is_named_before_connecting(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines('{"prompt": "a fox", "out": "good"}')
    with open(path, "ab") as file:
        file.write(b"\n" + line.encode(errors="surrogateescape") + b"\n")
    assert run(["submit", "--batch", path, "-o", "out", "--coordinator", NOBODY]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("ifmesh: in/batch.jsonl, line 3: ")
    assert said in err
    assert "(nothing was handed in)" in err
    assert len(err.splitlines()) == 1
    assert not out
    assert not Path("out").exists()


@pytest.mark.parametrize("flags", [(), ("--tied",)])
def test_a_tied_line_is_waited_for(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    path = lines('{"prompt": "a fox", "tied": false}', '{"prompt": "a fox", "tied": true}')
    assert run(["submit", "--batch", path, "--no-wait", *flags, "--coordinator", NOBODY]) == 2
    assert f"ifmesh: {path}, line 2: tied: True: with --no-wait this command is gone at once" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_no_bug(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"")

    for name in ("\ud800.png", "a\0b.png", "x" * 300):
        with pytest.raises(MeshError, match="the mesh keeps it: ifmesh show fox "):
            cli_targets.save(write, tmp_path / name, "fox")


def test_of_several_pictures_one_is_in_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    alive: list[int] = []
    finished = cli_targets.Output.finished

    def pictures() -> list[object]:
        return [thing for thing in gc.get_objects() if type(thing) is Picture]

    def counted(self: cli_targets.Output, image: Picture, *rest: Any) -> None:
        alive.append(len(pictures()) - len(others))
        finished(self, image, *rest)

    monkeypatch.setattr(cli_targets.Output, "finished", counted)
    mesh = StandIn()
    gc.collect()
    others = pictures()  # what earlier tests left in this process, and held here: nobody lets it go meanwhile
    try:
        assert run(["submit", "a fox", "-n", "5", "-o", "fox.png", "--coordinator", mesh.url]) == 0
    finally:
        mesh.close()
    assert capsys.readouterr().out.splitlines() == [f"fox-{n}.png" for n in range(1, 6)]
    assert alive == [1] * 5


def test_of_several_wrong_lines_the_first_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    path = lines('{"prompt": "a fox"}', '{"prompt": "", "seed": 1}', "{", '{"prompt": "a fox", "seed": -1}')
    assert run(["submit", "--batch", path, "--coordinator", NOBODY]) == 2
    err = capsys.readouterr().err
    assert "line 2: prompt: ''" in err
    assert "(nothing was handed in; 2 more are wrong)" in err


# ---- the timeline

LIFE = (
    (0.0, "accepted"),
    (1.0, "stage_one: assigned: one"),
    (2.0, "stage_one: begun on one"),
    (4.0, "stage_one: retried: one killed: SIGKILL"),
    (5.0, "stage_one: begun on two"),
    (9.0, "stage_one: advanced: done on two, 5 steps, 4.00 s"),
    (9.0, "guard: assigned: guard"),
)


def test_a_life_in_bars() -> None:
    found = cli_timeline.spans((*LIFE, (9.5, "guard: begun on guard"), (9.9, "guard: done on guard"), (10.0, "guard: completed: 9 bytes")))
    assert found == [
        Span("stage_one", "queued", 0.0, 2.0),
        Span("stage_one", "lost", 2.0, 4.0),
        Span("stage_one", "queued", 4.0, 5.0),
        Span("stage_one", "running", 5.0, 9.0),
        Span("guard", "queued", 9.0, 9.5),
        Span("guard", "running", 9.5, 10.0),
    ]
    assert cli_timeline.chart(found, 20, plain=True) == [
        ("stage_one", "....xxxx..########  ", "waits 3.000 s, runs 4.000 s, in vain 2.000 s"),
        ("guard", "                  .#", "waits 0.500 s, runs 0.500 s"),
    ]


def test_a_life_that_goes_on() -> None:
    assert cli_timeline.spans(LIFE, ("guard", 12.0))[-1] == Span("guard", "queued", 9.0, 12.0)
    assert cli_timeline.spans(LIFE[:3], ("stage_one", 7.0))[-1] == Span("stage_one", "running", 2.0, 7.0)
    assert cli_timeline.spans(LIFE[:1], ("stage_one", 3.0)) == [Span("stage_one", "queued", 0.0, 3.0)]


def test_what_ran_is_seen_however_short() -> None:
    found = [Span("encoder", "running", 0.0, 0.001), Span("stage_one", "running", 0.001, 100.0), Span("guard", "running", 100.0, 100.0)]
    assert [bar for _, bar, _ in cli_timeline.chart(found, 10)] == ["█         ", "██████████", "         █"]
    assert cli_timeline.chart([], 10) == []


# ---- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_says_how_to_install_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (said[0] == "#compdef ifmesh") == (shell == "zsh")  # or zsh would not find it in its folder
    assert said[shell == "zsh"].startswith("# ")
    assert f"ifmesh completion {shell}" in said[shell == "zsh"]
    assert any("_IFMESH_COMPLETE" in line for line in said)


def completed(*words: str) -> list[str]:
    """What bash would offer for the last word."""
    environ = os.environ | {"_IFMESH_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["ifmesh", *words]), "COMP_CWORD": str(len(words))}
    done = subprocess.run([sys.executable, "-m", "ifmesh"], env=environ, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_a_prompt_is_one_line_of_help() -> None:
    """The script of zsh reads three lines for each offer: a prompt must not make offers of its own."""
    row = JobRow("job1", "running", "stage_one", 1, 2, "w", 1.0, "a fox\nplain\nrm -rf\x1b[2J \t ~")
    mesh = StandIn(lambda message: [replace(BOOKS, jobs=(row,))] if isinstance(message, Inspect) else None)
    environ = os.environ | {"_IFMESH_COMPLETE": "zsh_complete", "COMP_WORDS": "ifmesh show j", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "ifmesh"]
    try:
        done = subprocess.run(
            command, env=environ | {"IFMESH_COORDINATOR": mesh.url}, capture_output=True, text=True, timeout=30, check=True
        )
    finally:
        mesh.close()
    assert done.stdout.splitlines() == ["plain", "job1", "stage_one a fox plain rm -rf [2J ~"]


def test_completion() -> None:
    assert completed("s") == ["plain,submit", "plain,show"]
    assert completed("submit", "--st") == ["plain,--style", "plain,--strength", "plain,--steps", "plain,--stages-dir", "plain,--state"]
    assert completed("submit", "--keep") == ["plain,--keep", "plain,--keep-for"]
    assert completed("submit", "--format", "w") == ["plain,webp"]
    assert completed("submit", "--steps", "I") == ["plain,I=", "plain,II="]
    assert completed("submit", "--guidance", "I=7,x") == ["plain,I=7,x4="]
    assert completed("submit", "--image", "f") == ["file,f"]
    assert completed("completion", "b") == ["plain,bash"]


@pytest.mark.parametrize("more", [["--coordinator", NOBODY], ["--coordinator", "nonsense"], ["--config", "gone.toml"], []])
def test_without_a_mesh_no_job_is_offered(more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFMESH_COORDINATOR", NOBODY)
    assert completed("show", *more, "a") == []


def test_flags_travel_to_the_services(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[mesh]\nmax_jobs = 3\n")
    arguments = ["--toy", "--copies", "stage_one=2", "--set", "services.guard.options.steps=3", "--config", "mine.toml"]
    with cli_up.up.make_context("up", arguments):
        config, flags = cli_options.configuration(Path("mine.toml"))
    assert flags[:2] == ["--config", str(tmp_path / "mine.toml")]
    with cli_up.up.make_context("up", list(flags)) as there:
        again, _ = cli_options.configuration(there.params["config_file"])
    assert again == config
    assert (config.cascade.toy, config.services["stage_one"].copies, config.services["guard"].options) == (True, 2, {"steps": 3})
    assert config.mesh.max_jobs == 3


@pytest.mark.parametrize("arguments", [["--help"], ["worker", "--help"], ["ps", "--coordinator", NOBODY], ["show", "j", "--set", "a=b"]])
def test_the_light_half_stays_light(arguments: list[str]) -> None:
    """No torch, no numpy; and for help nothing but click."""
    source = f"import sys; from ifmesh.cli import run; run({arguments}); print(*[m for m in sys.modules if '.' not in m])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "ifmesh_services"}
    if "--help" in arguments:
        assert not loaded & {"zmq", "rich", "PIL", "safetensors", "msgpack", "asyncio"}


def test_a_process_of_the_mesh_imports_no_more_than_it_needs() -> None:
    """Each has a parent that is another: what one imports in vain counts ten times in a small mesh."""
    source = "import sys; from ifmesh import coordinator, worker; from ifmesh.cli import run; run(['worker', '-h']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {module for module in loaded if module.startswith("ifmesh.cli_")} == {"ifmesh.cli_mesh", "ifmesh.cli_options"}
    assert not loaded & {"asyncio", "rich", "ssl", "multiprocessing"}


@pytest.mark.parametrize("plain", [True, False])
def test_no_color_is_honoured(plain: bool) -> None:
    """On a terminal errors are red, unless NO_COLOR is set."""
    ours, theirs = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "ifmesh", "ps", "--set", "a=b"]
    done = subprocess.run(command, stderr=theirs, env=environ | ({"NO_COLOR": "1"} if plain else {}), check=False)
    os.close(theirs)
    said = os.read(ours, 4096)
    os.close(ours)
    assert done.returncode == 3
    assert b"no such key" in said
    assert (b"\x1b[31m" in said) is not plain


def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "logs"
    folder.mkdir(parents=True)
    (folder / "guard-0.log").write_text("a line\n" * 100_000)
    command = [sys.executable, "-m", "ifmesh", "logs", "-n", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == ""
