"""Dynamic thresholding without a full sort: the bits of diffusers' schedulers, a tenth of the time.

Imagen's rule (https://arxiv.org/abs/2205.11487, section 2.3): s is a high quantile of a picture's absolute values, at least 1; the
picture is cut to [-s, s] and divided by s.  torch.quantile sorts all values for it; only those above the quantile need to be found.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

LOWEST = 0.75  # below this ratio a selection is no faster than the sort


def quickened(scheduler: Any) -> Any:
    """The scheduler itself, with a quick threshold of its own; untouched where it has none, or another formula than DDPMScheduler's.

    scheduler: the request's own: a copy made afterwards would threshold by the configuration of this one.
    """
    own = getattr(type(scheduler), "_threshold_sample", None)
    if scheduler.config.get("thresholding") and own is not None and _same(own, DDPMScheduler._threshold_sample):
        scheduler._threshold_sample = partial(_of, scheduler)
    return scheduler


def threshold(sample: Tensor, ratio: float, most: float) -> Tensor:
    """The samples cut to [-s, s] and divided by s, which is each one's own: its quantile `ratio`, at least 1 and at most `most`.

    sample: [B, ...], any float dtype -> the same.  A sample that holds a NaN becomes NaN throughout.
    """
    flat = sample.reshape(len(sample), -1)
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.float()
    # Where s cannot leave 1 (IF's Stage II) finite values need no quantile.  Not on a card: to look at a value means to wait for it.
    sizes = flat.abs()
    if most == 1 and flat.device.type == "cpu" and bool(sizes.amax().isfinite()):
        return torch.clamp(flat, -1, 1).reshape(sample.shape).to(sample.dtype)
    s = quantile(sizes, ratio)[:, None]
    s = torch.clamp(s, min=1, max=most)
    return (torch.clamp(flat, -s, s) / s).reshape(sample.shape).to(sample.dtype)


def quantile(values: Tensor, ratio: float) -> Tensor:
    """torch.quantile(values, ratio, dim=1) to the bit.  values: [B, N], fp32 or fp64 -> [B].

    Only the values from the quantile up are selected; below LOWEST it is torch's own.
    """
    last = values.shape[1] - 1
    rank = torch.tensor(ratio, dtype=values.dtype) * last  # rounded as torch rounds it
    below = int(rank)
    if ratio < LOWEST or last < 1:
        return torch.quantile(values, ratio, dim=1)
    top = values.topk(last + 1 - below, dim=1, sorted=False).values  # a NaN counts as the greatest
    least = top.topk(min(2, top.shape[1]), dim=1, largest=False).values
    above = least[:, -1] if rank > below else least[:, 0]
    made = torch.lerp(least[:, 0], above, (rank - below).to(values.device))
    peak = top.amax(dim=1)
    return torch.where(peak.isnan(), peak, made)


def _of(scheduler: Any, sample: Tensor) -> Tensor:
    return threshold(sample, scheduler.config.dynamic_thresholding_ratio, scheduler.config.sample_max_value)


def _same(one: Any, other: Any) -> bool:
    """The same code, whatever its docstring: diffusers copies the method from scheduler to scheduler."""
    a, b = one.__code__, other.__code__
    return (a.co_code, a.co_names, a.co_consts[1:]) == (b.co_code, b.co_names, b.co_consts[1:])
