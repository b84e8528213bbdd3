"""A part of the cascade in training, and its averaged copy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ifmesh_services.nano import state
from ifmesh_services.nano.batches import Batch

Models = dict[str, Any]  # by name: what is trained together


class Part(Protocol):
    """side: of the pictures it looks at while it trains, in pixels.  size: of a batch, unless another is asked for."""

    name: str
    side: int
    size: int

    def models(self) -> Models:
        """Made anew; torch's seed decides."""
        ...

    def loss(self, models: Models, batch: Batch, device: torch.device) -> tuple[Tensor, float]:
        """What is to become less, and a number for the log."""
        ...

    def sample(self, models: Models) -> Image.Image | None:
        """A sheet of pictures, always of the same captions and noise; None: there is nothing to be seen."""
        ...


class Averaged:
    """The running mean of the models' weights (EMA), which is what is kept: it draws better than any of them."""

    def __init__(self, models: Models, most: float = 0.999) -> None:
        self.models: Models = {name: copy.deepcopy(model).eval().requires_grad_(False) for name, model in models.items()}
        self._most = most

    @torch.no_grad()
    def take(self, models: Models, step: int) -> None:
        """step: how many have been taken before; the first count for less."""
        share = 1 - min(self._most, (1 + step) / (10 + step))
        for name, model in models.items():
            mean = list(self.models[name].parameters())
            torch._foreach_lerp_(mean, list(model.parameters()), share)


def trained(out: Path, name: str) -> dict[str, dict[str, Tensor]]:
    """The averaged weights of a part that has been trained in `out`, by model.  FileNotFoundError."""
    path = out / name / state.FILE
    if not path.exists():
        raise FileNotFoundError(f"{path}: train {name} first: python -m ifmesh_services.nano.train {name} --out {out}")
    averaged: dict[str, dict[str, Tensor]] = state.read(path)["averaged"]
    return averaged


def packed(out: Path, name: str, to: Path) -> None:
    """The state of a part as small as training can go on from: the averaged weights in half precision, and no optimiser's memory.

    to: a folder as `out`.  FileNotFoundError: the part has not been trained.
    """
    known = state.read(out / name / state.FILE)
    halves = {model: {key: _half(tensor) for key, tensor in weights.items()} for model, weights in known["averaged"].items()}
    (to / name).mkdir(parents=True)
    kept = {key: known[key] for key in ("step", "seconds", "history")}
    state.write(to / name / state.FILE, {**kept, "averaged": halves})


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
