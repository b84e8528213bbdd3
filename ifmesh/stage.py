"""The contract between the mesh and a stage: what a worker process asks of the code that computes.

A worker calls `load` once, then `admit` and `step` from one thread.  A stage knows nothing of sockets, tokens or other stages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ifmesh.request import Request


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as bytes.  dtype: safetensors' name (F32, F16, BF16, U8, I64 ...); data: C order, little endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


Bag = Mapping[str, Tensor]
"""Named tensors, as they travel.  What each is called and looks like is declared in `ifmesh.cascade`."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a stage is told when it is loaded.

    cascade: a folder, "if-xl", "if-l", "if-m", or "" for the built-in one.  device: "cpu", "cuda:0", ...  dtype: "fp32", "bf16",
    "fp16" or "" for the device's default.  threads: torch threads.  options: the stage's own section of ifmesh.toml.
    """

    cascade: str = ""
    device: str = "cpu"
    dtype: str = ""
    threads: int = 1
    options: Mapping[str, str | int | float | bool] | None = None


@dataclass(frozen=True, slots=True)
class Advance:
    """One job went one step further.  output: what the stage gives, without what rides along; set when it is done, which may be some
    turns after the last of `steps`."""

    job: str
    step: int
    steps: int
    output: Bag | None = None


class Stage(Protocol):
    """One stage of the cascade, loaded once and asked many times."""

    slots: int
    """How many admitted jobs step together: 1 in exact mode.  More are admitted only when some of them pause."""

    def load(self, setup: Setup) -> str:
        """Load the weights (slow); the numeric class: equal strings promise equal bits.

        Raises Misconfigured when the checkpoint or device is not there, with what to do.
        """
        ...

    def admit(self, job: str, request: Request, bag: Bag) -> int:
        """Take the job in; how many steps it will take.  BadRequest: it can never work."""
        ...

    def step(self, paused: Collection[str] = ()) -> Iterable[Advance]:
        """One step for each admitted job that is not paused.  An exception concerns all of them; the worker then drops them.

        paused: they stay as they are, and go on as if nothing had been: their bits are the same.
        """
        ...

    def drop(self, job: str) -> None:
        """Forget the job, admitted or not."""
        ...
