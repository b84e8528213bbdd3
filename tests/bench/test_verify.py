"""`ifmesh verify` and `ifmesh bench baseline --notebook`: diffusers alone in one process, and real meshes beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from ifmesh import cli, exits
from ifmesh.bench.markdown import markdown
from ifmesh.bench.peaks import Peaks
from tests.mesh.real import cascade

ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("IFMESH")}
LIMIT = 400.0
"""Seconds: a mesh that starts, on a busy machine."""

pytestmark = pytest.mark.timeout(LIMIT + 20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 -> 64 -> 256."""
    return cascade(tmp_path_factory.getbasetemp(), 16)


def ifmesh(*words: str | Path, code: int = exits.OK) -> str:
    """Its stderr."""
    command = [sys.executable, "-m", "ifmesh", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=ENVIRON, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def test_the_mesh_is_diffusers_own(weights: Path, tmp_path: Path) -> None:
    ifmesh("verify", "--cascade", weights, "--case", "astronaut", "--case", "sunglasses", "--size", "64", "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    equal = {"encoder": "equal", "stage_one": "equal"}
    assert {row["case"]: (row["task"], row["stages"]) for row in report["cases"]} == {
        "astronaut": ("generate", equal),
        "sunglasses": ("inpaint", equal),
    }
    assert report["wrong"] == []
    diffusers, mesh = report["sides"]["diffusers"], report["sides"]["ifmesh"]
    assert (diffusers["loads"], mesh["loads"]) == ({"encoder": 2, "stage_one": 2}, {"encoder": 1, "stage_one": 1})
    assert all(side["ram"] > 50e6 for side in (diffusers, mesh))
    assert all(row["seconds"].keys() == {"diffusers", "ifmesh"} for row in report["cases"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 1352
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# ifmesh verify: all of 4 tensors of 2 cases are diffusers' own, bit by bit\n")
    assert "| astronaut | generate | equal | equal |" in text
    assert "(sheet.png)" in text


@pytest.mark.slow
def test_other_weights_on_one_side_are_noticed(weights: Path, tmp_path: Path) -> None:
    """One value of one layer of Stage I."""
    other = tmp_path / "other"
    shutil.copytree(weights, other)
    [file] = (other / "IF-I-nano" / "unet").glob("diffusion_pytorch_model.safetensors")
    tensors = load_file(file)
    tensors["conv_out.bias"][0] += 0.01
    save_file(tensors, file, metadata={"format": "pt"})
    words = ("verify", "--cascade", weights, "--reference", other, "--case", "astronaut", "--size", "64", "--out", tmp_path / "out")
    said = ifmesh(*words, code=exits.FAILURE)
    assert "astronaut: stage_one: image64 differs by " in said
    assert "astronaut: encoder" not in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [row] = report["cases"]
    assert row["stages"]["encoder"] == "equal"
    assert row["most"]["stage_one"] > 0
    assert report["verdict"] == "1 of 2 tensors of 1 cases are not what diffusers makes"


@pytest.mark.slow
def test_every_case_through_every_stage(weights: Path, tmp_path: Path) -> None:
    ifmesh("verify", "--cascade", weights, "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "all of 20 tensors of 5 cases are diffusers' own, bit by bit"
    assert {row["task"] for row in report["cases"]} == {"generate", "vary", "inpaint"}


@pytest.mark.slow
def test_the_notebooks_sequence_stands_beside_the_mesh(weights: Path, tmp_path: Path) -> None:
    words = ("--prompts", "3", "--steps", "2", "--size", "64", "--turns", "--repeat", "2", "--cascade", weights, "--out", tmp_path)
    ifmesh("bench", "baseline", "--notebook", *words)
    report = json.loads((tmp_path / "report.json").read_text())
    notebook, mesh = report["rows"]
    assert (notebook["name"], mesh["name"]) == ("diffusers, notebook", "ifmesh")
    assert notebook["loads_by_stage"] == {"encoder": 6, "stage_one": 6}
    assert mesh["loads_by_stage"] == {"encoder": 0, "stage_one": 0}, "it has them in memory since it is ready"
    for key, times in (("seconds_per_image", "times"), ("processor_s_per_image", "processor_times")):
        rounds = [theirs / ours for theirs, ours in zip(notebook["rounds"][key], mesh["rounds"][key], strict=True)]
        assert notebook[times] == pytest.approx(sum(rounds) / 2)
        assert len(rounds) == 2
    assert all(row["ready_s"] > 1.0 for row in report["rows"])
    assert all(row["processor_s_per_image"] > 0.01 for row in report["rows"])
    assert report["asked"]["prompts"] == 3


@pytest.mark.slow
def test_in_swap_each_part_is_loaded_once_for_all(weights: Path, tmp_path: Path) -> None:
    """Of the two only one fits.  The warm picture leaves Stage I in memory, which then has to go for the texts."""
    needs = [part for stage in ("encoder", "stage_one") for part in ("--set", f"services.{stage}.needs=300MB")]
    words = ("--prompts", "4", "--steps", "2", "--size", "64", "--memory", "400MB", "--cascade", weights, "--out", tmp_path)
    ifmesh("bench", "baseline", "--notebook", *words, *needs)
    report = json.loads((tmp_path / "report.json").read_text())
    notebook, mesh = report["rows"]
    assert notebook["loads_by_stage"] == {"encoder": 4, "stage_one": 4}
    assert mesh["loads_by_stage"] == {"encoder": 1, "stage_one": 1}
    assert notebook["loads_times"] == 4.0
    assert report["configuration"]["memory.cpu"] == 400_000_000
    assert report["configuration"]["services.stage_one.residency"] == "swap"


def test_peaks_are_those_of_the_processes_that_count() -> None:
    code = "import sys; held = bytearray(b'x') * 300_000_000; print('held', flush=True); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        looks = iter(range(1000))

        def pids() -> list[int]:
            if next(looks) == 3:
                child.stdin.close()  # type: ignore[union-attr]
            return [child.pid]

        child.stdout.readline()
        with Peaks(pids) as peaks:
            child.wait(60)
        assert 300e6 < peaks.ram < 330e6


def test_markdown_is_what_was_said() -> None:
    machine = {"processor": "a|b", "processors": 1, "memory": 1, "cards": [], "load": 0.0}
    report: dict[str, Any] = {"kind": "none", "at": "now", "command": "ifmesh", "machine": machine, "versions": {}, "configuration": {}}
    text = markdown({**report, "what": "<b>[x](y)|"}, "A *title*")
    assert text.startswith("# A \\*title\\*\n")
    assert "| what | \\<b\\>\\[x\\](y)\\| |" in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--case", "nobody"), exits.USAGE, "astronaut"),
        (("--cascade", "/nowhere"), exits.CONFIGURATION, "/nowhere"),
        (("--dtype", "fp8"), exits.USAGE, "bf16"),
        (("--real", "if-m"), exits.CONFIGURATION, "--device cpu"),
    ],
)
def test_what_cannot_be_verified_is_told_before_anything_starts(
    words: tuple[str, ...], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["verify", *words]) == code
    assert said in capfd.readouterr().err
