"""A UNet's skinny Linear layers, evaluated for each request by itself: then, on a CPU, a batch changes no request's bits.

Skinny: those that see few rows of a request (the embeddings of timestep, noise level and text, and their way into every block),
where all other layers see many pixels or tokens.  For fewer than four rows MKL picks its kernel by their number; for all else a
CPU's kernels treat each row of a batch alike, as long as the request has two (measured: one thread, fp32, MKL with AVX512).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

FEW = 8  # rows of the smallest request; twice what was measured to matter
PROBED = 3  # how many requests a layer is tried with before it may take them all in one product


class Skinny:
    """The Linear layers of a UNet on a CPU."""

    def __init__(self, unet: Any) -> None:
        self._counts: tuple[int, ...] = ()
        self._rows = 0
        self._together: dict[tuple[int, int], bool] = {}
        # type, not isinstance: the quantised ones compute otherwise
        self._layers = [(vars(layer), partial(self._linear, layer)) for layer in unet.modules() if type(layer) is torch.nn.Linear]

    @contextmanager
    def apart(self, counts: Sequence[int]) -> Iterator[None]:
        """Within, the UNet's rows are so many of the first request, so many of the second ...; afterwards it is as it was."""
        self._counts, self._rows = tuple(counts), sum(counts)
        had = [layer.get("forward") for layer, _ in self._layers]
        for layer, forward in self._layers:
            layer["forward"] = forward
        try:
            yield
        finally:
            for (layer, _), before in zip(self._layers, had, strict=True):
                if before is None:
                    del layer["forward"]
                else:
                    layer["forward"] = before

    def _linear(self, layer: torch.nn.Linear, x: Tensor) -> Tensor:
        each = x.numel() // (self._rows * layer.in_features)  # rows that the layer sees of each row of the UNet
        if len(x) != self._rows or each * min(self._counts) > FEW:
            return functional.linear(x, layer.weight, layer.bias)
        flat, made, begin = x.reshape(self._rows * each, layer.in_features), [], 0
        for count, same in groupby(self._counts):  # neighbours with as many rows
            requests = len(list(same))
            end = begin + requests * count * each
            made.append(self._product(layer, flat[begin:end].reshape(requests, count * each, -1)).reshape(end - begin, -1))
            begin = end
        return torch.cat(made).reshape(*x.shape[:-1], layer.out_features)

    def _product(self, layer: torch.nn.Linear, x: Tensor) -> Tensor:
        """[requests, rows, in] -> [requests, rows, out], each request's bits those of its own `linear`."""
        if len(x) == 1:
            return functional.linear(x, layer.weight, layer.bias)
        key = (id(layer), x.shape[1])
        if key not in self._together:
            probe = torch.linspace(-1, 1, PROBED * x[0].numel(), dtype=x.dtype).sin().reshape(PROBED, *x.shape[1:])
            self._together[key] = torch.equal(_batched(layer, probe), _each(layer, probe))
        return (_batched if self._together[key] else _each)(layer, x)


def _each(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return torch.stack([functional.linear(one, layer.weight, layer.bias) for one in x])


def _batched(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    """The same in one call: MKL's batched product picks its kernel by the rows of one request."""
    weight = layer.weight.t().expand(len(x), -1, -1)
    if layer.bias is None:
        return torch.bmm(x, weight)
    return torch.baddbmm(layer.bias.expand(*x.shape[:2], -1), x, weight)
