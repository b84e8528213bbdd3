"""Stage I in training: captions to pictures of 64 px, with the text encoder that was trained before.

It grows: its inner levels learn first, as a UNet of their own, on pictures of half the side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from ifmesh_services.nano import builder, losses, state
from ifmesh_services.nano.batches import Batch, picture, sheet
from ifmesh_services.nano.part import Models, trained
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
STILL = 200  # steps
OUTER = ("conv_", "down_blocks.0.", "up_blocks.3.upsamplers.", "up_blocks.4.")  # the level that is not the sketch's
_UNet: Any = UNet2DConditionModel
_DDPM: Any = DDPMScheduler


class StageOne:
    """See part.Part.  out: where the text encoder and the sketch have been trained.  Its inner levels begin as the sketch's."""

    name, size, side = "stage_one", 24, 64
    finer = 1  # times smaller the noise, after a mean of so many pixels each way

    def __init__(self, out: Path, side: int = 0) -> None:
        self.side = side or self.side
        self.texts = Texts()
        self._out = out
        self._encoder: Any = reader(out, self.texts)
        kept = _DDPM.from_config(builder.SCHEDULER_I).alphas_cumprod.double()
        lost = (1 - kept) / self.finer**2
        self._scale = (kept + lost).sqrt().float()  # what the UNet sees is so much smaller than DDPM would have it
        self._alphas = (kept / (kept + lost)).float()

    def models(self) -> Models:
        config = builder.settled(WIDTHS)["one"]
        unet = _UNet(**config, sample_size=64)
        if not (self._out / self.name / state.FILE).exists() or (self._out / Sketch.name / state.FILE).exists():
            _grow(unet, trained(self._out, Sketch.name)["unet"])  # one that goes on has grown already, and does without
        return {"unet": unet}

    def loss(self, models: Models, batch: Batch, device: torch.device) -> tuple[Tensor, float]:
        self._still(models["unet"], batch.step)
        clean = batch.painted(self.side).to(device)
        t = batch.timesteps().to(device)
        noise = batch.noise(*clean.shape).to(device)
        kept, lost = losses.tables(self._alphas, t)
        x = kept.sqrt() * clean + lost.sqrt() * noise
        embeds = self.texts.embeds(self._encoder.to(device), batch.texts, device)
        scale = self._scale.to(device)[t].reshape(-1, 1, 1, 1)
        predicted = models["unet"](x * scale, t, encoder_hidden_states=embeds, return_dict=False)[0]
        loss, plain = losses.hybrid(self._alphas, t, x, clean, noise, predicted, batch.most)
        return loss, float(plain)

    def _still(self, unet: Any, step: int) -> None:
        """While the outer level is new, the inner ones stay as they are."""
        for name, weight in unet.named_parameters():
            weight.requires_grad_(step >= STILL or not _inner(name))

    def sample(self, models: Models) -> Image.Image:
        return sheet([picture(each) for each in self.draw(models, SHOWN)])

    @torch.no_grad()
    def draw(self, models: Models, texts: Sequence[str], seed: int = 0, steps: int = 20, guidance: float = 5.0) -> Tensor:
        """[B, 3, side, side], -1 to 1, as IFPipeline draws them, but of one noise source for all."""
        unet = models["unet"]
        embeds = self.texts.embeds(self._encoder.to(unet.device), [""] * len(texts) + list(texts), unet.device)
        schedule = _DDPM.from_config({**builder.SCHEDULER_I, "trained_betas": self._betas()})
        schedule.set_timesteps(steps)
        source = torch.Generator().manual_seed(seed)
        x = torch.randn((len(texts), 3, self.side, self.side), generator=source)
        for t in schedule.timesteps:
            seen = torch.cat([x, x]) * self._scale[t]
            told = unet(seen.to(unet.device), t, encoder_hidden_states=embeds, return_dict=False)[0].float().cpu()
            x = schedule.step(guide(told, guidance), t, x, generator=source, return_dict=False)[0]
        return x

    def _betas(self) -> list[float]:
        before = torch.cat([torch.ones(1), self._alphas[:-1]])
        return [float(each) for each in 1 - self._alphas / before]


class Sketch(StageOne):
    """Stage I without its outer level, in training: pictures of 32 px, a third of the time.

    What it sees and says is the mean of four pixels of what the whole sees; so its noise is half as large.
    """

    name, size, side = "sketch", 24, 32
    finer = 2

    def models(self) -> Models:
        config = builder.settled(WIDTHS)["one"]
        inner = {"block_out_channels": config["block_out_channels"][1:], "down_block_types": config["down_block_types"][1:]}
        return {"unet": _UNet(**{**config, **inner, "up_block_types": config["up_block_types"][:-1]}, sample_size=32)}

    def _still(self, unet: Any, step: int) -> None:
        """Nothing of it."""


def _inner(name: str) -> bool:
    """Is this weight of the whole one of the sketch's?"""
    return (
        "down_blocks.0." not in name
        and "up_blocks.4." not in name
        and "up_blocks.3.upsamplers" not in name
        and not name.startswith("conv_")
    )


def _grow(unet: Any, sketch: dict[str, Tensor]) -> None:
    """Put the sketch's levels into the whole, one level further in."""
    grown = {}
    for name, weight in sketch.items():
        kind, _, rest = name.partition(".")
        if kind == "down_blocks":
            level, _, rest = rest.partition(".")
            name = f"down_blocks.{int(level) + 1}.{rest}"
        if not name.startswith("conv_in"):
            grown[name] = weight
    if wrong := unet.load_state_dict(grown, strict=False).unexpected_keys:
        raise ValueError(f"the sketch is of other sizes: {wrong[0]}")


def guide(both: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, as in denoising.guide, of many at once.  both: [2B, 6, h, w], first those of no text."""
    plain, told = both.chunk(2)
    return torch.cat([plain[:, :3] + scale * (told[:, :3] - plain[:, :3]), told[:, 3:]], dim=1)
