"""What is measured, and on what: the cascade's folder for as long as a benchmark takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ifmesh.errors import Misconfigured
from ifmesh.stage import Setup

from .. import precision
from ..nano import builder
from . import published

SMALL = "nano16"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `ifmesh bench` was asked for; 0 and "": the usual.

    cascade: a folder, "if-xl" ..., "" for the built-in one, or "nano16": the same with a quarter of the side.  real: "if-xl", "if-l" or
    "if-m": the published configurations with random weights, instead.  device: "auto" is a card where there is one.  steps: of each
    request.  rounds: at most, of each measurement.  seconds: that it may take before no further round begins.
    """

    cascade: str = SMALL
    real: str = ""
    stages: tuple[str, ...] = ("encoder", "stage_one", "stage_two", "upscaler")
    requests: tuple[int, ...] = (1, 2, 4, 8, 16)
    steps: int = 0
    device: str = "auto"
    dtype: str = ""
    threads: int = 1
    compile: bool = False
    rounds: int = 5
    seconds: float = 3.0

    @property
    def chosen(self) -> str:
        """The device.  Misconfigured: it is not there."""
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        precision.check_device(self.device if self.device != "auto" else auto)
        return auto if self.device == "auto" else self.device

    @property
    def taken(self) -> int:
        """Steps."""
        return self.steps or (3 if self.chosen == "cpu" else 20)

    @property
    def name(self) -> str:
        return f"{self.real}, random weights" if self.real else self.cascade or "nano"


@contextmanager
def setup(wanted: Wanted, cascade: str | None = None) -> Iterator[Setup]:
    """How its stages are loaded; what is built for it is gone afterwards.  cascade: another than the one that is wanted.

    Misconfigured: the real sizes, no card, and nobody said that the CPU is meant.
    """
    device, cascade = wanted.chosen, wanted.cascade if cascade is None else cascade
    with TemporaryDirectory(prefix="ifmesh-bench-") as above:
        folder = Path(above) / "cascade"
        if wanted.real:
            check_real(wanted)
            dtypes = {stage: precision.dtype_of(Setup(device=device, dtype=wanted.dtype), stage == "encoder") for stage in wanted.stages}
            published.build(folder, published.CASCADES[wanted.real], dtypes, device)
            cascade = str(folder)
        elif cascade == SMALL:
            builder.build(folder, base=16)
            cascade = str(folder)
        yield Setup(cascade, device, wanted.dtype, wanted.threads)


def check_real(wanted: Wanted) -> None:
    if wanted.device == "auto" and wanted.chosen == "cpu":
        size = published.size(wanted.real, wanted.stages, 4) / 1e9
        raise Misconfigured(
            f"--real {wanted.real}: torch sees no card here, and on a CPU each step of the real sizes takes seconds to minutes; "
            f"--device cpu if that is meant ({size:.1f} GB of weights in fp32, on disk and in memory)"
        )
