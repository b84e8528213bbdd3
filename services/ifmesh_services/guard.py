"""The last stage of every job: safety checker, watermark, a file.  Nothing leaves the mesh but through it.

Options of its service (services.guard.options of ifmesh.toml), beside those of terms.py:

p_threshold   the logit above which a picture counts as unsafe; default 0.5, that of diffusers' IFSafetyChecker: a probability of 0.622.
              The original IF takes 0 (0.5).  A lower one flags more; a higher one is refused.
w_threshold   the same for pictures that carry somebody's watermark.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
from diffusers.utils.pil_utils import numpy_to_pil
from numpy.typing import NDArray
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ifmesh.cascade import DRAWN, FLAGGED, IF, PICTURE
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.request import Request
from ifmesh.stage import Advance, Bag, Foreign, Setup, Tensor
from ifmesh_services.tensors import take

from . import loading, offload, recipes
from .terms import Terms

NAME = "guard"
MARK = 62  # pixels of the watermark's side in a picture of 1024 x 1024
THRESHOLDS = ("p_threshold", "w_threshold")
LOGIT = 0.5  # diffusers' own for both
FORMATS: Mapping[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}, "jpeg": {"quality": 95}}  # what Pillow is told besides
SIDES = {"png": 2**31 - 1, "webp": 16383, "jpeg": 65500}  # pixels at most; libjpeg's own limit, below the format's

to_pil: Callable[[NDArray[np.float32]], list[PIL.Image.Image]] = numpy_to_pil


@dataclass(slots=True)
class _Job:
    """pictures: those still to be checked, by stage, as the bag had them; done: their files, and what only passes."""

    pictures: dict[str, torch.Tensor]
    steps: int
    format: str
    done: dict[str, Tensor] = field(default_factory=dict)
    flagged: bool = False


class Guard:
    """Checks, marks and encodes the pictures a request publishes, one per step: one checker for all stages of the mesh.

    A picture that the checker flags is blanked, and the result says so; as in diffusers it sees the middle square.  One of less than
    17 x 17 pixels gets no watermark: it would be less than a pixel wide, and IFWatermarker fails.  Floating point pictures are taken to
    8 bits as diffusers' output_type="pil" does it.

    A file holds pixels and nothing else, so that the same picture is the same file.  WebP keeps every bit; JPEG does not, and is what
    Pillow makes of the picture at quality 95.  Previews are PNG whatever their job's format: they are asked for by stage alone.
    """

    slots = 1

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}

    def weighs(self, setup: Setup) -> int:
        """Bytes of its weights in memory, without loading them."""
        repo, dtype = recipes.read(setup.cascade).repos[NAME], loading.dtype_of(replace(setup, dtype=setup.dtype or "fp32"))
        return loading.weight(repo, "safety_checker", IFSafetyChecker, dtype, Terms.read(NAME, setup.options, setup.device))

    def load(self, setup: Setup) -> str:
        """Stage I's repository holds what is needed, whatever is in the others.

        The checker computes in fp32 unless the setup says otherwise, on a card too: it is small, and decides.  Its pictures are prepared
        by Pillow also where torchvision is installed, so that every host decides alike.
        """
        terms = loading.agreed(NAME, setup, beside=THRESHOLDS)
        self._thresholds = {name: _logit(name, (setup.options or {}).get(name, LOGIT)) for name in THRESHOLDS}
        self._dtype = loading.dtype_of(replace(setup, dtype=setup.dtype or "fp32"))
        repo, self._device = recipes.read(setup.cascade).repos[NAME], setup.device
        self._features = loading.component(repo, "feature_extractor", CLIPImageProcessorPil, terms=terms)
        self._checker = loading.component(repo, "safety_checker", IFSafetyChecker, self._dtype, setup.device, terms)
        for part in (self._checker.vision_model, self._checker.p_head, self._checker.w_head):
            part.register_forward_hook(_sound)
        self._watermarker = loading.component(repo, "watermarker", IFWatermarker, terms=terms)
        stricter = "".join(f", {name} {value}" for name, value in self._thresholds.items() if value != LOGIT)
        return loading.numeric_class(setup, self._dtype, self._checker, self._watermarker, terms=terms) + stricter

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        """One step for each picture.  BadRequest: the format cannot hold one.  ValueError: they are not what the request says."""
        if saved is not None:
            raise Foreign(f"{NAME} saves nothing")
        needed = IF[NAME].needs(request)
        pictures = {stage: take(bag, blob) for stage, blob in DRAWN.items() if blob in needed}
        passing = {blob.name: bag[blob.name] for blob in IF[NAME].gives(request) if blob in needed}
        for drawn in pictures.values():
            _, height, width = drawn.shape
            if max(height, width) > SIDES[request.format]:
                other = "png or jpeg" if request.format == "webp" else "png"
                raise BadRequest(
                    "format", request.format, f"holds at most {SIDES[request.format]} pixels a side, not {width} x {height}: {other}"
                )
        self._jobs[job] = _Job(pictures, len(pictures), request.format, passing)
        return len(pictures)

    def step(self, paused: Collection[str] = ()) -> Iterator[Advance]:
        """The next picture of each job, in the order of the stages.  ArithmeticError: it, or what the checker says of it, is no number."""
        for name, job in [(name, job) for name, job in self._jobs.items() if name not in paused]:
            stage = next(iter(job.pictures))
            picture, flagged = self._checked(pixels(job.pictures.pop(stage)))
            job.flagged |= flagged
            file = encoded(self._marked(picture), job.format)
            job.done[PICTURE[stage].name] = Tensor("U8", (len(file),), file)
            output = None
            if not job.pictures:
                self.drop(name)
                output = job.done | {FLAGGED.name: Tensor("U8", (1,), bytes([job.flagged]))}
            yield Advance(name, job.steps - len(job.pictures), job.steps, output)

    def save(self, job: str) -> Bag | None:
        return None

    def drop(self, job: str) -> None:
        self._jobs.pop(job, None)
        if not self._jobs:
            offload.leave()

    def _checked(self, image: NDArray[np.float32]) -> tuple[PIL.Image.Image, bool]:
        """The picture, black if flagged.  image: [1, H, W, 3] in 0..1."""
        seen = self._features(to_pil(image), return_tensors="pt").to(self._device)
        image, unsafe, marked = self._checker(images=image, clip_input=seen.pixel_values.to(dtype=self._dtype), **self._thresholds)
        [picture] = to_pil(image)
        return picture, unsafe[0] or marked[0]

    def _marked(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """The picture with the watermark.  Its shorter side is the sample size: that puts the mark into its own corner, unscaled."""
        width, height = picture.size
        if int((width * height / 1024**2) ** 0.5 * MARK) > 0:  # as apply_watermark reckons the mark's side
            self._watermarker.apply_watermark([picture], min(width, height))
        return picture


def pixels(drawn: torch.Tensor) -> NDArray[np.float32]:
    """[3, H, W] in -1..1, or uint8, to [1, H, W, 3] in 0..1: diffusers' own arithmetic, in the dtype in which it was drawn.

    ArithmeticError when there are values that are no numbers: those the checker would let pass whatever they hide.
    """
    if not drawn.isfinite().all():
        raise ArithmeticError("the picture holds values that are no numbers: its stage has overflowed")
    image = drawn.float() / 255 if drawn.dtype == torch.uint8 else (drawn / 2 + 0.5).clamp(0, 1)
    made: NDArray[np.float32] = image[None].permute(0, 2, 3, 1).float().numpy()
    return made


def encoded(picture: PIL.Image.Image, format: str) -> bytes:
    """The picture as a whole file: pixels and nothing else."""
    file = io.BytesIO()
    picture.save(file, format.upper(), **FORMATS[format])
    return file.getvalue()


def _logit(name: str, said: object) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float) or not (math.isfinite(said) and said <= LOGIT):
        remedy = f"a logit of at most {LOGIT}, which is diffusers' own; a lower one flags more (the original IF takes 0)"
        raise Misconfigured(f"services.{NAME}.options.{name}: {said!r}: {remedy}")
    return float(said)


def _sound(part: Any, given: Any, said: Any) -> None:
    """After a part of the checker was asked.  No number is above no threshold: the picture would pass."""
    answer = said if isinstance(said, torch.Tensor) else said[0]
    if not answer.isfinite().all():
        raise ArithmeticError(f"the safety checker has overflowed in {answer.dtype}: let the guard compute in fp32")
