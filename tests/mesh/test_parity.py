"""The running mesh against diffusers' own pipelines: real processes, safetensors over ZeroMQ, equal in every bit after every stage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
from diffusers.utils.pil_utils import numpy_to_pil
from PIL import Image as pillow
from PIL import ImageDraw

from ifmesh import BadRequest, Image, Request, Settings, bags
from ifmesh.stage import Tensor
from tests.mesh.real import DRAWN, Real, cascade
from tests.services import oracle

pytestmark = pytest.mark.timeout(300)

FOX, OWL = "a red fox in the snow, oil on canvas", "  An OWL reading the newspaper\n"
ONE, TWO, UP = "stage_one", "stage_two", "upscaler"
FEW = {ONE: Settings(steps=3), TWO: Settings(steps=2), UP: Settings(steps=2)}
CASES = {
    **{f"{name}, seed {seed}": Request(p, seed) for name, p in (("fox", FOX), ("owl", OWL)) for seed in (0, 7, 2**63 - 1)},
    "negative": Request(FOX, 3, negative="Blurry, low quality", settings=FEW),
    "timesteps": Request(FOX, 4, settings={ONE: Settings(timesteps=(999, 711, 400, 37, 0)), TWO: Settings(timesteps=(998, 500, 12))}),
    "guidance": Request(FOX, 5, settings={s: Settings(steps=3, guidance=g) for s, g in ((ONE, 2.5), (TWO, 1.01), (UP, 15.0))}),
    "no guidance": Request(FOX, 6, negative="red", settings={s: Settings(steps=3, guidance=1.0) for s in (ONE, TWO, UP)}),
    "steps": Request(FOX, 8, settings={ONE: Settings(steps=11), TWO: Settings(steps=1), UP: Settings(steps=4)}),
    "noise levels": Request(FOX, 9, settings={**FEW, TWO: Settings(steps=2, noise_level=999), UP: Settings(steps=2, noise_level=0)}),
    "per stage": Request(FOX, 10, settings=FEW, seeding="per_stage"),
    "other size": Request(FOX, 11, settings=FEW, width=32, height=24),
    "stage two is all": Request(FOX, 12, settings=FEW, last_stage=TWO),
}

to_pil: Any = numpy_to_pil  # not typed


@pytest.fixture(scope="module")
def folder16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cascade 16 -> 64 -> 256."""
    return cascade(tmp_path_factory.getbasetemp(), 16)


@pytest.fixture(scope="module")
def pairs(folder16: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """Two workers for each stage."""
    with Real(tmp_path_factory.mktemp("pairs"), folder16, dict.fromkeys((*DRAWN, "guard"), 2)) as mesh:
        mesh.up()
        yield mesh


@pytest.fixture
def mesh(pairs: Real) -> Iterator[Real]:
    yield pairs
    pairs.show()


def compare(
    mesh: Real, folder: Path, request: Request, image: Image, source: pillow.Image | None = None, mask: pillow.Image | None = None
) -> None:
    """All that the mesh made of this request: the bags, and the pictures it published."""
    theirs = oracle.chain(
        folder,
        request.prompt,
        request.negative,
        request.seed,
        request.settings,
        task=request.task,
        source=source,
        mask=mask,
        seeding=request.seeding,
        width=request.width,
        height=request.height,
        last_stage=request.last_stage,
    )
    ours = mesh.drawn(image.job)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape)
        assert torch.equal(ours[name], theirs[name]), f"{name} differs by {(ours[name].double() - theirs[name].double()).abs().max():g}"
        assert theirs[name].isfinite().all()
        assert theirs[name].float().std() > 0.01, f"{name} is flat"
    assert image.reproducible
    assert not image.flagged
    assert [run.runs for run in image.timings] == [1] * len(image.timings)
    for stage, picture in image.stages.items():
        assert np.array_equal(np.asarray(picture.pil), published(folder, theirs[DRAWN[stage]])), f"{stage}: another picture was published"


