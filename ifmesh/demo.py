"""`ifmesh demo`: a mesh of its own, one prompt, the pictures of all stages, and everything taken down again.

Nothing is left, however it ends: see own.py; and at the death of the parent (`make`) the kernel sends SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from ifmesh import screen
from ifmesh.errors import MeshError
from ifmesh.own import Own
from ifmesh.protocol import Finished, Progress, Queued, Started
from ifmesh.request import STAGES

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from ifmesh.client import Job
    from ifmesh.image import Image

PROMPT = "a large yellow star on a blue background"
SEED = 7
NAMES = {"stage_one": "64.png", "stage_two": "256.png", "upscaler": "1024.png"}
PR_SET_PDEATHSIG = 1


def run(out: Path, prompt: str | None, cascade: str, toy: bool) -> int:
    """Write 64.png, 256.png, 1024.png and sheet.png into `out`; the exit code.  Call it in the main thread."""
    from ifmesh.cli_up import BANNER

    began = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MeshError(f"{out}: {error.strerror}") from None
    if not toy and not cascade:
        screen.say(BANNER, "yellow")
    made: dict[str, object] = {**({"cascade.toy": True} if toy else {}), **({"cascade.path": cascade} if cascade else {})}
    try:
        with _ending_with_parent(), Own({**made, "mesh.drain": 5.0}) as mesh:
            with _Board() as board, mesh.ready(board.look).client() as client:
                ready = time.monotonic()
                job = client.submit(prompt or PROMPT, seed=SEED)
                board.follow(job)
                image = job.result()
            took = time.monotonic() - ready
            for stage, name in NAMES.items():
                (image if stage == image.stage else image.stages[stage]).save(out / name)
            image.sheet().save(out / "sheet.png")
            _report(image, took)
    except KeyboardInterrupt:
        screen.say("interrupted")
        return 130
    screen.tell(f"pictures: {', '.join(str(out / name) for name in (*NAMES.values(), 'sheet.png'))}")
    screen.say(f"{time.monotonic() - began:.1f} s in all ({ready - began:.1f} s until every stage was ready); no process is left")
    return 0


@contextlib.contextmanager
def _ending_with_parent() -> Iterator[None]:
    """SIGTERM and SIGHUP are as Ctrl-C, and the parent's death is a SIGTERM."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    parent = os.getppid()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    _die_with_parent(signal.SIGTERM)
    try:
        if os.getppid() != parent:  # it died before the kernel was told
            raise KeyboardInterrupt
        yield
    finally:
        _die_with_parent(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_parent(number: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


# ---- what is seen


class _Board:
    """A line for each stage: live on a terminal, else one more line for each change."""

    def __init__(self) -> None:
        self._console = screen.stderr()
        self._told: dict[str, str] = {}
        self._bars: Bars | None = None
        self._rows: dict[str, TaskID] = {}
        self._since: dict[str, float] = {}
        self._seen: dict[str, float] = {}  # seconds until the stage's picture was here

    def __enter__(self) -> _Board:
        if self._console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = TextColumn("{task.description:<10}"), BarColumn(24), TextColumn("{task.fields[text]}", markup=False)
            self._bars = Bars(*columns, console=self._console)
            self._rows = {stage: self._bars.add_task(stage, total=1, text="starting") for stage in STAGES}
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def look(self, states: Mapping[str, str]) -> None:
        """While the mesh starts."""
        for stage in STAGES:
            self.tell(stage, states.get(stage, "starting"))

    def tell(self, stage: str, text: str, step: int = 0, steps: int = 0) -> None:
        """What the stage is at.  Steps go by on a terminal only."""
        if self._bars is not None:
            self._bars.update(self._rows[stage], completed=step, total=steps or 1, text=text)
        elif self._told.get(stage) != text and not 1 < step < steps:
            self._console.print(f"{stage:<10} {text}", markup=False)
        self._told[stage] = text

    def follow(self, job: Job) -> None:
        """Show the job's way to its end."""
        from ifmesh.image import Preview

        began = time.monotonic()
        for stage in STAGES:
            self.tell(stage, "waiting")
        for event in job.events():
            now = time.monotonic()
            match event:
                case Queued(_, stage, position):
                    self.tell(stage, "waiting" if position == 0 else f"waiting, {position} before")
                case Started(_, stage, worker):
                    self._since[stage] = now
                    self.tell(stage, f"with {worker}")
                case Progress(_, stage, step, steps) if step < steps:
                    self._since.setdefault(stage, now)
                    self.tell(stage, f"step {step} of {steps}", step, steps)
                case Progress(_, stage, _, steps) if steps:  # 0 of 0: it begins, and does not know yet
                    self._done(stage, steps, now - self._since.get(stage, now))
                case Preview(stage=stage) if stage not in self._seen:
                    self._seen[stage] = now - began
                    self.tell(stage, f"{self._told[stage]}, seen after {self._seen[stage]:.1f} s", 1, 1)
                case Finished(runs=runs):
                    for done in runs:
                        self._done(done.stage, done.steps, done.run_s)

    def _done(self, stage: str, steps: int, seconds: float) -> None:
        seen = f", seen after {self._seen[stage]:.1f} s" if stage in self._seen else ""
        self.tell(stage, f"{steps} step{'s' * (steps != 1)} done in {seconds:.1f} s{seen}", max(1, steps), max(1, steps))


def _report(image: Image, took: float) -> None:
    table = screen.table(
        f"job {image.job}, seed {image.seed}",
        *("stage", "worker", "pid", "queued", "run", "steps", "in", "out"),
        right=("pid", "queued", "run", "steps", "in", "out"),
    )
    for one in image.timings:
        times = f"{one.queued_s:.2f} s", f"{one.run_s:.2f} s"
        table.add_row(one.stage, one.worker, str(one.pid), *times, str(one.steps), screen.size(one.bytes_in), screen.size(one.bytes_out))
    table.add_section()
    rows = image.timings
    sums = f"{sum(r.queued_s for r in rows):.2f} s", f"{sum(r.run_s for r in rows):.2f} s", str(sum(r.steps for r in rows))
    sizes = screen.size(sum(r.bytes_in for r in rows)), screen.size(sum(r.bytes_out for r in rows))
    table.add_row("total", f"{took:.2f} s", "", *sums, *sizes)
    table.collapse_padding = True  # or it would not fit into 80 columns
    for column in table.columns:
        column.no_wrap = True
    screen.stdout().print(table)
