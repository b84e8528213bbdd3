"""Best of N, as users see it: candidates by Stage I alone, one of them to the end, the pixels of drawing it whole."""

from __future__ import annotations

import asyncio
import io
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from ifmesh import AsyncClient, BadRequest, Client, Image
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh

DRAWN = ("stage_one", "stage_two", "upscaler")


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (96, 64), colour).save(file, "PNG")
    return file.getvalue()


SOURCE, MASK = png((200, 40, 10)), png((255, 255, 255))
WAYS: dict[str, dict[str, Any]] = {
    "generate": {
        "negative": "a dog",
        "width": 96,
        "settings": {"stage_one": {"steps": 2}, "stage_two": {"steps": 3}, "upscaler": {"steps": 2}},
    },
    "generate, with a style": {"style": "in oil", "settings": {"stage_two": {"positive_mixer": 0.3}}},
    "generate, a seed for each stage": {"seeding": "per_stage"},
    "inpaint": {"source": SOURCE, "mask": MASK, "strength": 0.7},
}


def pictures(image: Image) -> dict[str, bytes]:
    return {stage: picture.data for stage, picture in image.stages.items()}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("calm")) as mesh:
        mesh.all()
        yield mesh


def client(mesh: Mesh) -> Client:
    return Client(state=str(mesh.state), timeout=LIMIT / 6)


@pytest.mark.parametrize("way", WAYS)
def test_the_best_of_several_is_what_drawing_it_whole_gives(calm: Mesh, way: str, tmp_path: Path) -> None:
    wishes = WAYS[way]
    with client(calm) as mesh:
        sketches = mesh.candidates("a fox", 3, seed=40, **wishes)
        assert [(image.seed, list(image.stages)) for image in sketches] == [(seed, ["stage_one"]) for seed in (40, 41, 42)]
        assert len({image.kept for image in sketches} | {""}) == 4
        best = mesh.proceed(sketches[1])
        whole = mesh.submit("a fox", seed=41, **wishes).result(LIMIT)
        assert pictures(best) == pictures(whole)
        assert list(pictures(best)) == list(DRAWN)
        assert (best.source, best.mask) == (whole.source, whole.mask)
        assert [run.stage for run in best.timings] == ["encoder", "stage_one", "stage_two", "upscaler", "guard"]
        assert best.request == whole.request
        files = [image.save(tmp_path / f"{number}.png").read_bytes() for number, image in enumerate((best, whole))]
        assert files[0] == files[1], "pixels, and what the file tells of them"
        steps = Counter(run.stage for image in (*sketches, best) for run in mesh.status(image.job).runs)
        assert {stage: steps[stage] for stage in ("encoder", *DRAWN)} == {"encoder": 3, "stage_one": 3, "stage_two": 1, "upscaler": 1}


def test_from_stage_to_stage_by_another_client(calm: Mesh) -> None:
    """Whoever finds the job by its id may go on, and again from there."""
    with client(calm) as mesh:
        job = mesh.submit("a fox", seed=7, size=64, keep=600).result(LIMIT).job
        whole = mesh.generate("a fox", seed=7)

    async def main() -> Image:
        async with AsyncClient(state=str(calm.state), timeout=LIMIT / 6) as mesh:
            first = await (await mesh.job(job)).result(LIMIT)
            second = await mesh.proceed(first, size=256, keep=600)
            assert list(second.stages) == ["stage_one", "stage_two"]
            [other] = await mesh.candidates("a fox", 1, seed=7)
            assert other.kept == first.kept, "the same is kept once"
            return await (await mesh.submit(continues=second)).result(LIMIT)

    assert pictures(asyncio.run(main())) == pictures(whole)


def test_a_picture_is_made_larger(calm: Mesh) -> None:
    with client(calm) as mesh:
        assert [run.stage for run in mesh.upscale(SOURCE, "a fox").timings] == ["encoder", "stage_two", "upscaler", "guard"]
        assert [run.stage for run in mesh.upscale(SOURCE, "a fox", alone=True).timings] == ["upscaler", "guard"]
        halfway = mesh.upscale(SOURCE, "a fox", seed=3, size=256, keep=600)
        assert pictures(mesh.proceed(halfway)) == pictures(mesh.upscale(SOURCE, "a fox", seed=3))


def test_what_is_kept_no_more_ends_at_once_and_the_rest_goes_on(mesh: Make) -> None:
    one = mesh()
    processes = one.all()
    with client(one) as before:
        [lost] = before.candidates("a fox", 1, seed=7, keep=0.001)
        [found] = before.candidates("a fox", 1, seed=8)
    processes["coordinator"].signal(signal.SIGKILL)
    processes["coordinator"].code()
    one.coordinator()
    one.wait_for(lambda: not (one.state / "uploads" / f"{lost.kept}.safetensors").exists())
    told = rf"^continues: '{lost.job}': the mesh keeps its bag no longer: draw it whole, with seed=7$"
    with client(one) as after:
        jobs = [after.submit(continues=image) for image in (lost, found)]
        with pytest.raises(BadRequest, match=told):
            jobs[0].result(LIMIT)
        assert list(jobs[1].result(LIMIT).stages) == list(DRAWN)

    async def main() -> None:
        async with AsyncClient(state=str(one.state), timeout=LIMIT / 6) as other:
            with pytest.raises(BadRequest, match=told):
                await other.proceed(lost, timeout=LIMIT)

    asyncio.run(main())
