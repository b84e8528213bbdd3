"""What the benchmarks' commands share: progress, Ctrl-C that keeps what was measured, and where the report goes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.status import Status

    from ifmesh.bench.head import Report
    from ifmesh.bench.tables import Table

F = TypeVar("F", bound=Callable[..., Any])


def whole_numbers(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise click.BadParameter(f"{text!r}: whole numbers from 1 to 4096, as in 1,4,16", ctx, param)
    return tuple(sorted({int(part) for part in parts}))


def reported(f: F) -> F:
    """--json, --html and --out; the command gets `report`, a Page."""

    @wraps(f)
    def wrapped(as_json: bool, html: Path | None, out: Path | None, **given: Any) -> Any:
        return f(report=Page(as_json, html, out), **given)

    made: Any = wrapped
    for option in (
        click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="report.json and report.html there."),
        click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The page with the plots."),
        click.option("--json", "as_json", is_flag=True, help="The report on stdout, and nothing else there."),
    ):
        made = option(made)
    return made  # type: ignore[no-any-return]


class Page:
    """Where a report is made; out: the folder that was wished, if any.

    The first Ctrl-C ends the measuring, and what was measured is told; the second ends all.
    """

    def __init__(self, as_json: bool, html: Path | None, out: Path | None) -> None:
        self._as_json, self._html, self.out = as_json, html, out
        self._signals = 0
        self._before: Any = None
        self._status: Status | None = None
        self._told = ""

    def __enter__(self) -> Page:
        from ifmesh import screen

        console = screen.stderr()
        if console.is_terminal:
            self._status = console.status("")
            self._status.start()
        self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self._status is not None:
            self._status.stop()

    def over(self) -> bool:
        return self._signals > 0

    def tell(self, line: str, done: float) -> None:
        """A line of progress.  done: how much of all, 0 to 1."""
        from ifmesh import screen

        if self._status is not None:
            self._status.update(f"{done:4.0%}  {line}")
        elif line != self._told:
            screen.say(f"{done:4.0%}  {line}")
        self._told = line

    def take(self, measure: Callable[[], None], so_far: Callable[[], Report]) -> None:
        """Measured, and written where it was wished.  so_far: the report of what there is by then, interrupted or not.
        show: for a reader, where no JSON is asked for."""
        from ifmesh import screen

        with suppress(KeyboardInterrupt):
            measure()
        report = so_far()
        if self._status is not None:
            self._status.stop()
        if self._as_json:
            screen.document(report)
        else:
            print_tables(report)
        files = [self._html] if self._html else []
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            files.append(self.out / "report.html")
        for file in files:
            from ifmesh.bench.page import page

            file.write_text(page(report), encoding="utf-8")
            screen.say(f"written: {file}")

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            raise KeyboardInterrupt


def print_tables(report: Report) -> None:
    """For a reader, on stdout."""
    from ifmesh.bench.tables import tables

    for table in tables(report):
        print_table(table)


def print_table(table: Table) -> None:
    from ifmesh import screen

    if table.rows:
        shown = screen.table(table.title, *table.columns, right=table.columns[1:])
        for row in table.rows:
            shown.add_row(*row)
        screen.stdout().print(shown)
    for note in table.notes:
        screen.tell(note)
