"""The command line without a mesh: help, errors, exit codes, and what it does not import."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ifmesh import cli, cli_jobs, cli_options, cli_up
from ifmesh.cli import exit_code, run
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError, Misconfigured

COMMANDS = sorted(cli.cli.commands)
NOBODY = "tcp://127.0.0.1:1"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's configuration, nobody's mesh."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IFMESH_STATE", str(tmp_path / "state"))


def test_help_shows_the_commands_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.partition("Commands:")[2].splitlines() if line.strip()] == list(cli.cli.commands)
    assert sorted(["up", "down", "submit", "show", "cancel", "demo", "ps", "logs", "coordinator", "worker"]) == COMMANDS


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
        (["submit"], "Missing argument"),
        (["submit", "a fox", "--size", "65"], "64"),
        (["submit", "a fox", "--steps", "III=4"], "I, II or x4"),
        (["submit", "a fox", "--steps", "I=many"], "STAGE=NUMBER, as in I=27"),
        (["submit", "a fox", "-o", "gone/out.png"], "no folder gone"),
        (["submit", "a fox", "-o", "out"], "as in out.png"),
        (["worker", "stage_on"], "stage_one"),
        (["up", "--copies", "stage_on=2"], "STAGE=N, as in stage_one=2"),
        (["up", "--copies", "stage_one=some"], "STAGE=N, as in stage_one=2"),
    ],
)
def test_wrong_use_is_exit_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["up", "--listen", "tcp://0.0.0.0:1"], "loopback only"),
        (["up", "--toy", "--set", f"mesh.coordinator={NOBODY}"], "`up` starts its own coordinator"),
        (["up", "--cascade", "if-xk"], "did you mean if-xl?"),
        (["worker", "guard", "--device", "gpu"], "services.guard.device: 'gpu'"),
    ],
)
def test_wrong_configuration_is_exit_3(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_settings_by_stage() -> None:
    assert cli_jobs.settings(["I=27", "stage_two=5", "x4=3"], ["I=7.5"]) == {
        "stage_one": {"steps": 27, "guidance": 7.5},
        "stage_two": {"steps": 5},
        "upscaler": {"steps": 3},
    }
    assert cli_jobs.settings(["4"], []) == {stage: {"steps": 4} for stage in ("stage_one", "stage_two", "upscaler")}


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
