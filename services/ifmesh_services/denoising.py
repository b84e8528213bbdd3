"""What the three drawing stages share: guidance, the step, and the requests in hand.

Each request ("draw") owns its noise source, scheduler and place in its list of timesteps, so requests at different timesteps
live side by side.  In exact mode each has UNet calls of its own: then its pixels cannot depend on its neighbours.  How they share
calls instead: pooled.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ifmesh.cascade import EMBEDS, RNG, Blob
from ifmesh.errors import BadRequest
from ifmesh.request import Request
from ifmesh.stage import Advance, Bag

from . import checkpoint, generators, offload
from .tensors import take, to_blob
from .threshold import quickened


def noise_source(request: Request, bag: Bag) -> torch.Generator:
    """The request's CPU generator: as the stage before, or the client, left it in the bag; else fresh from the seed.

    BadRequest: the client's is none.
    """
    made = torch.Generator("cpu")
    if request.seeding == "per_stage" or RNG.name not in bag:
        return made.manual_seed(request.seed)
    state = take(bag, RNG)
    none = BadRequest(RNG.name, f"{state.numel()} bytes", "no state of a CPU torch.Generator: send what its get_state() gives")
    if RNG.name in request.brings and not generators.sound(state):
        raise none
    try:
        made.set_state(state)
    except RuntimeError:
        if RNG.name not in request.brings:
            raise
        raise none from None
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


def styled(predicted: Tensor, mixer: float, channels: int) -> Tensor:
    """The style mixed into the prompt.  predicted: [rows, channels (+ variance), h, w], rows (negative,) prompt, style -> without style.

    The variance stays the prompt's.  Formula: positive_mixer in deepfloyd_if/modules/base.py (https://github.com/deep-floyd/IF).
    """
    *plain, prompted, style = torch.split(predicted, 1)
    eps = prompted[:, :channels] * (1 - mixer) + style[:, :channels] * mixer
    return torch.cat([*plain, torch.cat([eps, prompted[:, channels:]], dim=1)])


def embeddings(request: Request, bag: Bag, unet: Any) -> Tensor:
    """[texts, tokens, C] (negative, prompt (, style)), on the UNet's device and in its dtype.

    BadRequest: the client's are none for this UNet, or not of this request's texts.
    """
    given = take(bag, EMBEDS)
    embeds = given.to(unet.device, unet.dtype)
    wanted = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    texts = ["negative", "prompt", "style"] if request.style else ["negative", "prompt"]
    if EMBEDS.name in request.brings:
        if given.shape[2] != wanted:
            raise BadRequest(EMBEDS.name, list(given.shape), f"this cascade's are [{len(texts)}, 77, {wanted}]: encode the prompt with it")
        if given.shape[0] != len(texts):
            remedy = f"this request's are [{len(texts)}, 77, {wanted}], rows {', '.join(texts)}: encode them together"
            raise BadRequest(EMBEDS.name, list(given.shape), remedy)
        if not embeds.isfinite().all():
            raise BadRequest(EMBEDS.name, list(given.shape), f"holds values that are no numbers in {unet.dtype}: encode the prompt again")
    return embeds


def rows(embeds: Tensor, guidance: float) -> Tensor:
    """The rows that the UNet is asked for.  embeds: [texts, tokens, C] (negative, prompt (, style)); without guidance no negative."""
    return embeds if guidance > 1 else embeds[1:]


@dataclass(slots=True)
class Draw:
    """One request being drawn.

    x: [1, C, h, w], the noisy picture.  embeds: [rows, tokens, C], see `rows`.  mixer: of the style, whose row is the last; None: there
    is none.  scheduler: its own, see schedules.scheduled.  low: [1, 3, h, w], the noised low-resolution picture, seen by the UNet as more
    channels of x.  labels: [rows], the noise level of `low`.  begin: index of the first timestep.  mask: [1, 1, h, w], 1 where x is
    drawn, 0 where it stays as it began.  done: steps taken.  options: what scheduler.step takes besides.  dtype: of its stage; x may
    be finer.
    """

    x: Tensor
    embeds: Tensor
    guidance: float
    scheduler: Any
    source: torch.Generator
    low: Tensor | None = None
    labels: Tensor | None = None
    begin: int = 0
    mask: Tensor | None = None
    mixer: float | None = None
    done: int = 0
    options: dict[str, Any] = field(init=False)
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = self.x.dtype
        quickened(self.scheduler)
        takes = inspect.signature(self.scheduler.step).parameters
        self.options = {name: value for name, value in (("eta", 0.0), ("generator", self.source)) if name in takes}

    @property
    def steps(self) -> int:
        """Those that really run."""
        return len(self.scheduler.timesteps) - self.begin

    @property
    def t(self) -> Tensor:
        """The timestep where it is."""
        now: Tensor = self.scheduler.timesteps[self.begin + self.done]
        return now

    def seen(self) -> Tensor:
        """What the UNet sees: [rows, C (+ 3), h, w], in its own precision."""
        x = self.scheduler.scale_model_input(self.x, self.t).to(self.dtype)
        one = x if self.low is None else torch.cat([x, self.low], dim=1)
        return torch.cat([one] * len(self.embeds))

    def advance(self, predicted: Tensor) -> None:
        """One step of its scheduler.  predicted: [rows, C (+ C variance), h, w], the UNet's answer to `seen`."""
        self.moved(self.scheduler.step(self.guided(predicted), self.t, self.x, **self.options, return_dict=False)[0])

    def guided(self, predicted: Tensor) -> Tensor:
        """What the scheduler is told: [1, C (+ C variance), h, w], in the precision of x."""
        channels = self.x.shape[1]
        if self.mixer is not None:
            predicted = styled(predicted, self.mixer, channels)
        if len(predicted) == 2:
            predicted = guide(predicted, self.guidance, channels)
        if self.scheduler.config.get("variance_type") not in ("learned", "learned_range"):
            predicted = predicted[:, :channels]
        return predicted.to(self.x.dtype)

    def moved(self, x: Tensor) -> None:
        """Its step is done.  x: [1, C, h, w], what came of it."""
        self.x = x if self.mask is None else (1 - self.mask) * self.x + self.mask * x
        self.done += 1

    def given(self, blob: Blob) -> Bag | None:
        """What its stage gives, the picture as `blob`; None before the last step."""
        if self.done < self.steps:
            return None
        return {blob.name: to_blob(self.x[0].to(self.dtype)), RNG.name: to_blob(self.source.get_state())}


