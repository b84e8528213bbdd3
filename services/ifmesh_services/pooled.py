"""Requests at different timesteps share one UNet call: what it takes, what it gives up, and how to say so.

Options of a drawing stage (services.STAGE.options of ifmesh.toml):

mode    "exact" (default): each request in UNet calls of its own, the bits of diffusers' pipelines.  "pooled": one call for all.
slots   how many requests step together; default 1, pooled 8.
rows    pooled only: every call has exactly so many rows (a guided request has two), filled up with dummies and split when there
        are more; 0 (default): as many as there are.

What pooled gives up, on a CPU in fp32 (measured): guided requests keep the bits of exact (skinny.py); one without guidance differs in
the last bits, by its neighbours, unless `rows` is set: then its bytes are always the same, but not those of exact.  On a card all may
differ in the last bits (on a CPU, without that care: 1e-5 in Stage I, 2e-4 in Stage II, 0.2 there for lists from timestep 999), and
`rows` is meant to make them independent of the neighbours; `ifmesh bench tolerance` measures it.  In half precision the pool keeps x in
fp32 and casts at the UNet's door, where exact follows the scheduler's own arithmetic: other last bits, and finer ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ifmesh import modes
from ifmesh.errors import Misconfigured

from .ddpm import together
from .denoising import Draw, Pool, Predict, exact
from .skinny import Skinny

MODES = ("exact", "pooled")
OPTIONS = ("mode", "slots", "rows")
SLOTS = 64  # at most
ROWS = (4, 256)  # 4: no request has more


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a stage's requests step: see the module's docstring."""

    mode: str = "exact"
    slots: int = 1
    rows: int = 0

    @classmethod
    def read(cls, stage: str, options: Mapping[str, object] | None, beside: Sequence[str] = ()) -> Pooling:
        """From the stage's options.  beside: names of others that the stage knows.  Misconfigured: key, value, remedy."""
        options = options or {}
        where = f"services.{stage}.options"
        for key in options:
            if key not in (*OPTIONS, *beside):
                near = get_close_matches(key, (*OPTIONS, *beside), 1, cutoff=0.0)
                raise Misconfigured(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
        mode = options.get("mode", "exact")
        if not isinstance(mode, str) or mode not in MODES:
            raise Misconfigured(f"{where}.mode: {mode!r}: {' or '.join(MODES)}")
        slots, rows = (_whole(where, key, options.get(key, usual)) for key, usual in (("slots", modes.SLOTS[mode]), ("rows", 0)))
        if not 1 <= slots <= SLOTS:
            raise Misconfigured(f"{where}.slots: {slots}: from 1 to {SLOTS}")
        if rows and mode == "exact":
            raise Misconfigured(f'{where}.rows: {rows}: only with mode = "pooled"; in exact mode no request shares a call')
        if rows and not ROWS[0] <= rows <= ROWS[1]:
            raise Misconfigured(f"{where}.rows: {rows}: from {ROWS[0]} to {ROWS[1]}, or 0 for as many as there are")
        return cls(mode, slots, rows)

    @property
    def numeric(self) -> str:
        """What it adds to the numeric class.  Without fixed rows equal classes promise no equal bits, and say so."""
        return modes.numeric(self.mode, self.rows)

    def pool(self, unet: Any) -> Pool:
        """The stage's pool."""
        if self.mode == "exact":
            return Pool(exact(unet))
        return Pool(Pooled(unet, self.rows, Skinny(unet) if unet.device.type == "cpu" else None), together, fine=True)


class Pooled:
    """A Predict: one UNet call for all draws of the same shapes, however far each is.

    rows: of every call, see the module's docstring; 0: any.  skinny: of this UNet, or None.
    """

    def __init__(self, unet: Any, rows: int = 0, skinny: Skinny | None = None) -> None:
        self._unet, self._rows, self._skinny = unet, rows, skinny
        self._alone: Predict = exact(unet)

    def __call__(self, draws: Sequence[Draw]) -> list[Tensor]:
        made: dict[int, Tensor] = {}
        for bucket in _buckets(draws):
            for part in self._parts(bucket):
                alone = len(part) == 1 and not self._rows
                made |= zip(map(id, part), self._alone(part) if alone else self._call(part), strict=True)
        return [made[id(draw)] for draw in draws]

    def _parts(self, bucket: Sequence[Draw]) -> Iterator[list[Draw]]:
        """As many requests as fit into the fixed rows, no request torn."""
        part: list[Draw] = []
        filled = 0
        for draw in bucket:
            if part and self._rows and filled + len(draw.embeds) > self._rows:
                yield part
                part, filled = [], 0
            part.append(draw)
            filled += len(draw.embeds)
        yield part

    def _call(self, draws: Sequence[Draw]) -> Sequence[Tensor]:
        """One UNet call."""
        counts = [len(draw.embeds) for draw in draws]
        spare = max(0, self._rows - sum(counts))
        seen = _filled([draw.seen() for draw in draws], spare)
        embeds = _filled([draw.embeds for draw in draws], spare)
        labels = None if draws[0].labels is None else _filled([draw.labels for draw in draws if draw.labels is not None], spare)
        t = torch.stack([draw.t for draw in draws]).repeat_interleave(torch.tensor(counts))
        t = _filled([t], spare).to(seen.device)
        grouped = [*counts, spare] if spare else counts
        with self._skinny.apart(grouped) if self._skinny and len(grouped) > 1 else nullcontext():
            answer: Tensor = self._unet(seen, t, encoder_hidden_states=embeds, class_labels=labels, return_dict=False)[0]
        return torch.split(answer, grouped)[: len(draws)]


def _buckets(draws: Sequence[Draw]) -> list[list[Draw]]:
    """Those that can share a call; within, those with most rows first, so that equals are neighbours."""
    made: dict[object, list[Draw]] = {}
    for draw in sorted(draws, key=lambda draw: -len(draw.embeds)):
        low = None if draw.low is None else draw.low.shape
        key = (draw.x.shape, low, draw.embeds.shape[1:], draw.labels is None, draw.t.dtype)
        made.setdefault(key, []).append(draw)
    return list(made.values())


def _filled(parts: Sequence[Tensor], spare: int) -> Tensor:
    """The parts, one below the other, and so many rows of zeros.  A dummy's answer is never looked at."""
    parts = [*parts, parts[0].new_zeros(spare, *parts[0].shape[1:])] if spare else parts
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _whole(where: str, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Misconfigured(f"{where}.{key}: {value!r}: a whole number")
    return value
