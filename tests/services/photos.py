"""Picture files to start from: seeded, with edges, gradients and grain."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 37 + y / 23)], axis=-1)
    grain = np.random.default_rng(seed).normal(0, 20, ramps.shape)
    shown = Image.fromarray((ramps + grain).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(shown).ellipse((width // 4, height // 8, width // 2, height * 3 // 4), fill=(200, 30, 60))
    return shown


def stencil(width: int, height: int, mode: str = "L") -> Image.Image:
    """White, to be repainted: a blot left of the middle with a soft edge, off every grid."""
    y, x = np.mgrid[:height, :width]
    far = np.hypot((x - 0.37 * width) / (0.3 * width), (y - 0.55 * height) / (0.35 * height))
    return Image.fromarray((255 * (1.5 - far).clip(0, 1)).astype(np.uint8)).convert(mode)


def turned(shown: Image.Image, orientation: int, kind: str = "JPEG") -> bytes:
    """A file whose EXIF says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(shown, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def saved(shown: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    written = io.BytesIO()
    shown.save(written, kind, **more)
    return written.getvalue()
