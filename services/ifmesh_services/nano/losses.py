"""What training lessens."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 60.0  # the greatest weight of a timestep, unless another is asked for


def tables(alphas: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of picture and noise at each timestep, [B, 1, 1, 1].  alphas: the scheduler's alphas_cumprod."""
    kept = alphas.to(t.device)[t].reshape(-1, 1, 1, 1)
    return kept, 1 - kept


def weights(alphas: Tensor, t: Tensor, most: float = MOST) -> Tensor:
    """[B, 1, 1, 1], clamp((1 - abar) / abar, 1, most).

    The error of the predicted noise is that of the predicted picture by sqrt(abar / (1 - abar)).  Unweighted, the first steps, which
    choose the colours, count for next to nothing, and pictures come out pale.  Where the colours are learnt, a smaller `most` lets the
    later steps be heard, which choose the shapes: of what a caption leaves open the first can learn no more.
    """
    kept, lost = tables(alphas, t)
    return (lost / kept).clamp(1, most)


def hybrid(
    alphas: Tensor, t: Tensor, x: Tensor, clean: Tensor, noise: Tensor, predicted: Tensor, most: float = MOST
) -> tuple[Tensor, Tensor]:
    """The loss, and for the log the plain squared error of the noise; both of no dimension.

    x: [B, C, h, w], noised to t; predicted: [B, 2C, h, w], noise and the place of the variance between its bounds, -1 to 1.  Source of
    the second term: https://arxiv.org/abs/2102.09672, section 3.1; it does not move the mean.
    """
    predicted = predicted.float()
    eps, place = predicted.chunk(2, dim=1)
    squared = (eps - noise).square()
    kept, lost = tables(alphas, t)
    before = torch.where(t > 0, alphas.to(t.device)[(t - 1).clamp(min=0)], 1.0).reshape(-1, 1, 1, 1)
    beta = 1 - kept / before
    low = ((1 - before) / lost * beta).clamp(min=1e-20).log()
    high = beta.log()
    share = (place + 1) / 2
    spread = share * high + (1 - share) * low
    # the two means differ only by what x0 counts for in them; of its error, the noise's by sqrt(lost / kept)
    apart = (before.sqrt() * beta / lost).square() * squared.detach() * lost / kept
    divergence = 0.5 * (spread - low + torch.exp(low - spread) - 1 + apart * torch.exp(-spread))
    first = (t > 0).float().reshape(-1, 1, 1, 1)  # timestep 0 adds no noise: its variance is never asked for
    return (weights(alphas, t, most) * squared).mean() + (divergence * first).mean(), squared.mean().detach()
