"""Our stages, chained as in the mesh: each gets only what the cascade declares, and every bag travels as bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.utils.loading_utils import load_image
from ifmesh_services.encoder import Encoder
from ifmesh_services.stage_one import StageOne
from ifmesh_services.stage_two import StageTwo
from ifmesh_services.tensors import to_torch
from ifmesh_services.upscaler import Upscaler
from PIL import Image, ImageOps

from ifmesh import bags
from ifmesh.cascade import BROUGHT, IF
from ifmesh.request import Request
from ifmesh.stage import Bag, Setup, Stage, Tensor
from tests.services import oracle

KINDS: dict[str, Callable[[], Stage]] = {"encoder": Encoder, "stage_one": StageOne, "stage_two": StageTwo, "upscaler": Upscaler}


def loaded(folder: Path, dtype: str = "fp32") -> dict[str, Stage]:
    stages: dict[str, Stage] = {name: kind() for name, kind in KINDS.items()}
    for stage in stages.values():
        stage.load(Setup(cascade=str(folder), dtype=dtype))
    return stages


def run(stage: Stage, job: str, request: Request, bag: Bag) -> Bag:
    """One job through one stage, and what each step says checked."""
    steps = stage.admit(job, request, bag)
    for taken in range(1, steps + 2):  # one more for the upscaler's decode
        [advance] = stage.step()
        assert (advance.job, advance.step, advance.steps) == (job, min(taken, steps), steps)
        if advance.output is not None:
            assert taken >= steps
            assert not list(stage.step())
            return advance.output
    raise AssertionError("steps without end")


def file(data: bytes) -> Tensor:
    """A picture file, as it is uploaded."""
    return Tensor("U8", (len(data),), data)


def bringing(request: Request, brought: Bag) -> Request:
    """The request with an upload, as the client says it, and with settings for the stages on its way alone."""
    names = tuple(name for name in BROUGHT if name in brought)
    digest = hashlib.sha256(bags.encode(brought)).hexdigest() if names else ""
    settings = {stage: said for stage, said in request.settings.items() if stage in IF.route(request)}
    return replace(request, brings=names, upload=digest, settings=settings)


def passed(stages: Mapping[str, Stage], request: Request, brought: Bag | None = None) -> dict[str, Tensor]:
    """Every blob that the stages gave, by name; of rng the last."""
    IF.check(request)
    given: dict[str, Tensor] = {}
    frame = bags.encode(brought or {})
    for name in (stage for stage in IF.route(request) if stage != "guard"):
        arrived = bags.decode(frame, IF.enters(request, name))
        output = run(stages[name], "job", request, arrived)
        assert set(output) == {b.name for b in IF[name].gives(request)}
        given |= output
        rides = {b.name for b in IF.carries(request, name)}
        frame = bags.encode({key: value for key, value in {**arrived, **output}.items() if key in rides})
    return given


def drawn(stages: Mapping[str, Stage], request: Request, brought: Bag | None = None) -> dict[str, torch.Tensor]:
    """Embeddings and pictures."""
    return {name: to_torch(blob) for name, blob in passed(stages, request, brought).items() if name not in ("rng", "tokens")}


def assert_equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].shape == theirs[name].shape
        assert torch.equal(ours[name], theirs[name]), f"{name} differs by {(ours[name].double() - theirs[name].double()).abs().max():g}"


def as_anybody_loads(brought: Bag, name: str) -> Image.Image | None:
    """The source by diffusers' own load_image; a mask as it is but for its orientation, since the pipelines convert it."""
    if name not in brought:
        return None
    opened = Image.open(io.BytesIO(brought[name].data))
    seen: Image.Image = load_image(opened) if name == "source" else ImageOps.exif_transpose(opened)
    return seen


def compare(
    stages: Mapping[str, Stage], folder: Path, request: Request, brought: Bag | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """What our stages drew, if diffusers' pipelines draw the same."""
    brought = brought or {}
    request = bringing(request, brought)
    ours = drawn(stages, request, brought)
    theirs = oracle.chain(
        folder,
        request.prompt,
        request.negative,
        request.seed,
        request.settings,
        task=request.task,
        source=as_anybody_loads(brought, "source"),
        mask=as_anybody_loads(brought, "mask"),
        state=to_torch(brought["rng"]) if "rng" in brought else None,
        seeding=request.seeding,
        width=request.width,
        height=request.height,
        first_stage=request.first_stage,
        last_stage=request.last_stage,
        dtype=dtype,
    )
    assert_equal(ours, theirs)
    assert all(picture.isfinite().all() and picture.float().std() > 0.01 for picture in ours.values()), "a picture is flat"
    return ours
