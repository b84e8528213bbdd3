"""The upscaler's VAE in training: pictures of 1024 px to latents of 256 and back, on crops and smaller ones."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ifmesh_services.nano import builder
from ifmesh_services.nano.batches import Batch, picture, pixels, sheet
from ifmesh_services.nano.painter import paint
from ifmesh_services.nano.part import Models
from ifmesh_services.nano.scenes import scene
from ifmesh_services.nano.widths import WIDTHS

HIGH = 1024
NOISE = 0.1  # on the latents while it learns, so that it bears the upscaler's errors
KEPT = 1e-3  # what the latents' size counts for, and how far their told deviation is from that noise's
SCALING = 0.08333  # what the pipeline multiplies latents by, whatever the VAE's configuration says
_VAE: Any = AutoencoderKL


class Vae:
    """See part.Part.  side: of the crops, of pictures of 1024 px."""

    name, size = "vae", 8

    def __init__(self, out: Path, side: int = 64) -> None:
        self.side = side

    def models(self) -> Models:
        return {"vae": _VAE(**builder.settled(WIDTHS)["vae"], sample_size=HIGH // 4)}

    def loss(self, models: Models, batch: Batch, device: torch.device) -> tuple[Tensor, float]:
        whole = batch.whole(self.side, HIGH)
        clean = batch.painted(self.side, batch.boxes(self.side / whole, whole)).to(device)
        found = models["vae"].encode(clean).latent_dist
        mean, spread = found.mean.float(), found.logvar.float() / 2
        made = models["vae"].decode(mean + NOISE * batch.noise(*mean.shape).to(device), return_dict=False)[0].float()
        apart = functional.l1_loss(made, clean)
        kept = (spread - math.log(NOISE)).square().mean() + mean.square().mean()
        return apart + KEPT * kept, float(apart.detach())

    def sample(self, models: Models) -> Image.Image:
        """Above the crops, below what the VAE makes of them."""
        draw = random.Random(0)
        crops = torch.stack([pixels(paint(one, 128, _about(one.x, one.y))) for one in (scene(draw) for _ in range(4))])
        vae = models["vae"]
        made = vae.decode(vae.encode(crops.to(vae.device)).latent_dist.mode(), return_dict=False)[0]
        return sheet([picture(each) for each in (*crops, *made)])


@torch.no_grad()
def folded(vae: Any) -> Any:
    """The same VAE, its latents so large that SCALING brings them to a deviation of 1.  It is changed: the factor goes into its weights."""
    batch = Batch("vae's scale", 0, 0, 32)
    latents = vae.encode(batch.painted(64, batch.boxes(64 / HIGH, HIGH)).to(vae.device)).latent_dist.mode()
    factor = 1 / (SCALING * float(latents.std()))
    half = vae.config.latent_channels
    vae.quant_conv.weight[:half] *= factor
    vae.quant_conv.bias[:half] *= factor
    vae.quant_conv.bias[half:] += 2 * math.log(factor)
    vae.post_quant_conv.weight /= factor
    return vae


def _about(x: float, y: float) -> tuple[float, float, float, float]:
    return x - 0.2, y - 0.2, x + 0.2, y + 0.2
