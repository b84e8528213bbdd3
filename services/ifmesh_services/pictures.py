"""The pictures that a client sends: whole files, decoded within limits, made what diffusers' own pipelines make of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ifmesh import geometry, jpeg
from ifmesh.cascade import MASK, SOURCE, Blob
from ifmesh.errors import BadRequest
from ifmesh.request import Request
from ifmesh.stage import Bag

from .tensors import take

NAMES = {"stage_two": "Stage II", "upscaler": "the upscaler"}
SAVE = f"send a whole {', '.join(geometry.FORMATS[:-1])} or {geometry.FORMATS[-1]} file"


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a stage draws over.  image: [1, 3, h, w], -1..1; mask: [1, 1, h, w], 1 where it is repainted, 0 where it stays, or None: all."""

    image: Tensor
    mask: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.image.shape[2], self.image.shape[3]

    def noised(self, scheduler: Any, begin: int, noise: Tensor) -> Tensor:
        """[1, 3, h, w], as it is at that timestep; what the mask keeps stays clean.  Formula: prepare_intermediate_images."""
        made: Tensor = scheduler.add_noise(self.image, noise, scheduler.timesteps[begin : begin + 1])
        return made if self.mask is None else (1 - self.mask) * self.image + self.mask * made


def sketched(bag: Bag, side: int, *later: int, dtype: torch.dtype, device: torch.device) -> Sketch | None:
    """The bag's source, and its mask if there is one, as a stage whose UNet draws `side` pixels sees them; None: it has no source.

    later: the sides of the stages after it, where the mask has to fit, too.  BadRequest: a picture that nobody could use.
    """
    if SOURCE.name not in bag:
        return None
    source = picture(take(bag, SOURCE), SOURCE.name, "RGB")
    image = normal(_fitted(source, side)).to(device, dtype)
    if MASK.name not in bag:
        return Sketch(image)
    cut = picture(take(bag, MASK), MASK.name, "L")
    if not geometry.alike(source.size, cut.size, (side, *later)):
        theirs, ours = "{} x {}".format(*source.size), "{} x {}".format(*cut.size)
        raise BadRequest(MASK.name, ours, f"the source has {theirs} and thus another aspect: send a mask of {theirs}, or the same aspect")
    white = (np.array(_fitted(cut, side)).astype(np.float32) / 255.0 >= 0.5).astype(np.float32)
    return Sketch(image, torch.from_numpy(white[None, None]).to(device, dtype))


def enlarging(bag: Bag, stage: str) -> Image.Image:
    """The bag's source, RGB, as the low resolution that "stage_two" or "upscaler" makes larger: its sides are geometry.gridded.

    BadRequest: a picture that nobody could use, or one too large for that stage.
    """
    shown = picture(take(bag, SOURCE), SOURCE.name, "RGB", stage)
    size = geometry.gridded(*shown.size)
    return shown if shown.size == size else shown.resize(size, resample=Image.Resampling.BICUBIC)


def normal(shown: Image.Image) -> Tensor:
    """[1, 3, h, w], -1..1, fp32.  Formula: `preprocess_image` of diffusers' deepfloyd_if pipelines."""
    return _planes(np.array(shown).astype(np.float32) / 127.5 - 1)


def bright(shown: Image.Image) -> Tensor:
    """[1, 3, h, w], 0..1, fp32.  Formula: `pil_to_numpy` of diffusers' VaeImageProcessor."""
    return _planes(np.array(shown).astype(np.float32) / 255.0)


def drawn(request: Request, bag: Bag, blob: Blob, stage: str, dtype: torch.dtype) -> Tensor:
    """[1, 3, h, w], what the stage before has drawn, about -1 to 1, on the CPU, in the dtype in which it came.

    stage: "stage_two" or "upscaler", whose it is, and which computes in `dtype`.  BadRequest: the client's is no such picture.  Of
    whatever range it may be: the pipelines take any, too.
    """
    image = take(bag, blob)[None]
    if blob.name in request.brings:
        most, shape = geometry.MOST[stage], list(image.shape[1:])
        if any(side % geometry.GRID or side > most for side in shape[1:]):
            remedy = f"[3, h, w], for {NAMES[stage]} h and w multiples of {geometry.GRID} from {geometry.GRID} to {most}"
            raise BadRequest(blob.name, shape, remedy)
        if not image.to(dtype).isfinite().all():
            raise BadRequest(blob.name, shape, f"holds values that are no numbers in {dtype}: send what was drawn, about -1 to 1")
    return image


def picture(file: Tensor, field: str, mode: str, stage: str = "") -> Image.Image:
    """The picture in a file, U8 [n], turned as its EXIF orientation says.  Its size is checked before a pixel is decoded.

    field: "source" or "mask".  mode: "RGB" or "L"; transparency is dropped, and what lies under it shows.  stage: by which it is made
    larger, which not every size can be.  BadRequest, which never shows the bytes.
    """
    data = file.numpy().tobytes()
    if len(data) > geometry.FILE_BYTES:
        raise BadRequest(field, f"{len(data)} bytes", f"at most {geometry.FILE_BYTES}: make it smaller, or save it as JPEG")
    if jpeg.scans(data) > jpeg.SCANS:
        raise BadRequest(field, f"{len(data)} bytes", f"a JPEG of more than {jpeg.SCANS} scans: save it anew")
    if jpeg.pieces(data) > jpeg.PIECES:
        raise BadRequest(field, f"{len(data)} bytes", f"a JPEG of more than {jpeg.PIECES} segments: save it anew")
    try:
        opened = Image.open(io.BytesIO(data), formats=geometry.FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadRequest(field, f"{len(data)} bytes", f"far more than {geometry.PIXELS} pixels: {_smaller()}") from None
    except MemoryError:
        raise
    except Exception:  # Pillow raises SyntaxError, struct.error and more, as its plugins happen to
        raise BadRequest(field, f"{len(data)} bytes", f"cannot be read as a picture: {SAVE}") from None
    shown = f"{opened.format} {opened.width} x {opened.height}"
    if opened.width * opened.height > geometry.PIXELS:
        raise BadRequest(field, shown, f"more than {geometry.PIXELS} pixels: {_smaller()}")
    if max(opened.size) > geometry.ASPECT * min(opened.size):
        raise BadRequest(field, shown, f"the longer side is more than {geometry.ASPECT} times the shorter: crop it")
    if stage and max(opened.size) > geometry.MOST[stage]:
        raise BadRequest(field, shown, f"at most {geometry.MOST[stage]} pixels a side for {NAMES[stage]}: make it smaller")
    try:
        turned = ImageOps.exif_transpose(opened)
        turned.info.pop("transparency", None)  # a palette's: dropped by convert() anyway, which would warn
        return turned.convert(mode)
    except MemoryError:
        raise
    except Exception:
        raise BadRequest(field, shown, f"truncated or damaged: {SAVE}") from None


def _fitted(shown: Image.Image, side: int) -> Image.Image:
    """Formula: `resize` of diffusers' deepfloyd_if pipelines."""
    return shown.resize(geometry.fitted(*shown.size, side), resample=Image.Resampling.BICUBIC, reducing_gap=None)


def _planes(pixels: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
    """[h, w, 3] -> [1, 3, h, w]"""
    return torch.from_numpy(pixels[None].transpose(0, 3, 1, 2)).contiguous()


def _smaller() -> str:
    return "make it smaller; what is drawn is at most 1024 pixels on its shorter side"
