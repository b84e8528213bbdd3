"""What is planned for the published cascades, against the facts; what is said when nothing fits; saved plans are what is planned."""

from __future__ import annotations

import os
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from ifmesh import checks, config, devices, exits, found, planner, presets
from ifmesh.cli import run
from ifmesh.demand import PUBLISHED, Demand
from ifmesh.devices import GB, Device
from ifmesh.errors import Misconfigured
from ifmesh.planner import Place, Plan
from ifmesh.request import STAGES


def planned(cascade: str, text: str) -> tuple[Plan, dict[str, Place]]:
    made = planner.plan(PUBLISHED[cascade], devices.read(text))
    return made, {place.stage: place for place in made.places}


def test_a_free_t4_takes_turns_with_the_encoder_in_8_bits() -> None:
    """15 GB of card and 13 of RAM: the machine that the publications were written for."""
    plan, by = planned("if-xl", "t4,cpu:13GB")
    assert plan.fits
    assert [by[stage].form for stage in STAGES] == ["8bit", "fp16", "fp16", "fp16", "fp32"], "a T4 has no bf16; the guard's checker decides"
    assert [by[stage].device for stage in STAGES] == ["cuda:0"] * 4 + ["cpu"]
    assert all(by[stage].swap for stage in STAGES[:4])
    assert not by["guard"].swap
    assert not any(place.disk or place.tiled for place in plan.places)
    assert max(by[stage].weights + by[stage].computed for stage in STAGES[:4]) <= plan.budgets["cuda:0"] < 14 * GB
    assert by["encoder"].weights == pytest.approx(7.92e9, rel=0.01), "the hub's own file"
    assert by["stage_one"].weights == pytest.approx(8.61e9, rel=0.01)


def test_an_a100_keeps_all_of_it() -> None:
    plan, by = planned("if-xl", "a100-40,cpu:80GB")
    assert plan.fits
    assert not plan.budgets
    assert by["encoder"].form == "bf16"
    assert sum(place.weights for place in plan.places) == pytest.approx(23.0e9 + 0.6e9, rel=0.02), "all in half precision, but the checker"


def test_more_memory_is_never_worse() -> None:
    worth = [planned("if-xl", f"t4:{size}GB,cpu:{ram}GB")[0] for size, ram in ((6, 8), (10, 13), (16, 13), (24, 32), (40, 64), (80, 128))]
    assert [plan.fits for plan in worth] == [False, *[True] * 5]
    assert all(a.worth <= b.worth for a, b in pairwise(worth[1:]))


def test_a_small_card_reads_layers_from_files_before_it_gives_up() -> None:
    plan, by = planned("if-xl", "rtx-3060:7GB,cpu:32GB")
    assert plan.fits
    assert by["stage_one"].disk


@pytest.mark.parametrize("cascade", PUBLISHED)
def test_a_plan_never_promises_more_than_there_is(cascade: str) -> None:
    for text in ("t4,cpu:13GB", "t4,t4,cpu:30GB", "rtx-3090,cpu:32GB", "h200,cpu:200GB", "cpu:64GB", "cpu:16GB", "rtx-4090,h100,cpu:64GB"):
        plan, _ = planned(cascade, text)
        assert plan.fits == all(plan.used[name] <= had for name, had in plan.had.items())
        for place in plan.places:
            assert place.swap == (place.device in plan.budgets)
            if place.swap and plan.fits:
                assert place.weights + place.computed <= plan.budgets[place.device]


def test_idle_cores_get_copies_of_the_slowest_stage() -> None:
    small = {stage: Demand(1_000_000, {}, 0) for stage in STAGES}
    seconds = {"encoder": 0.1, "stage_one": 1.0, "stage_two": 4.0, "upscaler": 1.0, "guard": 0.1}
    plan = planner.plan(small, (devices.Device("cpu", 64 * GB, cores=6),), seconds)
    assert {place.stage: place.copies for place in plan.places} == {**dict.fromkeys(STAGES, 1), "stage_two": 4}
    assert plan.rate == pytest.approx(6 / 6.2)
    alone = planner.plan(small, (devices.Device("cpu", 64 * GB, cores=1),), seconds)
    assert {place.copies for place in alone.places} == {1}
    assert alone.rate == pytest.approx(1 / 6.2)


def test_devices_are_read() -> None:
    t4, cpu = devices.read("T4, cpu:13GiB")
    assert (t4.capability, t4.bf16, cpu.memory, cpu.card) == ((7, 5), False, 13 << 30, False)
    assert devices.read("a100-40:20GB")[0].memory == 20 * GB
    for text, words in (("a100", "a100-40"), ("cpu", "how much RAM"), ("cpu:8GB,cpu:8GB", "one RAM"), ("t4:big", "13GB"), ("", "none")):
        with pytest.raises(Misconfigured, match=words):
            devices.read(text)


