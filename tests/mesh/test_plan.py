"""What is planned for a CPU, beside what a mesh of real workers takes there: memory of each process, and pictures a second."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from ifmesh_services import calibration
from ifmesh_services.nano import builder

from ifmesh import footprint, planner
from ifmesh.devices import Device
from ifmesh.request import STAGES, Settings
from tests.mesh.real import Real

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CORES = 2
CPU = Device("cpu", 15 * 10**9, cores=CORES)
WIDE: dict[str, dict[str, Any]] = {  # 100 to 430 MB of weights a stage
    "t5": {"d_ff": 32768, "num_layers": 4},
    "one": {"block_out_channels": [128, 256, 384, 512], "cross_attention_dim": 512, "layers_per_block": 2},
    "two": {"block_out_channels": [64, 128, 256, 320, 384], "cross_attention_dim": 384},
    "x4": {"block_out_channels": [64, 128, 256, 512]},
}
PICTURES = 12


@pytest.mark.parametrize(("base", "other"), [(64, {}), (16, WIDE)], ids=["built-in", "wide"])
def test_the_memory_of_every_worker_is_foretold(base: int, other: dict[str, Any], tmp_path: Path) -> None:
    """Within 10 %: the peak of each process, after two pictures."""
    builder.build(tmp_path / "cascade", base=base, other=other)
    places = planner.plan(footprint.of(tmp_path / "cascade"), (CPU,)).places
    few = {stage: Settings(steps=2) for stage in ("stage_one", "stage_two", "upscaler")}
    with Real(tmp_path / "mesh", tmp_path / "cascade") as mesh:
        mesh.up()
        for seed in (1, 2):
            mesh.client.generate("a fox", seed=seed, settings=few)
        peaks = {place.stage: peak(mesh.pids()[f"{place.stage}-0"]) for place in places}
    for place in places:
        print(f"{place.stage}: planned {place.ram / 1e6:.0f} MB, measured {peaks[place.stage] / 1e6:.0f} MB")
    assert {place.stage: place.ram / peaks[place.stage] for place in places} == {stage: pytest.approx(1, abs=0.1) for stage in STAGES}


def test_pictures_a_second_are_foretold(tmp_path: Path) -> None:
    """Within 15 %: by what a mesh's stages take of the processor for a picture, since other programs are at work here, too.

    They are why it is calibrated before and after: on shared cores even a second of the processor is not always worth the same.
    """
    builder.build(tmp_path / "cascade", base=16)
    seconds = calibration.measured(str(tmp_path / "cascade"), print)
    plan = planner.plan(footprint.of(tmp_path / "cascade"), (CPU,), seconds)
    copies = {place.stage: place.copies for place in plan.places}
    with Real(tmp_path / "mesh", tmp_path / "cascade", copies) as mesh:
        mesh.up()
        pids = mesh.pids()
        drawn(mesh, 4)
        before = {service: spent(pid) for service, pid in pids.items()}
        drawn(mesh, PICTURES)
        after = {service: spent(pid) for service, pid in pids.items()}
    again = calibration.measured(str(tmp_path / "cascade"), print)
    seconds = {stage: (seconds[stage] + again[stage]) / 2 for stage in STAGES}
    plan = planner.plan(footprint.of(tmp_path / "cascade"), (CPU,), seconds)
    took = {stage: sum(after[name] - before[name] for name in pids if name.rpartition("-")[0] == stage) / PICTURES for stage in STAGES}
    rate = 1 / max(sum(took.values()) / CORES, *(took[stage] / copies[stage] for stage in STAGES))
    for stage in STAGES:
        print(f"{stage} x {copies[stage]}: planned {seconds[stage]:.3f} s, measured {took[stage]:.3f} s of the processor for a picture")
    print(f"planned {plan.rate:.3f} images/s, measured {rate:.3f}")
    assert plan.rate == pytest.approx(rate, rel=0.15)


def drawn(mesh: Real, number: int) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: mesh.client.generate("a fox", seed=seed), range(number)))


def spent(pid: int) -> float:
    """Seconds of the thread that computes, the busiest; the other goes on beating, however long others keep the cores."""
    return max(float(thread.user_time + thread.system_time) for thread in psutil.Process(pid).threads())


def peak(pid: int) -> int:
    """Bytes that were resident at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
