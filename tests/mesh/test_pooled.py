"""Pooled mode through a running mesh: requests join and leave between the steps of others, and what is promised of their bits holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ifmesh import Request, Settings
from ifmesh.protocol import Books
from tests.mesh.real import Real, cascade
from tests.services import oracle

pytestmark = pytest.mark.timeout(300)

ONE, TWO = "stage_one", "stage_two"
STAGES = ("encoder", ONE, TWO, "guard")
POOLED: dict[str, str | int] = {
    f"services.{ONE}.options.mode": "pooled",
    f"services.{TWO}.options.mode": "pooled",
    f"services.{TWO}.options.rows": 4,
}
"""Stage I in calls of as many rows as there are, Stage II in calls of four: two guided requests, or one of each kind and a dummy."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cascade 16 -> 64."""
    return cascade(tmp_path_factory.getbasetemp(), 16)


@pytest.fixture(scope="module")
def mesh(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with Real(tmp_path_factory.mktemp("pooled"), folder, stages=STAGES, settings=POOLED) as mesh:
        mesh.up()
        yield mesh
        mesh.show()


def request(seed: int, one: int, two: int, guidance: float = 3.0) -> Request:
    """So many steps in Stage I and II.  guidance: in Stage II."""
    settings = {ONE: Settings(steps=one, guidance=2.0 + seed), TWO: Settings(steps=two, guidance=guidance)}
    return Request("a red fox in the snow", seed, negative="blurry" * (seed % 2), settings=settings, last_stage=TWO)


def stepping(books: Books, stage: str) -> int:
    """Jobs that are in the middle of this stage: more than one only where there are slots for them."""
    return sum(row.stage == stage and 0 < row.step < row.steps for row in books.jobs)


def test_four_at_once_have_the_bits_of_exact(mesh: Real, folder: Path) -> None:
    """All guided, on a CPU.  They begin and end at different ticks; slots are as many as pooled has by default."""
    asked = [request(seed, 60 - 10 * seed, 4 + seed) for seed in range(4)]
    jobs = [mesh.client.ask(one) for one in asked]
    mesh.when(lambda books: stepping(books, ONE) == 4)
    for one, job in zip(asked, jobs, strict=True):
        image = job.result()
        theirs = oracle.chain(folder, one.prompt, one.negative, one.seed, one.settings, last_stage=TWO)
        ours = mesh.drawn(job.id)
        assert {name for name in theirs if torch.equal(ours[name], theirs[name])} == {"embeds", "image64", "image256"}
        assert [run.runs for run in image.timings] == [1] * len(STAGES)
        assert not image.reproducible, "Stage I has no fixed rows: its class promises nothing"


@pytest.mark.slow  # the pool alone: tests/services/test_pool_rows.py
def test_with_fixed_rows_the_neighbours_change_nothing(mesh: Real) -> None:
    """Stage II of a request without guidance there: not the bits of exact, but always the same."""
    plain = request(5, 2, 40, guidance=1.0)
    alone = mesh.client.ask(plain).result()
    neighbours = [mesh.client.ask(request(seed, 2, 60, guidance=1.0 + seed % 2)) for seed in range(6, 9)]
    mesh.when(lambda books: stepping(books, TWO) >= 2)
    among = mesh.client.ask(plain)
    mesh.when(lambda books: stepping(books, TWO) >= 3)
    among.result()
    for job in neighbours:
        job.result()
    assert mesh.kept(among.id) == mesh.kept(alone.job)


def test_it_is_said_which_mode_runs(mesh: Real) -> None:
    told = mesh.ifmesh("ps")
    beside = "guided requests keep exact's bits in fp32 on a CPU; others may differ"
    lines = [
        "encoder-0, guard-0: exact, one at a time: always the same bits",
        f"{ONE}-0: pooled, up to 8 at once: {beside} in the last bits, by what runs beside them",
        f"{TWO}-0: pooled, up to 8 at once: {beside} from exact in the last bits, always alike; every call costs 4 rows",
    ]
    assert [line for line in told.splitlines() if line in lines] == lines
    assert "no worker for upscaler (copies = 0)" in mesh.said, "up is ready without the stages that it was told not to run"
    assert all(line in mesh.said for line in lines)
