"""Text encoder and Stage I, trained together: captions to pictures of 64 px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from ifmesh_services.nano import builder, losses
from ifmesh_services.nano.batches import Batch, picture, sheet
from ifmesh_services.nano.part import Models
from ifmesh_services.nano.texts import Texts
from ifmesh_services.nano.widths import WIDTHS

SHOWN = (
    "a red circle on a blue background",
    "a large yellow star on a black background",
    "a small green square on a white background on the left",
    "a white heart on a pink background",
    "a purple triangle on an orange background at the top",
    "an orange ring on a grey background",
    "a black cross on a turquoise background",
    "a blue diamond on a brown background in the bottom right corner",
    "a big white circle on a black background",
    "a brown heart on a yellow background on the right",
    "a turquoise ring on a purple background",
    "a pink star on a green background at the bottom",
)
_UNet: Any = UNet2DConditionModel
_DDPM: Any = DDPMScheduler


class StageOne:
    """See part.Part.  side: 64, or less while it learns what shapes are: a picture of 32 px costs a quarter."""

    name, size = "stage_one", 48

    def __init__(self, out: Path, side: int = 64) -> None:
        self.side = side
        self.texts = Texts()
        self._schedule = _DDPM.from_config(builder.SCHEDULER_I)

    def models(self) -> Models:
        return {"text_encoder": self.texts.encoder(), "unet": _UNet(**builder.settled(WIDTHS)["one"], sample_size=64)}

    def loss(self, models: Models, batch: Batch, device: torch.device) -> tuple[Tensor, float]:
        clean = batch.painted(self.side).to(device)
        t = batch.spread(1000).to(device)
        noise = batch.noise(*clean.shape).to(device)
        x = self._schedule.add_noise(clean, noise, t)
        embeds = self.texts.embeds(models["text_encoder"], batch.texts, device)
        predicted = models["unet"](x, t, encoder_hidden_states=embeds, return_dict=False)[0]
        loss, plain = losses.hybrid(self._schedule.alphas_cumprod, t, x, clean, noise, predicted)
        return loss, float(plain)

    def sample(self, models: Models, steps: int = 27, guidance: float = 5.0) -> Image.Image:
        unet = models["unet"]
        embeds = self.texts.embeds(models["text_encoder"], [""] * len(SHOWN) + list(SHOWN), unet.device)
        schedule = _DDPM.from_config(builder.SCHEDULER_I)
        schedule.set_timesteps(steps)
        source = torch.Generator().manual_seed(0)
        x = torch.randn((len(SHOWN), 3, self.side, self.side), generator=source).to(unet.device)
        for t in schedule.timesteps:
            plain, told = unet(torch.cat([x, x]), t, encoder_hidden_states=embeds, return_dict=False)[0].chunk(2)
            eps = plain[:, :3] + guidance * (told[:, :3] - plain[:, :3])
            x = schedule.step(torch.cat([eps, told[:, 3:]], dim=1), t, x, generator=source, return_dict=False)[0]
        return sheet([picture(each) for each in x])
