"""`ifmesh doctor` and `ifmesh bench links` over hosts: what only a network can break is named."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifmesh import cli, config, identity
from ifmesh.cli_doctor import findings
from ifmesh.doctor.finding import Finding
from tests.hosts.conftest import why_not
from tests.hosts.kit import Hosts, Process
from tests.hosts.mesh import Mesh, ready

PLACES = {"a": ("encoder",), "b": ("stage_one",), "c": ("guard",)}
ELSEWHERE = "10.99.0.1"
"""An address that a host has, and no other host finds."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    if why_not():
        pytest.skip(why_not())
    with Hosts(tmp_path_factory.mktemp("town")) as hosts:
        hosts.add("hub", "client", "lost", *PLACES)
        mesh = Mesh(hosts)
        mesh.up(PLACES)
        yield mesh


@pytest.fixture
def mesh(shared: Mesh) -> Iterator[Mesh]:
    yield shared
    shared.hosts.heal()


@pytest.fixture
def operator(shared: Mesh, tmp_path: Path) -> dict[str, object]:
    """Who asks, from the client's host: overrides of a configuration."""
    identity.write(tmp_path / "operator.key", shared.invite("ops", "operator"))
    told = {"mesh.coordinator": shared.url, "mesh.identity": str(tmp_path / "operator.key"), "mesh.state": str(tmp_path)}
    return {**told, "cascade.toy": True}


def links(mesh: Mesh, operator: dict[str, object]) -> tuple[set[str], dict[str, Finding]]:
    """Those that are well, and those that are not."""
    with mesh.hosts["client"].network():
        found = [finding for finding in findings(config.read(None, {}, operator)) if "->" in finding.hop and "client" not in finding.hop]
    return {finding.hop for finding in found if finding.ok}, {finding.hop: finding for finding in found if not finding.ok}


def stray(mesh: Mesh, address: str) -> Process:
    """A worker on the host "lost" that has the others look for it there."""
    host = mesh.hosts["lost"]
    if address == ELSEWHERE:
        host.run("ip", "address", "add", f"{ELSEWHERE}/32", "dev", "lo")
    identity.write(host.files / "run/stray.key", mesh.invite("stray", "worker:stage_one"))
    told = {**mesh.settings, "mesh.identity": "/run/stray.key", "mesh.address": address}
    flags = [part for key, value in told.items() for part in ("--set", f"{key}={value}")]
    return host.start("stray", sys.executable, "-m", "ifmesh", "worker", "stage_one", "--name", "stray", "--tied", *flags)


def test_all_is_well_over_tcp(mesh: Mesh, operator: dict[str, object]) -> None:
    well, broken = links(mesh, operator)
    assert broken == {}
    assert {"coordinator -> encoder-a", "encoder-a -> stage_one-b", "stage_one-b -> guard-c", "guard-c -> coordinator"} <= well


@pytest.mark.parametrize("both", [True, pytest.param(False, marks=pytest.mark.matrix)])
def test_a_link_that_is_down(mesh: Mesh, operator: dict[str, object], both: bool) -> None:
    """Between two workers, for frames of both directions or of one; each of them is well, and so is the way of each to all others."""
    mesh.hosts.blackhole("a", "b", both)
    well, broken = links(mesh, operator)
    assert list(broken) == ["encoder-a -> stage_one-b"]
    (finding,) = broken.values()
    assert "the link is down" in finding.said
    assert f"tcp://{mesh.hosts['b'].address}:" in finding.said
    assert "between the hosts of encoder-a and stage_one-b: cable, route, firewall" in finding.remedy
    assert {"coordinator -> stage_one-b", "encoder-a -> coordinator", "stage_one-b -> guard-c"} <= well


@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param(ELSEWHERE, marks=pytest.mark.matrix)])
def test_a_wrong_address_advertised(mesh: Mesh, operator: dict[str, object], address: str) -> None:
    process = stray(mesh, address)
    try:
        with mesh.client() as client:
            ready(client, "stray")
        well, broken = links(mesh, operator)
        process.signal(signal.SIGTERM)
        assert process.code() == 0
    finally:
        process.kill()
    assert set(broken) == {"coordinator -> stray", "encoder-a -> stray"}
    for finding in broken.values():
        assert "the wrong address" in finding.said
        assert f"tcp://{address}:" in finding.said
        assert finding.remedy.startswith("on the host of stray: say there by which of its addresses the others reach it (mesh.address)")
    assert {"stray -> guard-c", "stray -> coordinator"} <= well, "it reaches the others, and that counts"


@pytest.mark.matrix
def test_the_bench_of_links_says_what_is_down(mesh: Mesh, operator: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    mesh.hosts.blackhole("b", "c")
    flags = [part for key, value in operator.items() for part in ("--set", f"{key}={str(value).lower() if value is True else value}")]
    with mesh.hosts["client"].network():
        assert cli.run(["bench", "links", "--json", "--size", "10000", "--count", "5", *flags]) == 1
    rows = {(row["source"], row["target"]): row for row in json.loads(capsys.readouterr().out)["links"]}
    down = rows.pop(("stage_one-b", "guard-c"))
    assert not down["arrived"]
    assert down["mb_per_s"] is down["round_trip_ms"] is None
    assert all(row["transport"] == "tcp" and row["mb_per_s"] > 0 and row["round_trip_ms"]["p50"] > 0 for row in rows.values())