Predict = Callable[[Sequence[Draw]], Iterable[Tensor]]
"""The UNet's answer for each draw, in their order, [rows, C', h, w]; each may move on before the next is asked for."""


def exact(unet: Any) -> Predict:
    """Each draw in a call of its own, as its pipeline would."""

    def predict(draws: Sequence[Draw]) -> Iterator[Tensor]:
        for draw in draws:
            yield unet(draw.seen(), draw.t, encoder_hidden_states=draw.embeds, class_labels=draw.labels, return_dict=False)[0]

    return predict


Move = Callable[[Sequence[Draw], Iterable[Tensor]], None]
"""Takes each draw one step on by its answer of Predict."""


def each(draws: Sequence[Draw], answers: Iterable[Tensor]) -> None:
    """A Move: every draw by its own scheduler."""
    for draw, answer in zip(draws, answers, strict=True):
        draw.advance(answer)


class Pool:
    """The requests in hand, at whatever timestep each is.

    predict, move: see exact and each, pooled.Pooled and ddpm.together.  fine: keep x in fp32 even where the UNet computes in half
    precision.
    """

    def __init__(self, predict: Predict, move: Move = each, fine: bool = False) -> None:
        self._predict, self._move, self._fine = predict, move, fine
        self._draws: dict[str, Draw] = {}

    def admit(self, job: str, draw: Draw, saved: Bag | None = None) -> int:
        """How many steps it takes.  saved: it goes on from this checkpoint.  Foreign: which is none of it; it is not admitted."""
        if self._fine:
            draw.x = draw.x.float()
        if saved is not None:
            checkpoint.resume(draw, saved)
        self._draws[job] = draw
        return draw.steps

    def step(self, paused: Collection[str] = ()) -> list[tuple[str, Draw]]:
        """One step for each that is not paused; a finished one (done == steps) has left the pool.

        With nothing in hand no weights stay on the card that live in RAM, see offload.py.
        """
        hand = [(job, draw) for job, draw in self._draws.items() if job not in paused]
        with torch.no_grad():
            draws = [draw for _, draw in hand]
            self._move(draws, self._predict(draws))
        self._draws = {job: draw for job, draw in self._draws.items() if draw.done < draw.steps}
        self._rest()
        return hand

    def advance(self, blob: Blob, paused: Collection[str] = ()) -> list[Advance]:
        """`step`, for a stage whose last step is its picture, `blob`."""
        return [Advance(job, draw.done, draw.steps, draw.given(blob)) for job, draw in self.step(paused)]

    def save(self, job: str) -> Bag | None:
        """See checkpoint.saved; None also when it is not in the pool."""
        draw = self._draws.get(job)
        return None if draw is None else checkpoint.saved(draw)

    def drop(self, job: str) -> None:
        self._draws.pop(job, None)
        self._rest()

    def _rest(self) -> None:
        if not self._draws:
            offload.leave()
