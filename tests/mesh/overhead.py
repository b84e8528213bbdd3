"""What the mesh costs a job of one second: `python -m tests.mesh.overhead` prints it, with CURVE and without, with checkpoints and without.

Five toy stages of five steps of 40 ms.  The overhead of a job is what passes between the call that asks for it and its picture in the
client's hands beyond what its stages themselves took.  The meshes take turns, job by job, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click

from ifmesh import Client, Request
from ifmesh.request import STAGES
from tests.mesh.kit import Mesh

STEPS, STEP_MS = 5, 40
IDEAL = len(STAGES) * STEPS * STEP_MS / 1000
"""Seconds that the steps sleep: what is left of a stage's own time is its work, drawing and encoding."""
MODES = {
    "curve, no checkpoints": (True, 0),
    "curve, each step": (True, 1),
    "in the clear, no checkpoints": (False, 0),
    "in the clear, each step": (False, 1),
}
"""Is CURVE on, and services.STAGE.checkpoint_steps."""


def measure(client: Client, number: int) -> tuple[float, float]:
    """Seconds of one job: as its client sees it, and the sum of its stages."""
    began = time.monotonic()
    image = client.ask(Request("a red fox in the snow", number), f"overhead-{number}").result(120.0)
    took = time.monotonic() - began
    return took, sum(run.run_s for run in image.timings)


def figures(seen: list[tuple[float, float]]) -> dict[str, float]:
    over = sorted(took - stages for took, stages in seen)
    return {
        "jobs": len(seen),
        "latency_ms": round(1000 * statistics.median(took for took, _ in seen), 1),
        "stages_ms": round(1000 * statistics.median(stages for _, stages in seen), 1),
        "overhead_ms": round(1000 * statistics.median(over), 1),
        "overhead_ms_best": round(1000 * over[0], 1),
        "overhead_ms_p90": round(1000 * over[int(0.9 * (len(over) - 1))], 1),
        "overhead_of_stages": round(statistics.median((took - stages) / stages for took, stages in seen), 4),
        "beyond_the_steps": round(statistics.median(took for took, _ in seen) / IDEAL - 1, 4),
    }


@click.command()
@click.option("--jobs", default=20, show_default=True, help="Of each mesh, after two to warm up.")
def main(jobs: int) -> None:
    """Prints one JSON object."""
    seen: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clients: dict[str, Client] = {}
        for mode, (curve, saves) in MODES.items():
            settings: dict[str, str | int | float] = {"mesh.curve": str(curve).lower()}
            for stage in STAGES:
                settings |= {f"services.{stage}.options.steps": STEPS, f"services.{stage}.options.step_ms": STEP_MS}
                settings[f"services.{stage}.checkpoint_steps"] = saves
            mesh = stack.enter_context(Mesh(Path(folder) / str(len(clients)), settings))
            mesh.all()
            who: Path | Literal[False] = mesh.state / "keys" / "operator.key" if curve else False
            clients[mode] = stack.enter_context(Client(mesh.config.control(), identity=who))
            print(f"{mode}: up", file=sys.stderr)
        for number in range(-2, jobs):
            for mode, client in clients.items():
                one = measure(client, number + 2)
                if number >= 0:
                    seen[mode].append(one)
    told: dict[str, object] = {mode: figures(each) for mode, each in seen.items()}
    told["load_average"] = [round(before[0], 1), round(os.getloadavg()[0], 1)]
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
