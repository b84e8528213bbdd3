"""The contract between the mesh and a stage: what a worker process asks of the code that computes.

A worker calls `load` once, then `admit`, `step` and `save` from one thread.  A stage knows nothing of sockets, tokens or other stages.
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


DONE = "done"
"""Of a checkpoint, I64 [1]: the steps that are behind it.  What else is in one is known to its stage alone."""


class Foreign(ValueError):
    """This is no checkpoint of that job in this stage: without one it can be admitted all the same."""


def steps_done(saved: Bag, steps: int) -> int:
    """How many of a job's `steps` are behind this checkpoint: from 1 to steps - 1.  Foreign: of none such."""
    done = saved.get(DONE)
    if done is None or done.dtype != "I64" or tuple(done.shape) != (1,):
        raise Foreign(f"it lacks {DONE}, I64 [1]")
    made = int.from_bytes(done.data, "little", signed=True)
    if not 1 <= made < steps:
        raise Foreign(f"{DONE}: {made}; of {steps} steps it is from 1 to {steps - 1}")
    return made


def counted(steps: int) -> Tensor:
    """What a checkpoint holds as DONE."""
    return Tensor("I64", (1,), steps.to_bytes(8, "little"))


class Stage(Protocol):
    """One stage of the cascade, loaded once and asked many times."""

    slots: int
    """How many admitted jobs step together: 1 in exact mode.  More are admitted only when some of them pause."""

    def load(self, setup: Setup) -> str:
        """Load the weights (slow); the numeric class: equal strings promise equal bits.

        Raises Misconfigured when the checkpoint or device is not there, with what to do.
        """
        ...

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        """Take the job in; how many steps it takes from its beginning.  BadRequest: it can never work.

        saved: a checkpoint that a stage of the same numeric class has made of this job, from the same bag: it goes on from there, to the
        same bits.  It came over the wire and is checked like anything that did.  Foreign: it is none; then the job is not admitted.
        """
        ...

    def step(self, paused: Collection[str] = ()) -> Iterable[Advance]:
        """One step for each admitted job that is not paused.  An exception concerns all of them; the worker then drops them.

        paused: they stay as they are, and go on as if nothing had been: their bits are the same.
        """
        ...

    def save(self, job: str) -> Bag | None:
        """All that another needs, beside request and bag, to go on after the job's last step.  None: it would save nothing worth it."""
        ...

    def drop(self, job: str) -> None:
        """Forget the job, admitted or not."""
        ...


class Weighing(Stage, Protocol):
    """A stage that knows how much memory it will take: in swap that is asked before it is loaded, or else said in ifmesh.toml."""

    def weighs(self, setup: Setup) -> int:
        """Bytes of its weights in memory, without loading them.  Misconfigured as `load`."""
        ...
