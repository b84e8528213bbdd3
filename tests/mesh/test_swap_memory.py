"""A cascade of 1.4 GB of weights in a mesh that may not have them at once: the same pixels, and no more memory than there is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ifmesh import cli, exits
from ifmesh.bench.tables import flat
from tests.mesh.real import Real
from tests.mesh.swapping import BUDGET, HEAVY, SWAP, Peak, cascade, limited, loads, pixels, requests, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SPARE = 350_000_000
"""Bytes beside the processes and the budget: what is computed with."""
PLANNED = 3_300_000_000
"""Bytes: all of a machine that the plan is for.  Resident they take more."""


def test_what_does_not_fit_is_served_by_turns(tmp_path: Path) -> None:
    weights, asked = cascade(tmp_path), requests(16)
    with Real(tmp_path / "idle", weights, settings=SWAP) as mesh, Peak(mesh) as idle:
        mesh.up()
    with Real(tmp_path / "resident", weights) as mesh, Peak(mesh) as resident:
        mesh.up()
        right = pixels(served(mesh, asked))
    limit = idle.bytes + BUDGET + SPARE
    assert resident.bytes > limit, f"{resident.bytes} bytes fit into {limit}: this proves nothing"
    with limited(limit) as how, Real(tmp_path / "swap", weights, settings=SWAP) as mesh:
        with Peak(mesh) as swapped:
            mesh.up()
            assert pixels(served(mesh, asked)) == right
        told = loads(mesh)
    print(
        f"idle {idle.bytes / 1e6:.0f} MB, resident {resident.bytes / 1e6:.0f} MB, in swap {swapped.bytes / 1e6:.0f} MB of {limit / 1e6:.0f}"
    )
    print(f"limited by {how or 'nothing but the measurement'}; loads of 16 requests: {told}")
    assert swapped.bytes <= limit
    assert all(told[stage] <= 2 for stage in HEAVY), told


def test_what_is_planned_for_less_memory_does_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The written plan has in its `needs` what is computed with, too."""
    weights = cascade(tmp_path)
    assert cli.run(["plan", "--devices", f"cpu:{PLANNED / 1e9:g}GB", "--cascade", str(weights), "--emit", "toml"]) == exits.OK
    planned = tomllib.loads(capsys.readouterr().out)
    assert {stage for stage in HEAVY if planned["services"][stage]["residency"] == "swap"} == set(HEAVY)
    settings = {key: str(value) for key, value in flat(planned)}
    with limited(PLANNED) as how, Real(tmp_path / "planned", weights, settings=settings) as mesh, Peak(mesh) as peak:
        mesh.up()
        served(mesh, requests(8))
        told = loads(mesh)
    print(
        f"planned for {PLANNED / 1e6:.0f} MB, taken {peak.bytes / 1e6:.0f} MB; limited by {how or 'nothing'}; loads of 8 requests: {told}"
    )
    assert peak.bytes <= PLANNED
