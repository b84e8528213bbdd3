"""What is seen while pictures are drawn: bars on a terminal, lines elsewhere; on stderr, for data goes to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ifmesh import screen

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ifmesh.client import Job
    from ifmesh.image import Preview

Early = Callable[["Preview"], Path | None]
"""Told of an early picture; gives the file that it wrote."""


class Board:
    """Within `with` the only one that writes to the terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = screen.stderr()
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[by]}", markup=False),
            console=self._console,
            redirect_stdout=sys.stdout.isatty(),  # else the data would go where the bars are
        )
        self._count: TaskID | None = None

    def __enter__(self) -> Self:
        if self.live:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self._bars.stop()

    @property
    def live(self) -> bool:
        return self._console.is_terminal

    def say(self, line: str, style: str = "") -> None:
        """One line for the reader."""
        self._console.print(line, markup=False, emoji=False, style=style or None)

    def tell(self, line: str) -> None:
        """One line of data."""
        print(line, flush=True)

    def document(self, value: object) -> None:
        """One line of data, as JSON."""
        screen.document(value)

    def expect(self, count: int) -> None:
        """So many pictures: a bar of its own."""
        self._count = self._bars.add_task("pictures", total=count, by="")

    def ended(self, failed: int) -> None:
        """One more of them.  failed: so far."""
        assert self._count is not None
        self._bars.update(self._count, advance=1, by=f"{failed} failed" if failed else "")

    def follow(self, job: Job, began: float, early: Early | None = None, prefix: str = "") -> None:
        """Show the job's way to its end.  began: when it was handed in; early: what to do with early pictures."""
        from ifmesh import protocol
        from ifmesh.image import Preview

        bars: dict[str, TaskID] = {}
        by: dict[str, str] = {}
        waits: tuple[str, int] | None = None
        for event in job.events(previews=self.live or early is not None):
            match event:
                case protocol.Queued(stage=stage, position=position):
                    if not self.live and position and waits != (stage, position):  # whoever looks closer is told again where it stands
                        waits = stage, position
                        self.say(f"{prefix}{job.id} waits for {stage}: {position} before it")
                case protocol.Started(stage=stage, worker=worker):
                    if not self.live and by.get(stage) != worker:
                        self.say(f"{prefix}{job.id} {stage} on {worker}")
                    by[stage] = worker
                    if stage not in bars:
                        bars[stage] = self._bars.add_task(prefix + stage, total=None, by=worker)
                    self._bars.update(bars[stage], by=worker)
                case protocol.Progress(stage=stage, step=step, steps=steps) if stage in bars:
                    self._bars.update(bars[stage], completed=step, total=steps)
                case Preview():
                    path = early(event) if early else None
                    # A line of its own, on a terminal above the bars: within a row it would leave the bar no room.
                    self.say(f"{prefix}{job.id} {seen(event, time.monotonic() - began)}{f': {path}' if path else ''}")
                case protocol.Finished(runs=runs):
                    for run in runs:
                        if run.stage in bars:
                            self._bars.update(bars[run.stage], completed=run.steps, total=run.steps)


def seen(preview: Preview, seconds: float) -> str:
    """seconds: since it was asked for."""
    width, height = preview.size
    return f"{width} x {height} preview after {seconds:.1f} s{', blanked by the safety checker' * preview.flagged}"
