"""One DDPM step for many requests at once, each at its own timestep; in fp32 on a CPU the bits of diffusers' DDPMScheduler.step.

A scheduler's own step is about a hundred small operations for each request: on a card, with many requests, as many as a UNet call.
Here they are shared.  Numbers are those of https://arxiv.org/abs/2006.11239: x0 from the predicted noise by (15), the mean and the
variance by (7), both bounded as in (15) of https://arxiv.org/abs/2102.09672 where the UNet predicts the variance ("learned_range").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from .denoising import Draw
from .threshold import threshold

SAME = (  # of a scheduler's configuration: what requests that step together have in common
    "prediction_type",
    "variance_type",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "clip_sample",
    "clip_sample_range",
)
VARIANCES = ("learned_range", "fixed_small")
LEAST = 1e-20  # a variance whose logarithm is taken


def together(draws: Sequence[Draw], answers: Iterable[Tensor]) -> None:
    """A denoising.Move: DDPM's in one step for all that differ only in timestep and noise; of other kinds each by its own scheduler."""
    kin: dict[object, list[tuple[Draw, Tensor]]] = {}
    for draw, answer in zip(draws, answers, strict=True):
        if covered(draw):
            config = draw.scheduler.config
            key = (draw.x.shape, *(config[name] for name in SAME))
            kin.setdefault(key, []).append((draw, draw.guided(answer)))
        else:
            draw.advance(answer)
    for alike in kin.values():
        moved = [draw for draw, _ in alike]
        for draw, x in zip(moved, torch.split(stepped(moved, torch.cat([told for _, told in alike])), 1), strict=True):
            draw.moved(x)


def covered(draw: Draw) -> bool:
    """Is its step the one that is written here?"""
    known = draw.scheduler.config.get("variance_type") in VARIANCES and type(draw.scheduler) is DDPMScheduler
    return known and draw.x.dtype == torch.float32


def stepped(draws: Sequence[Draw], told: Tensor) -> Tensor:
    """[B, C, h, w], each one's x after its step.  told: [B, C (+ C variance), h, w], see Draw.guided."""
    x, config = torch.cat([draw.x for draw in draws]), draws[0].scheduler.config
    predicted, spread = told[:, : x.shape[1]], told[:, x.shape[1] :]  # the latter empty where the variance is fixed
    a, b, of_x0, of_x, low, high = _coefficients(draws).to(x.device)

    x0 = _x0(config.prediction_type, x, predicted, a, b)
    if config.thresholding:
        x0 = threshold(x0, config.dynamic_thresholding_ratio, config.sample_max_value)
    elif config.clip_sample:
        x0 = x0.clamp(-config.clip_sample_range, config.clip_sample_range)
    mean: Tensor = of_x0 * x0 + of_x * x

    if config.variance_type == "learned_range":
        share = (spread + 1) / 2
        deviation = torch.exp(0.5 * (share * high + (1 - share) * low))
    else:
        deviation = low
    noisy = [int(draw.t) > 0 for draw in draws]  # timestep 0 adds no noise, and draws none
    away = deviation * _noise(draws, noisy, x)
    if not all(noisy):
        away = torch.where(torch.tensor(noisy, device=x.device).reshape(-1, 1, 1, 1), away, 0)
    return mean + away


def _x0(kind: str, x: Tensor, predicted: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The picture as it looks from here.  a, b: roots of the shares of picture and noise in x."""
    match kind:
        case "epsilon":
            predicted = (x - b * predicted) / a
        case "v_prediction":
            predicted = a * x - b * predicted
    return predicted


def _coefficients(draws: Sequence[Draw]) -> Tensor:
    """[6, B, 1, 1, 1], by the schedulers' tables: roots of the shares of picture and noise in x; what x0 and x count for in the mean;
    the bounds of the variance's logarithm, lower and upper (its root in place of the lower one where it is fixed)."""
    tables: list[Any] = [draw.scheduler for draw in draws]
    nows = [int(draw.t) for draw in draws]
    befores = [int(table.previous_timestep(t)) for table, t in zip(tables, nows, strict=True)]
    alpha = torch.stack([table.alphas_cumprod[t] for table, t in zip(tables, nows, strict=True)])
    alpha_before = torch.stack([table.alphas_cumprod[t] if t >= 0 else table.one for table, t in zip(tables, befores, strict=True)])
    beta, beta_before, kept = 1 - alpha, 1 - alpha_before, alpha / alpha_before
    lost = 1 - kept
    variance = (beta_before / beta * lost).clamp(min=LEAST)
    low = variance.log() if tables[0].config.variance_type == "learned_range" else variance**0.5
    made = [alpha**0.5, beta**0.5, alpha_before**0.5 * lost / beta, kept**0.5 * beta_before / beta, low, lost.log()]
    return torch.stack(made).reshape(len(made), len(draws), 1, 1, 1)


def _noise(draws: Sequence[Draw], noisy: Sequence[bool], like: Tensor) -> Tensor:
    """[B, C, h, w], from each one's own source, on the CPU; zeros where there is none."""
    made = torch.zeros(like.shape)
    for row, draw in enumerate(draws):
        if noisy[row]:
            torch.randn((1, *like.shape[1:]), generator=draw.source, out=made[row : row + 1])
    return made.to(like.device)
