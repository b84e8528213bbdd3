"""What the three drawing stages share: guidance, the step, and the requests in hand.

Each request ("draw") owns its noise source, scheduler and place in its list of timesteps, so requests at different timesteps
live side by side.  In exact mode each has UNet calls of its own: then its pixels cannot depend on its neighbours.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ifmesh.cascade import RNG
from ifmesh.protocol import Request
from ifmesh.stage import Bag

from .tensors import take


def noise_source(request: Request, bag: Bag) -> torch.Generator:
    """The request's CPU generator: as the stage before left it in the bag, or fresh from the seed ("per_stage")."""
    made = torch.Generator("cpu")
    if request.seeding == "per_stage":
        return made.manual_seed(request.seed)
    made.set_state(take(bag, RNG))
    return made


def noise(shape: Sequence[int], source: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal, drawn on the CPU whatever the device: the picture must not depend on the card."""
    return torch.randn(tuple(shape), generator=source, dtype=dtype).to(device)


def guide(both: Tensor, scale: float, channels: int) -> Tensor:
    """Classifier-free guidance.  both: [2, channels (+ variance), h, w], rows negative, prompt -> [1, the same, h, w].

    The variance that IF's UNets predict beside the noise is the prompted row's, unguided.
    """
    plain, prompted = both.chunk(2)
    eps = plain[:, :channels] + scale * (prompted[:, :channels] - plain[:, :channels])
    return torch.cat([eps, prompted[:, channels:]], dim=1)


def rows(embeds: Tensor, guidance: float) -> Tensor:
    """The rows that the UNet is asked for.  embeds: [2, tokens, C] (negative, prompt); without guidance the prompt's alone."""
    return embeds if guidance > 1 else embeds[1:]


@dataclass(slots=True)
class Draw:
    """One request being drawn.

    x: [1, C, h, w], the noisy picture.  embeds: [rows, tokens, C]; two rows (negative, prompt) with guidance, one (prompt) without.
    scheduler: its own, see schedules.scheduled.  low: [1, 3, h, w], the noised low-resolution picture, seen by the UNet as more
    channels of x.  labels: [rows], the noise level of `low`.  done: steps taken.  options: what scheduler.step takes besides.
    """

    x: Tensor
    embeds: Tensor
    guidance: float
    scheduler: Any
    source: torch.Generator
    low: Tensor | None = None
    labels: Tensor | None = None
    done: int = 0
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        takes = inspect.signature(self.scheduler.step).parameters
        self.options = {name: value for name, value in (("eta", 0.0), ("generator", self.source)) if name in takes}

    @property
    def steps(self) -> int:
        return len(self.scheduler.timesteps)

    def seen(self) -> Tensor:
        """What the UNet sees: [rows, C (+ 3), h, w]."""
        x = self.scheduler.scale_model_input(self.x, self.scheduler.timesteps[self.done])
        one = x if self.low is None else torch.cat([x, self.low], dim=1)
        return torch.cat([one] * len(self.embeds))

    def advance(self, predicted: Tensor) -> None:
        """One step of the scheduler.  predicted: [rows, C (+ C variance), h, w], the UNet's answer to `seen`."""
        channels = self.x.shape[1]
        if len(self.embeds) == 2:
            predicted = guide(predicted, self.guidance, channels)
        if self.scheduler.config.get("variance_type") not in ("learned", "learned_range"):
            predicted = predicted[:, :channels]
        t = self.scheduler.timesteps[self.done]
        self.x = self.scheduler.step(predicted, t, self.x, **self.options, return_dict=False)[0]
        self.done += 1


def predict(unet: Any, draws: Sequence[Draw]) -> Iterator[Tensor]:
    """The UNet's answer for each draw, [rows, C', h, w].  Exact: each in a call of its own, as its pipeline would."""
    for draw in draws:
        t = draw.scheduler.timesteps[draw.done]
        yield unet(draw.seen(), t, encoder_hidden_states=draw.embeds, class_labels=draw.labels, return_dict=False)[0]


class Pool:
    """The requests in hand, at whatever timestep each is."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self._draws: dict[str, Draw] = {}

    def admit(self, job: str, draw: Draw) -> None:
        self._draws[job] = draw

    def step(self) -> list[tuple[str, Draw]]:
        """One step for each; a finished one (done == steps) has left the pool."""
        hand = list(self._draws.items())
        with torch.inference_mode():
            for (_, draw), predicted in zip(hand, predict(self._unet, [draw for _, draw in hand]), strict=True):
                draw.advance(predicted)
        self._draws = {job: draw for job, draw in hand if draw.done < draw.steps}
        return hand

    def drop(self, job: str) -> None:
        self._draws.pop(job, None)