def test_the_cards_of_this_machine_are_asked_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'Tesla T4, 15360, 7.5'\necho 'NVIDIA A100-SXM4-40GB, 40960, 8.0'\necho 'Unheard Of, 8192, 12.0'\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found.cards() == (), "it cannot be run"
    driver.chmod(0o755)
    t4, a100, other = found.cards()
    assert (t4.memory, t4.bf16, t4.tflops) == (15360 << 20, False, devices.KNOWN["t4"].tflops)
    assert (a100.capability, a100.tflops) == ((8, 0), devices.KNOWN["a100-40"].tflops)
    assert (other.memory, other.bf16, other.tflops) == (8192 << 20, True, 0.0)
    assert found.devices()[-1].memory == found.ram() > 10**9


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("IFMESH_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.usefixtures("alone")
def test_what_does_not_fit_is_told_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--devices", "rtx-3060:6GB,cpu:8GB", "--cascade", "if-xl"]) == exits.CONFIGURATION
    said = " ".join(capsys.readouterr().err.split())
    assert "if-xl fits in no way: cuda:0 lacks 1.7 GB of 7.7 GB, cpu lacks" in said
    proposed = said.rpartition("--devices ")[2].split()[0]
    assert run(["plan", "--devices", proposed, "--cascade", "if-xl"]) == exits.OK
    assert run(["plan", "--devices", "t4", "--cascade", "if-xl"]) == exits.CONFIGURATION
    assert "t4,cpu:16GB" in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_the_plan_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--devices", "t4,cpu:13GB", "--cascade", "if-xl"]) == exits.OK
    said = capsys.readouterr().out
    for words in (
        "fp16, 8bit",
        "swap",
        "resident",
        "take turns in 13.8 GB",
        "images/s, reckoned",
        "the bottleneck is cuda:0, most of it upscaler",
    ):
        assert words in said
    assert run(["plan", "--devices", "a100-40,cpu:80GB", "--cascade", "if-m"]) == exits.OK
    assert "about " in capsys.readouterr().out, "nobody knows IF-II-M"


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", presets.NAMES)
def test_a_preset_is_what_is_planned_and_a_configuration(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text, cascade = presets.NAMES[name]
    assert run(["plan", "--devices", text, "--cascade", cascade, "--emit", "toml"]) == exits.OK
    emitted = capsys.readouterr().out
    assert emitted == presets.path(name).read_text(), "ifmesh plan --emit toml > ifmesh/plans/NAME.toml"
    tree = tomllib.loads(emitted)
    assert set(tree["services"]) == set(STAGES)
    read = config.read(presets.path(name), {}, {})
    assert read.cascade.path == cascade
    assert read.services["encoder"].dtype == ("bf16" if name == "a100" else "fp16")
    assert read.services["encoder"].residency == ("resident" if name == "a100" else "swap")


def test_what_is_written_of_a_plan_has_room_for_each_that_takes_turns() -> None:
    """Down to the last byte, where the largest has just its own place: sizes are rounded when they are written."""
    tight = 0
    for size in range(10, 30):
        first = planner.plan(PUBLISHED["if-m"], (Device("cpu", size * GB, cores=2),))
        for memory in (size * GB, first.used["cpu"]) if first.fits and first.budgets else ():
            plan = planner.plan(PUBLISHED["if-m"], (Device("cpu", memory, cores=2),))
            tree = tomllib.loads(presets.toml(plan, "if-m", "here"))
            needs = [checks.size("needs", table["needs"]) for table in tree["services"].values() if "needs" in table]
            assert max(needs) <= checks.size("memory", tree["memory"]["cpu"])
            tight += plan.budgets["cpu"] < max(needs)
    assert tight, "it never mattered"


@pytest.mark.usefixtures("alone")
def test_what_does_not_go_together_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["up", "--preset", "t4", "--config", str(tmp_path / "other.toml")]) == exits.USAGE
    assert "--preset: not with --config" in capsys.readouterr().err
    assert run(["plan", "--devices", "t4,cpu:13GB", "--cascade", "if-xl", "--calibrate"]) == exits.CONFIGURATION
    assert "measures on the CPU" in capsys.readouterr().err
    assert run(["plan", "--set", "cascade.toy=true"]) == exits.CONFIGURATION
    assert run(["plan", "--devices", "cpu:8GB", "--cascade", str(tmp_path)]) == exits.CONFIGURATION
    assert "no cascade whose files can be read here" in capsys.readouterr().err
