"""Stage I in training: captions to pictures of 64 px, with the text encoder that was trained before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from ifmesh_services.nano import builder, losses
from ifmesh_services.nano.batches import Batch, picture, sheet
from ifmesh_services.nano.part import Models
from ifmesh_services.nano.text import reader
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
    """See part.Part.  out: where the text encoder has been trained.  side: 64, or less while it learns what shapes are: a picture of 32 px
    costs a quarter."""

    name, size = "stage_one", 48

    def __init__(self, out: Path, side: int = 64) -> None:
        self.side = side
        self.texts = Texts()
        self._encoder: Any = reader(out, self.texts)
        self._schedule = _DDPM.from_config(builder.SCHEDULER_I)

    def models(self) -> Models:
        return {"unet": _UNet(**builder.settled(WIDTHS)["one"], sample_size=64)}

    def loss(self, models: Models, batch: Batch, device: torch.device) -> tuple[Tensor, float]:
        clean = batch.painted(self.side).to(device)
        t = batch.spread(1000).to(device)
        noise = batch.noise(*clean.shape).to(device)
        x = self._schedule.add_noise(clean, noise, t)
        embeds = self.texts.embeds(self._encoder.to(device), batch.texts, device)
        predicted = models["unet"](x, t, encoder_hidden_states=embeds, return_dict=False)[0]
        loss, plain = losses.hybrid(self._schedule.alphas_cumprod, t, x, clean, noise, predicted)
        return loss, float(plain)

    def sample(self, models: Models) -> Image.Image:
        return sheet([picture(each) for each in self.draw(models, SHOWN)])

    @torch.no_grad()
    def draw(self, models: Models, texts: Sequence[str], seed: int = 0, steps: int = 20, guidance: float = 5.0) -> Tensor:
        """[B, 3, side, side], -1 to 1, as IFPipeline draws them, but of one noise source for all."""
        unet = models["unet"]
        embeds = self.texts.embeds(self._encoder.to(unet.device), [""] * len(texts) + list(texts), unet.device)
        schedule = _DDPM.from_config(builder.SCHEDULER_I)
        schedule.set_timesteps(steps)
        source = torch.Generator().manual_seed(seed)
        x = torch.randn((len(texts), 3, self.side, self.side), generator=source)
        for t in schedule.timesteps:
            told = unet(torch.cat([x, x]).to(unet.device), t, encoder_hidden_states=embeds, return_dict=False)[0].float().cpu()
            x = schedule.step(guide(told, guidance), t, x, generator=source, return_dict=False)[0]
        return x


def guide(both: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, as in denoising.guide, of many at once.  both: [2B, 6, h, w], first those of no text."""
    plain, told = both.chunk(2)
    return torch.cat([plain[:, :3] + scale * (told[:, :3] - plain[:, :3]), told[:, 3:]], dim=1)
