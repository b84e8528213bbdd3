"""Each command once, small: real meshes, real clients, real signals.  No time is judged here, but where a stage's own sleep sets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ifmesh import exits

ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("IFMESH")}
LIMIT = 150.0


def bench(*words: str | Path, code: int = exits.OK) -> str:
    """Its stdout."""
    command = [sys.executable, "-m", "ifmesh", "bench", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=ENVIRON, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_mesh_is_told_beside_its_floor() -> None:
    report = json.loads(
        bench("mesh", "--transport", "ipc", "--in-flight", "1,3", "--seconds", "0.2", "--rounds", "1", "--least", "6",
              "--durability", "full", "--json")
    )  # fmt: skip
    for name in ("floor", "mesh", "chain", "guarded"):
        for row in (report[name]["ipc"]["1"], report[name]["ipc"]["3"]):
            assert 0 < row["p50_ms"] <= row["p95_ms"]
            assert row["requests_per_s"] > 0
    times = report["ratios"]["ipc"]["1"]["p50"]
    assert times == pytest.approx(report["mesh"]["ipc"]["1"]["p50_ms"] / report["floor"]["ipc"]["1"]["p50_ms"], abs=0.001)
    assert report["asked"]["bytes"]["upscaler"] > 3_145_728
    assert report["durable_write_ms"]["4096"]["p50_ms"] > 0
    assert report["command"].startswith("ifmesh bench mesh")
    assert report["interrupted"] is False


def test_an_open_loop_does_not_omit_what_it_waited_for(tmp_path: Path) -> None:
    """24 a second for 1.5 s into a stage that takes 100 ms: the last of them wait long, and nobody slows down for them."""
    bench("load", "--sleep", "stage_one=100", "--rate", "24", "--arrivals", "constant", "--seconds", "1.5", "--warm", "0", "--clients", "2",
          "--slo", "p50=10ms", "--unloaded", "1", "--out", tmp_path)  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    (run,) = report["runs"]
    assert run["requests"] == {"finished": 36}
    assert run["latency_ms"]["p99_ms"] > 1500
    assert run["bottleneck"] == "stage_one"
    assert 5 < run["bound_images_per_s"] <= 10
    assert run["slo"]["met"] is False
    assert {row["worker"] for row in run["workers"]} == {
        f"{stage}-0" for stage in ("encoder", "stage_one", "stage_two", "upscaler", "guard")
    }
    hops = {hop["into"]: hop["bytes"] for hop in report["unloaded"]["hops"]}
    assert hops["stage_one"] > 1_261_568
    page = (tmp_path / "report.html").read_text()
    assert "stage_one" in page
    assert json.loads(bench("compare", tmp_path / "report.json", tmp_path / "report.json", "--json"))["changes"]


@pytest.mark.slow
def test_a_full_mesh_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    bench("load", "--sleep", "stage_one=300", "--rate", "20", "--arrivals", "constant", "--seconds", "1", "--warm", "0", "--unloaded", "0",
          "--no-previews", "--set", "mesh.max_jobs=5", "--out", tmp_path)  # fmt: skip
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["requests"]["finished"] >= 5
    assert run["requests"]["refused"] >= 5
    assert run["requests"].keys() == {"finished", "refused"}
    assert run["retry_after_s"] > 0


def test_a_sweep_goes_from_point_to_point() -> None:
    report: dict[str, Any] = json.loads(
        bench("sweep", "--sleep", "stage_one=300", "--in-flight", "1,2", "--seconds", "2", "--warm", "0.3", "--unloaded", "0", "--json")
    )
    assert [point["value"] for point in report["points"]] == [1, 2]
    assert report["points"][0]["times"] == 1.0
    assert {point["bottleneck"] for point in report["points"]} == {"stage_one"}


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ifmesh", "bench", "load", "--sleep", "1", "--in-flight", "2", "--seconds", "1", "--warm", "0",
               "--repeat", "1000", "--unloaded", "0", "--out", str(tmp_path)]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRON) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "run 2 of 1000" in line:
                    break
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode == exits.OK
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["interrupted"] is True
    assert report["runs"][0]["images_per_s"] > 0


@pytest.mark.slow
def test_peers_stand_beside_the_mesh() -> None:
    pytest.importorskip("mosec")
    report = json.loads(bench("peers", "--peer", "mosec", "--many", "4", "--seconds", "0.3", "--rounds", "1", "--least", "8", "--json"))
    assert [row["name"] for row in report["rows"]] == ["ifmesh", "bare chain, relayed", "mosec"]
    assert all(row["p50_ms"] > 0 and row["requests_per_s"] > 0 for row in report["rows"])
    assert report["versions"]["mosec"]


@pytest.mark.slow
def test_diffusers_alone_stands_beside_the_mesh() -> None:
    report = json.loads(
        bench("baseline", "--size", "64", "--threads", "1", "--balance", "0.1", "--seconds", "2", "--warm", "1", "--repeat", "1", "--json")
    )
    alone, mesh = report["rows"]
    assert (alone["name"], mesh["name"]) == ("diffusers, one process, 1 thread", "ifmesh")
    assert alone["ifmesh_times"] == pytest.approx(mesh["images_per_s"] / alone["images_per_s"])
    assert report["asked"]["steps"]["stage_one"] >= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("load", "--slo", "60"), "p95=60s"),
        (("load", "--sleep", "stage_9=1"), "STAGE=MS"),
        (("sweep", "--replicas", "nobody=1,2"), "STAGE=N,N"),
        (("mesh", "--in-flight", "0"), "1 to 4096"),
    ],
)
def test_wrong_usage_says_what_would_be_right(words: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    from ifmesh import cli

    assert cli.run(["bench", *words]) == exits.USAGE
    assert said in capfd.readouterr().err


def test_compare_wants_two_reports_of_a_kind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from ifmesh import cli

    for name, text in (("a", '{"kind": "load"}'), ("b", '{"kind": "mesh"}'), ("c", "no"), ("d", "{}")):
        (tmp_path / name).write_text(text)
    for other, said in (("b", "nothing to compare"), ("c", "no JSON"), ("d", "no report"), ("a", "not whole")):
        assert cli.run(["bench", "compare", str(tmp_path / "a"), str(tmp_path / other)]) == exits.FAILURE
        assert said in capfd.readouterr().err
