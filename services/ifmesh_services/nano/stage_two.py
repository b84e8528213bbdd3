"""Stage II in training: pictures of 64 px to 256 px, on crops, with the text encoder that was trained before."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ifmesh_services.nano import builder, losses
from ifmesh_services.nano.batches import Batch, picture, pixels, sheet
from ifmesh_services.nano.painter import Box, paint
from ifmesh_services.nano.part import Models
from ifmesh_services.nano.scenes import scene
from ifmesh_services.nano.text import reader
from ifmesh_services.nano.texts import Texts
from ifmesh_services.nano.widths import WIDTHS
from ifmesh_services.nano.wording import caption

LOW, HIGH = 64, 256
NOISIEST = 400  # the noise level of the low resolution, at most
OFFSET = 0.3  # deviation of the noise's own mean, so that colours are read off the low resolution: off x they can be only in training
_UNet: Any = UNet2DConditionModel
_DDPM: Any = DDPMScheduler


class StageTwo:
    """See part.Part.  out: where the text encoder has been trained.  side: of the crops, of pictures of 256 px."""

    name, size = "stage_two", 16

    def __init__(self, out: Path, side: int = 64) -> None:
        self.side = side
        self.texts = Texts()
        self._encoder: Any = reader(out, self.texts)
        self._schedule = _DDPM.from_config(builder.SCHEDULER_II)
        self._noising = _DDPM.from_config(builder.SCHEDULER_NOISING)

    def models(self) -> Models:
        return {"unet": _UNet(**builder.settled(WIDTHS)["two"], sample_size=HIGH)}

    def loss(self, models: Models, batch: Batch, device: torch.device) -> tuple[Tensor, float]:
        high = batch.whole(self.side, HIGH)
        boxes = batch.boxes(self.side / high, high)
        clean = batch.painted(self.side, boxes).to(device)
        small = enlarged(batch.painted(high * LOW // HIGH), high)
        low = torch.stack([one[_cut(box, high)] for one, box in zip(small, boxes, strict=True)]).to(device)
        level = (batch.spread(NOISIEST)).to(device)
        low = self._noising.add_noise(low, batch.noise(*low.shape).to(device), level)
        t = batch.timesteps().to(device)
        noise = batch.noise(*clean.shape).to(device) + OFFSET * batch.noise(len(clean), 3, 1, 1).to(device)
        x = self._schedule.add_noise(clean, noise, t)
        embeds = self.texts.embeds(self._encoder.to(device), batch.texts, device)
        seen = torch.cat([x, low], dim=1)
        predicted = models["unet"](seen, t, encoder_hidden_states=embeds, class_labels=level, return_dict=False)[0]
        loss, plain = losses.hybrid(self._schedule.alphas_cumprod, t, x, clean, noise, predicted, batch.most)
        return loss, float(plain)

    def sample(self, models: Models, steps: int = 12, noise_level: int = 100, count: int = 4) -> Image.Image:
        unet = models["unet"]
        draw, source = random.Random(0), torch.Generator().manual_seed(0)
        scenes = [scene(draw) for _ in range(count)]
        embeds = self.texts.embeds(self._encoder.to(unet.device), [caption(one, draw) for one in scenes], unet.device)
        low = enlarged(torch.stack([pixels(paint(one, LOW)) for one in scenes]))
        x = torch.randn(low.shape, generator=source).to(unet.device)
        level = torch.full((count,), noise_level)
        low = self._noising.add_noise(low, torch.randn(low.shape, generator=source), level).to(unet.device)
        schedule = _DDPM.from_config(builder.SCHEDULER_II)
        schedule.set_timesteps(steps)
        for t in schedule.timesteps:
            seen = torch.cat([x, low], dim=1)
            told = unet(seen, t, encoder_hidden_states=embeds, class_labels=level.to(unet.device), return_dict=False)[0]
            x = schedule.step(told, t, x, generator=source, return_dict=False)[0]
        return sheet([picture(each) for each in x])


def enlarged(low: Tensor, side: int = HIGH) -> Tensor:
    """As the pipeline enlarges it: [B, 3, h, h] -> [B, 3, side, side]."""
    return functional.interpolate(low, (side, side), mode="bilinear", align_corners=True)


def _cut(box: Box, side: int) -> tuple[slice, slice, slice]:
    left, top, right, bottom = (round(part * side) for part in box)
    return slice(None), slice(top, bottom), slice(left, right)
