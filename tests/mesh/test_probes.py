"""Probes over real sockets: by worker processes that compute meanwhile, with keys and without, and the report of `ifmesh bench links`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from ifmesh import AsyncClient, Client, Misconfigured, cli, identity
from ifmesh.bench.links import cell, matrix, middle, row
from ifmesh.protocol import Accepted, Probe, Probed
from ifmesh.request import Request
from tests.mesh.conftest import Make
from tests.mesh.kit import Mesh

SOME = ("encoder", "stage_one", "guard")
FOX = Request("a fox", 1, last_stage="stage_one")
SLOW = {"services.stage_one.options.steps": 400, "services.stage_one.options.step_ms": 50}
"""20 s: nobody waits for its end."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("calm"), SLOW) as mesh:
        mesh.all(SOME)
        yield mesh


def operator(mesh: Mesh) -> Client:
    return Client(state=mesh.state, identity=None if mesh.config.mesh.curve else False)


def good(probed: Probed, size: int = 0) -> None:
    assert probed.error == ""
    assert probed.arrived
    assert len(probed.trips) == 10
    assert all(trip > 0 for trip in probed.trips)
    assert probed.size == size
    assert (probed.seconds > 0) == (size > 0)


def test_from_each_to_each(calm: Mesh) -> None:
    with operator(calm) as client:
        good(client.probe("encoder-0", "stage_one-0", 100_000, 10), 900_000)
        good(client.probe("stage_one-0", "encoder-0"))  # no bag ever goes there
        good(client.probe("guard-0", "coordinator", 8 << 20, 3), 16 << 20)
        good(client.probe("coordinator", "guard-0", 1 << 20, 3), 2 << 20)
        assert "no service of the name 'nobody'" in client.probe("nobody", "guard-0").error
        assert "of at most" in client.probe("encoder-0", "guard-0", 1 << 40, 1).error


def test_from_a_coroutine(calm: Mesh) -> None:
    async def some() -> list[Probed]:
        async with AsyncClient(state=calm.state) as client:
            return await asyncio.gather(*(client.probe(*way) for way in (("encoder-0", "guard-0"), ("guard-0", "coordinator"))))

    for probed in asyncio.run(some()):
        good(probed)


def test_a_worker_that_computes_answers_and_its_job_goes_on(calm: Mesh) -> None:
    with operator(calm) as client:
        job = client.ask(FOX)
        for event in job.events(previews=False):
            if getattr(event, "stage", "") == "stage_one" and hasattr(event, "step"):
                break
        good(client.probe("encoder-0", "stage_one-0", 1 << 20, 8), 7 << 20)
        good(client.probe("stage_one-0", "guard-0"))
        assert [row.state for row in client.status().services if row.service == "stage_one-0"] == ["busy"], "it computes no more"
        job.cancel()


def test_clients_may_not(calm: Mesh) -> None:
    eve = calm.invite("eve")
    path = calm.folder / "eve.key"
    identity.write(path, eve)
    with Client(calm.config.control(), identity=path) as client, pytest.raises(Misconfigured, match="eve, client: links are probed for"):
        client.probe("encoder-0", "guard-0")
    with calm.speaker(eve) as speaker:  # who says it all the same is not heard
        speaker.send(Probe(1, "encoder-0", "guard-0"))
        speaker.submit("after", FOX)
        assert isinstance(speaker.hear(), Accepted)
    assert "Probe by eve, which is client" in calm.processes[0].log.read_text()


def test_without_keys_all_is_as_well(mesh: Make) -> None:
    one = mesh(mesh__curve="false")
    one.all(("encoder", "guard"))
    with operator(one) as client:
        good(client.probe("encoder-0", "guard-0", 1000, 5), 4000)
        good(client.probe("guard-0", "coordinator"))


# ---- ifmesh bench links


def test_the_report_of_the_links(calm: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--state", str(calm.state), "--size", "100000", "--count", "4"]
    assert cli.run(["bench", "links", "--json", "--all", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "links"
    assert {"machine", "versions", "configuration", "command", "at"} <= report.keys()
    assert len(report["links"]) == 4 * 3
    for link in report["links"]:
        assert link["transport"] == "ipc"
        assert link["bytes"] == 300_000
        assert link["mb_per_s"] > 0
        assert 0 < link["round_trip_ms"]["least"] <= link["round_trip_ms"]["p50"] <= link["round_trip_ms"]["most"]
    assert cli.run(["bench", "links", *flags]) == 0
    shown = capsys.readouterr().out
    assert "MB/s" in shown
    assert cli.run(["bench", "links", "--size", str(8 << 20), "--count", "1000"]) == 2


def test_the_matrix_has_a_cell_for_each_link() -> None:
    rows = [
        row("a", "b", Probed(1, True, "ipc://b", (0.001, 0.003, 0.002), 2_000_000, 0.01)),
        row("a", "c", Probed(2, True, "tcp://c:1", error="it arrives at c, whose answers do not come back to a")),
        row("b", "c", Probed(3, False, "tcp://c:1", error="no answer within 3 s")),
        row("b", "a", Probed(4, True, "tcp://a:1", (0.001, 0.002))),
    ]
    assert [cell(one) for one in rows] == ["200 MB/s, 2.00 ms", "-, -", "down", "-, 1.50 ms"]
    assert matrix(rows) == (["b", "c", "a"], [("a", ["200 MB/s, 2.00 ms", "-, -", ""]), ("b", ["", "down", "-, 1.50 ms"])])
    assert [middle([1.0]), middle([1.0, 2.0]), middle([1.0, 2.0, 9.0])] == [1.0, 1.5, 2.0]
