"""The last stage of every job: safety checker, watermark, PNG.  Nothing leaves the mesh but through it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
from diffusers.utils.pil_utils import numpy_to_pil
from numpy.typing import NDArray
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ifmesh.cascade import DRAWN, FLAGGED, IF, PICTURE
from ifmesh.protocol import Request
from ifmesh.stage import Advance, Bag, Setup, Tensor
from ifmesh_services.tensors import take

from . import loading, recipes

MARK = 62  # pixels of the watermark's side in a picture of 1024 x 1024

to_pil: Callable[[NDArray[np.float32]], list[PIL.Image.Image]] = numpy_to_pil


@dataclass(slots=True)
class _Job:
    """pictures: those still to be checked, by stage, as the bag had them; done: their PNG files, and what only passes."""

    pictures: dict[str, torch.Tensor]
    steps: int
    done: dict[str, Tensor] = field(default_factory=dict)
    flagged: bool = False


class Guard:
    """Checks, marks and encodes the pictures a request publishes, one per step.

    A picture that the checker flags is blanked.  One of less than 17 x 17 pixels gets no watermark: it would be less than a pixel
    wide, and IFWatermarker fails.  Floating point pictures are taken to 8 bits as diffusers' output_type="pil" does it.
    """

    slots = 1

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}

    def load(self, setup: Setup) -> str:
        """Stage I's repository holds what is needed.  The checker runs in fp32 whatever the setup says: it is small, and decides.

        Its pictures are prepared by Pillow also where torchvision is installed, so that every host decides alike.
        """
        loading.dtype_of(setup)  # Misconfigured for a wrong device or dtype
        repo, self._device = recipes.read(setup.cascade).repos["guard"], setup.device
        self._features = loading.component(repo, "feature_extractor", CLIPImageProcessorPil)
        self._checker = loading.component(repo, "safety_checker", IFSafetyChecker, torch.float32, setup.device)
        self._watermarker = loading.component(repo, "watermarker", IFWatermarker)
        return loading.numeric_class(setup, torch.float32, self._checker, self._watermarker)

    def admit(self, job: str, request: Request, bag: Bag) -> int:
        """One step for each picture.  ValueError: the bag's pictures are not what the request says."""
        needed = IF["guard"].needs(request)
        pictures = {stage: take(bag, blob) for stage, blob in DRAWN.items() if blob in needed}
        passing = {blob.name: bag[blob.name] for blob in IF["guard"].gives(request) if blob in needed}
        self._jobs[job] = _Job(pictures, len(pictures), passing)
        return len(pictures)

    def step(self) -> Iterator[Advance]:
        """The next picture of each job, in the order of the stages."""
        for name, job in list(self._jobs.items()):
            stage = next(iter(job.pictures))
            picture, flagged = self._checked(pixels(job.pictures.pop(stage)))
            job.flagged |= flagged
            file = png(self._marked(picture))
            job.done[PICTURE[stage].name] = Tensor("U8", (len(file),), file)
            output = None
            if not job.pictures:
                del self._jobs[name]
                output = job.done | {FLAGGED.name: Tensor("U8", (1,), bytes([job.flagged]))}
            yield Advance(name, job.steps - len(job.pictures), job.steps, output)

    def drop(self, job: str) -> None:
        self._jobs.pop(job, None)

    def _checked(self, image: NDArray[np.float32]) -> tuple[PIL.Image.Image, bool]:
        """The picture, black if flagged.  image: [1, H, W, 3] in 0..1."""
        seen = self._features(to_pil(image), return_tensors="pt").to(self._device)
        image, unsafe, marked = self._checker(images=image, clip_input=seen.pixel_values.to(dtype=torch.float32))
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


def png(picture: PIL.Image.Image) -> bytes:
    """A PNG file: pixels and nothing else, so that the same picture is the same file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
