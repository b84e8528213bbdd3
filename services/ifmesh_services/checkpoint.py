"""What it takes to go on with a request after any step, in another process of the same numeric class, to the same bits.

The noisy picture, the state of its noise source, how many steps are done, and what its scheduler remembers of them.  All else (list of
timesteps, embeddings, mask, low resolution) is made anew from request and bag, which draws the same noise again; then the state is put
back.  A checkpoint comes over the wire: it must hold exactly what this draw would have saved at that step, in names, dtypes and shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler

from ifmesh.cascade import RNG, Blob
from ifmesh.stage import DONE, Bag, Foreign, counted, steps_done

from . import generators
from .tensors import name_of, take, to_blob

if TYPE_CHECKING:
    from .denoising import Draw

X, SAMPLE, OUTPUT = "x", "sample", "output"
FORGETFUL = (DDPMScheduler, DDIMScheduler)  # each step follows from x alone
SOLVERS = (DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler)


def saved(draw: Draw) -> Bag | None:
    """The draw, as it is after its last step.  None: it has taken none yet, or its scheduler is of a kind that is not known here."""
    if not draw.done or type(draw.scheduler) not in (*FORGETFUL, *SOLVERS):
        return None
    tensors = {X: draw.x, **_memory(draw.scheduler)}
    state = {RNG.name: to_blob(draw.source.get_state()), DONE: counted(draw.done)}
    return state | {name: to_blob(tensor) for name, tensor in tensors.items()}


def resume(draw: Draw, bag: Bag) -> None:
    """Take a draw that has just been made on to where it was saved.  Foreign: that is no checkpoint of it; the draw is then spoilt."""
    done = steps_done(bag, draw.steps)
    blobs = [Blob(name, tuple(draw.x.shape), name_of(draw.x.dtype)) for name in (X, *_remembered(draw.scheduler, done))]
    if bag.keys() != (names := {DONE, RNG.name, *(blob.name for blob in blobs)}):
        raise Foreign(f"after step {done} it holds exactly {', '.join(sorted(names))}")
    try:
        state = take(bag, RNG)
        tensors = {blob.name: take(bag, blob).to(draw.x.device) for blob in blobs}
    except ValueError as error:
        raise Foreign(str(error)) from None
    if not generators.sound(state):
        raise Foreign(f"{RNG.name}: no state of a CPU torch.Generator")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise Foreign("it holds values that are no numbers")
    draw.source.set_state(state)
    draw.x, draw.done = tensors.pop(X), done
    _recall(draw, tensors)


def _memory(scheduler: Any) -> dict[str, torch.Tensor]:
    """What the next step of a solver looks back at: the newest pictures of the end that it was told, of which a step drops the oldest
    before it looks; and, of a singlestep solver, where its present stride began."""
    if type(scheduler) not in SOLVERS:
        return {}
    told = [output for output in scheduler.model_outputs[1:] if output is not None]
    made = {f"{OUTPUT}{n}": output for n, output in enumerate(told)}
    return made if (begun := getattr(scheduler, "sample", None)) is None else made | {SAMPLE: begun}


def _remembered(scheduler: Any, done: int) -> list[str]:
    """The names of `_memory` after so many steps."""
    if type(scheduler) in FORGETFUL:
        return []
    if type(scheduler) not in SOLVERS:
        raise Foreign(f"nothing is saved of a {type(scheduler).__name__}")
    told = [f"{OUTPUT}{n}" for n in range(min(done, scheduler.config.solver_order - 1))]
    return [*told, SAMPLE] if type(scheduler) is DPMSolverSinglestepScheduler else told


def _recall(draw: Draw, memory: dict[str, torch.Tensor]) -> None:
    """memory: as `_memory` gave it."""
    own = draw.scheduler
    if type(own) not in SOLVERS:
        return
    if SAMPLE in memory:
        own.sample = memory.pop(SAMPLE)
    order = own.config.solver_order
    told = [memory[name] for name in sorted(memory)]
    own.model_outputs = [None] * (order - len(told)) + told
    own.lower_order_nums = min(draw.done, order)
    own._step_index = draw.begin + draw.done
