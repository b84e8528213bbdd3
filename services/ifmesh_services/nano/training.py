"""The loop: from a seed or a checkpoint, until time is up."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ifmesh_services.nano import state
from ifmesh_services.nano.batches import CHOSEN, Batch
from ifmesh_services.nano.losses import MOST
from ifmesh_services.nano.part import Averaged, Models, Part

WARM = 200  # steps in which the learning rate rises
LEVEL = 4000  # steps after which it falls, as 1 / sqrt(step)
MATTER = ("seed", "rate", "precision", "device", "told", "most", "focus")  # to the weights
MEAN = 20  # steps of which the log gives the mean


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    told: how many captions leave nothing out; the less a caption leaves open, the sooner a stage learns what its words mean.
    most: the greatest weight of a timestep, see losses.weights.  focus, band: of Stage I and II, how many of the timesteps lie in that
    band, 0 to 1000; evenly spread, those in which the text chooses the shape and the colours are few.
    steps: the step at which to stop, counted from the very first; seconds: for how long; whichever comes first.  every, sheets: seconds
    between two checkpoints and between two sheets of samples; they change no weights.  Those that change them may be others when a
    training goes on; the state keeps what was when.
    """

    seed: int = 0
    batch: int = 0
    rate: float = 1e-3
    told: float = 0.0
    most: float = MOST
    focus: float = 0.0
    band: tuple[int, int] = CHOSEN
    precision: str = "fp32"
    device: str = "cpu"
    steps: int = 1 << 40
    seconds: float = float("inf")
    every: float = 180.0
    sheets: float = 1800.0


class Training:
    """One part in training, in a folder: state.safetensors (weights, their mean, the optimiser's state), log.jsonl, samples/."""

    def __init__(self, part: Part, folder: Path, plan: Plan) -> None:
        self._part, self._folder, self._plan = part, folder, plan
        self._device = torch.device(plan.device)
        self._step = 0
        self._spent = 0.0  # seconds, all in all
        self._history: list[dict[str, Any]] = []

    def run(self) -> int:
        """Train, from the checkpoint if there is one; the number of steps taken, all in all."""
        plan, part = self._plan, self._part
        (self._folder / "samples").mkdir(parents=True, exist_ok=True)
        torch.manual_seed(plan.seed)
        self._models: Models = {name: laid(model.eval().to(self._device)) for name, model in part.models().items()}  # eval: no dropout
        self._mean = Averaged(self._models)
        parameters = [p for model in self._models.values() for p in model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01)
        self._resume()
        begun = saved = shown = told = time.monotonic()
        losses: list[tuple[float, float]] = []
        size = plan.batch or part.size
        while self._step < plan.steps and time.monotonic() - begun < plan.seconds:
            losses.append(self._one(parameters, Batch(part.name, plan.seed, self._step, size, plan.told, plan.most, plan.focus, plan.band)))
            now = time.monotonic()
            if len(losses) == MEAN:
                self._log(losses, (now - told) / MEAN)
                losses, told = [], now
            if now - saved > plan.every:
                self._save(now - saved)
                saved = now
            if now - shown > plan.sheets:
                self._show()
                shown = told = time.monotonic()
        self._save(time.monotonic() - saved)
        if plan.sheets < float("inf"):
            self._show()
        return self._step

    def _one(self, parameters: list[torch.nn.Parameter], batch: Batch) -> tuple[float, float]:
        for group in self._optimiser.param_groups:
            group["lr"] = self._plan.rate * min(1.0, (self._step + 1) / WARM, (LEVEL / (self._step + 1)) ** 0.5)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._plan.precision == "bf16"):
            loss, plain = self._part.loss(self._models, batch, self._device)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self._optimiser.step()
        self._mean.take(self._models, self._step)
        self._step += 1
        return float(loss.detach()), plain

    def _resume(self) -> None:
        """From the state, or what part.packed made of it: then the averaged weights are all there is."""
        path = self._folder / state.FILE
        if path.exists():
            known = state.read(path, str(self._device))
            for models, stored in ((self._models, known.get("models") or known["averaged"]), (self._mean.models, known["averaged"])):
                for name, model in models.items():
                    model.load_state_dict(stored[name])
            if of := known.get("optimiser"):
                self._optimiser.load_state_dict({**of, "state": {int(number): moments for number, moments in of["state"].items()}})
            self._step, self._spent, self._history = known["step"], known["seconds"], known["history"]
        matter: dict[str, Any] = {key: value for key, value in asdict(self._plan).items() if key in MATTER}
        matter["band"] = list(self._plan.band)  # as JSON has it
        matter |= {"batch": self._plan.batch or self._part.size, "side": self._part.side, "threads": torch.get_num_threads()}
        if not self._history or {key: self._history[-1].get(key) for key in matter} != matter:
            self._history.append({"from": self._step, **matter})

    def _save(self, seconds: float) -> None:
        """Whole or not at all, whenever the process dies."""
        self._spent += seconds
        known = {
            "step": self._step,
            "seconds": self._spent,
            "history": self._history,
            "models": {name: model.state_dict() for name, model in self._models.items()},
            "averaged": {name: model.state_dict() for name, model in self._mean.models.items()},
            "optimiser": self._optimiser.state_dict(),
        }
        state.write(self._folder / state.FILE, known)

    def _log(self, losses: list[tuple[float, float]], pace: float) -> None:
        loss, plain = (sum(each) / len(losses) for each in zip(*losses, strict=True))
        line = {"step": self._step, "loss": round(loss, 5), "error": round(plain, 5), "seconds_per_step": round(pace, 3)}
        with open(self._folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{self._part.name} {line}", flush=True)

    def _show(self) -> None:
        with torch.no_grad():
            made = self._part.sample(self._mean.models)
        if made is not None:
            made.save(self._folder / f"samples/{self._step:06d}.png")


def laid(model: Any) -> Any:
    """Channels last: a step of Stage I takes 0.77 of its time on a CPU."""
    return model.to(memory_format=torch.channels_last)
