"""The upscaler in training: its UNet and text encoder, pictures of 256 px to latents of 1024 px, on crops, with the trained VAE."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from ifmesh_services.nano import builder
from ifmesh_services.nano.batches import Batch, picture, pixels, sheet
from ifmesh_services.nano.painter import paint
from ifmesh_services.nano.part import Models, trained
from ifmesh_services.nano.scenes import scene
from ifmesh_services.nano.texts import ShortTexts
from ifmesh_services.nano.vae import SCALING, Vae, folded
from ifmesh_services.nano.widths import WIDTHS
from ifmesh_services.nano.wording import caption

LOW = 256
NOISIEST = 350  # what the pipeline allows: levels beyond have no row of their own
_UNet: Any = UNet2DConditionModel
_DDPM: Any = DDPMScheduler
_DDIM: Any = DDIMScheduler


class Upscaler:
    """See part.Part.  out: where the VAE has been trained.  side: of the crops, of latents (and pictures) of 256 px."""

    name, size = "upscaler", 8

    def __init__(self, out: Path, side: int = 64) -> None:
        self.side = side
        self.texts = ShortTexts()
        vae = Vae(out).models()["vae"]
        vae.load_state_dict(trained(out, "vae")["vae"])
        self._vae: Any = folded(vae.eval().requires_grad_(False))
        self._schedule = _DDIM.from_config(builder.SCHEDULER_X4)
        self._noising = _DDPM.from_config(builder.SCHEDULER_X4_LOW)

    def models(self) -> Models:
        return {"text_encoder": self.texts.encoder(), "unet": _UNet(**builder.settled(WIDTHS)["x4"], sample_size=LOW // 2)}

    def loss(self, models: Models, batch: Batch, device: torch.device) -> tuple[Tensor, float]:
        whole = batch.whole(self.side, LOW)
        boxes = batch.boxes(self.side / whole, whole)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            clean = self._vae.to(device).encode(batch.painted(4 * self.side, boxes).to(device)).latent_dist.mode() * SCALING
        level = batch.spread(NOISIEST).to(device)
        low = batch.painted(self.side, boxes)
        low = self._noising.add_noise(low.to(device), batch.noise(*low.shape).to(device), level)
        t = batch.spread(1000).to(device)
        noise = batch.noise(*clean.shape).to(device)
        x = self._schedule.add_noise(clean, noise, t)
        kept = self._schedule.alphas_cumprod.to(device)[t].reshape(-1, 1, 1, 1)
        wanted = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        embeds = self.texts.embeds(models["text_encoder"], batch.texts, device)
        seen = torch.cat([x, low], dim=1)
        predicted = models["unet"](seen, t, encoder_hidden_states=embeds, class_labels=level, return_dict=False)[0]
        loss = (predicted.float() - wanted).square().mean()
        return loss, float(loss.detach())

    def sample(self, models: Models, steps: int = 10, noise_level: int = 20) -> Image.Image:
        """Parts of four scenes, 256 px of their 1024."""
        draw, source = random.Random(0), torch.Generator().manual_seed(0)
        scenes = [scene(draw) for _ in range(4)]
        unet = models["unet"]
        embeds = self.texts.embeds(models["text_encoder"], [caption(one, draw) for one in scenes], unet.device)
        low = torch.stack([pixels(paint(one, 64, (one.x - 0.2, one.y - 0.2, one.x + 0.05, one.y + 0.05))) for one in scenes])
        level = torch.full((4,), noise_level)
        low = self._noising.add_noise(low, torch.randn(low.shape, generator=source), level).to(unet.device)
        x = torch.randn((4, 4, 64, 64), generator=source).to(unet.device)
        schedule = _DDIM.from_config(builder.SCHEDULER_X4)
        schedule.set_timesteps(steps)
        for t in schedule.timesteps:
            seen = torch.cat([x, low], dim=1)
            told = unet(seen, t, encoder_hidden_states=embeds, class_labels=level.to(unet.device), return_dict=False)[0]
            x = schedule.step(told, t, x, return_dict=False)[0]
        made = self._vae.to(unet.device).decode(x / SCALING, return_dict=False)[0]
        return sheet([picture(each) for each in made])