def published(folder: Path, drawn: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """What diffusers makes of a picture for the world: 8 bits and the watermark.  drawn: [3, H, W] in -1..1, or uint8."""
    pixels = drawn.permute(1, 2, 0)
    if drawn.dtype == torch.uint8:
        picture = pillow.fromarray(pixels.numpy())
    else:
        [picture] = to_pil((pixels / 2 + 0.5).clamp(0, 1)[None].numpy())
    if picture.width * picture.height > 16 * 17:  # in a smaller one the mark would be less than a pixel wide
        marker = IFWatermarker.from_pretrained(folder / oracle.recipe(folder)[ONE]["repo"] / "watermarker")
        marker.apply_watermark([picture], min(picture.size))
    return np.asarray(picture)


@pytest.mark.parametrize("case", CASES)
def test_a_job_alone(mesh: Real, folder16: Path, case: str) -> None:
    compare(mesh, folder16, CASES[case], mesh.client.ask(CASES[case]).result())


def test_four_in_flight(mesh: Real, folder16: Path) -> None:
    """Beside each other, on two workers for each stage: both have worked, and no picture knows of it."""
    asked = [CASES[case] for case in ("fox, seed 7", "negative", "owl, seed 7", "steps")]
    jobs = [mesh.client.ask(request) for request in asked]
    images = [job.result() for job in jobs]
    for request, image in zip(asked, images, strict=True):
        compare(mesh, folder16, request, image)
    workers: Mapping[str, set[str]] = {s: {r.worker for i in images for r in i.timings if r.stage == s} for s in (ONE, TWO, UP)}
    assert workers == {stage: {f"{stage}-0", f"{stage}-1"} for stage in (ONE, TWO, UP)}


def picture(width: int, height: int) -> pillow.Image:
    return pillow.effect_mandelbrot((width, height), (-2.0, -1.5, 1.0, 1.5), 60).convert("RGB").transpose(pillow.Transpose.ROTATE_180)


def painted(width: int, height: int, mode: str = "L") -> pillow.Image:
    """A mask: white where to repaint."""
    mask = pillow.new("L", (width, height), 0)
    ImageDraw.Draw(mask).ellipse((width // 4, height // 8, width // 2, height // 2), fill=255)
    return mask.convert(mode)


TASKS: dict[str, dict[str, Any]] = {
    "vary": {"source": picture(512, 512)},
    "vary, wide, per stage": {"source": picture(768, 512), "seeding": "per_stage", "strength": 0.5, "settings": FEW},
    "vary, tall, noise 20": {"source": picture(500, 768), "settings": {UP: Settings(steps=2, noise_level=20)}, "negative": "blue"},
    "inpaint": {"source": picture(512, 768), "mask": painted(512, 768)},
    "inpaint, small RGB mask, 0.7": {"source": picture(768, 512), "mask": painted(96, 64, "RGB"), "strength": 0.7},
    "inpaint, to stage two": {"source": picture(512, 512), "mask": painted(256, 256), "size": 256, "settings": FEW},
}


@pytest.mark.parametrize("case", TASKS)
def test_a_task_with_a_source(mesh: Real, folder16: Path, case: str) -> None:
    wishes = TASKS[case]
    image = mesh.client.submit(FOX, seed=21, **wishes).result()
    assert image.request
    assert image.request.task == case[: len(image.request.task)]
    compare(mesh, folder16, image.request, image, wishes["source"], wishes.get("mask"))


def test_embeddings_and_a_generator_of_ones_own(mesh: Real, folder16: Path) -> None:
    """What `encode` gives draws what the encoder would have drawn; a generator's state goes on from where it is."""
    embeds = mesh.client.encode(FOX, "red")
    plain = mesh.client.generate(FOX, negative="red", seed=5, settings=FEW)
    again = mesh.client.generate(embeds=embeds, seed=5, settings=FEW)
    assert [run.stage for run in again.timings] == [ONE, TWO, UP, "guard"]
    generator = torch.Generator("cpu").manual_seed(5)
    third = mesh.client.generate(FOX, negative="red", generator=generator, settings=FEW)
    assert {name: p.data for name, p in plain.stages.items()} == {name: p.data for name, p in again.stages.items()}
    assert {name: p.data for name, p in plain.stages.items()} == {name: p.data for name, p in third.stages.items()}
    torch.randn(3, generator=generator)
    assert mesh.client.generate(FOX, negative="red", generator=generator, settings=FEW).data != plain.data


def test_a_picture_that_is_none_is_the_requests_fault(mesh: Real, folder16: Path) -> None:
    """A client that does not look at what it sends: the stage does, and only this job fails, once."""
    beside = mesh.client.submit(FOX, seed=22, settings=FEW)
    frame = bags.encode({"source": Tensor("U8", (5,), b"hello")})
    request = Request(FOX, 1, "vary", brings=("source",), upload=hashlib.sha256(frame).hexdigest())
    job = mesh.client.ask(request, upload=frame)
    with pytest.raises(BadRequest, match="PNG") as caught:
        job.result()
    assert caught.value.field == "source"
    assert sum("stage_one: begun on" in line for line in mesh.story(job.id)) == 1, "it was tried again"
    with pytest.raises(BadRequest, match="leaves no step") as caught:
        mesh.client.vary(picture(64, 64), FOX, strength=0.001)  # of the cascade's own steps, which the client does not know
    assert caught.value.field == "settings.stage_one.strength"
    compare(mesh, folder16, Request(FOX, 22, settings=FEW), beside.result())


@pytest.mark.slow
def test_true_geometry(tmp_path_factory: pytest.TempPathFactory) -> None:
    """64 -> 256 -> 1024, the built-in cascade itself."""
    folder = cascade(tmp_path_factory.getbasetemp(), 64)
    few = {ONE: Settings(steps=4), TWO: Settings(steps=2), UP: Settings(steps=1)}
    request = Request(FOX, 13, negative="blurry", settings=few)
    with Real(tmp_path_factory.mktemp("true"), folder) as mesh:
        mesh.up()
        image = mesh.client.ask(request).result()
        compare(mesh, folder, request, image)
        assert {stage: picture.size for stage, picture in image.stages.items()} == {ONE: (64, 64), TWO: (256, 256), UP: (1024, 1024)}
