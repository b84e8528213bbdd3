"""The commands about jobs that there are: show, cancel; and demo."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ifmesh import cli_completion as completion
from ifmesh import cli_options as options
from ifmesh import cli_targets as targets

if TYPE_CHECKING:
    from rich.console import Console

    from ifmesh.protocol import Books, StageRun

WIDEST = 60  # characters of a bar


@click.command(short_help="The story of one job.")
@click.argument("job", shell_complete=completion.jobs)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write its picture to this file; waits for it, if need be.")
@click.option("--no-parameters", is_flag=True, help="Do not tell in the PNG how it was made.")
@options.as_json
@options.coordinator
@options.configured
def show(job: str, out: Path | None, no_parameters: bool, as_json: bool, config_file: Path | None) -> int:
    """What happened to JOB: its story, how long it waited and ran in each stage, and what each stage did.

    \b
    ifmesh show 3f9c2a7be01d4c55
    ifmesh show 3f9c2a7be01d4c55 -o out.png
    """
    from ifmesh import screen
    from ifmesh.cli_progress import Board

    targets.check_file(out)
    with options.door(config_file) as client:
        books = client.status(job)
        if as_json:
            row = books.jobs[0] if books.jobs else None
            told: Mapping[str, object] = asdict(row) if row else {"job": job}
            story = [{"seconds": round(at, 6), "what": what} for at, what in books.story]
            screen.document({**told, "ending": books.ending, "story": story, "stages": [targets.ran(run) for run in books.runs]})
        else:
            _print(books, screen.stdout())
        if out is not None:
            began, found = time.monotonic(), client.job(job)
            with Board() as board:
                if not books.ending:
                    board.follow(found, began)
                image = found.result()
            targets.save(partial(image.save, parameters=not no_parameters), out, job)
            screen.say(f"written: {out}")
            targets.remark(image, out, board)
    return 0


def _print(books: Books, console: Console) -> None:
    from ifmesh import cli_timeline, screen

    now = None
    for row in books.jobs:
        step = f"  step {row.step} of {row.steps}" if row.steps else ""
        screen.tell(f"{row.job}  {row.state}  {row.stage}{step}  {row.prompt}")
        now = None if books.ending else (row.stage, row.age_s)
    lines = screen.table("", "seconds", "what", right=("seconds",))
    for at, what in books.story:
        lines.add_row(f"{at:.3f}", what)
    console.print(lines, markup=False)
    room = max(20, min(WIDEST, console.width - 52))
    chart = cli_timeline.chart(cli_timeline.spans(books.story, now), room, plain=not console.encoding.startswith("utf"))
    for stage, bar, said in chart:
        screen.tell(f"{stage:<10} |{bar}| {said}")
    if books.runs:
        console.print(ran(books.runs), markup=False)
    if books.ending:
        screen.tell(books.ending)


def ran(runs: Iterable[StageRun]) -> Any:
    """A table of what each stage did for one job."""
    from ifmesh import screen

    right = ("pid", "queued s", "run s", "steps", "in", "out", "runs")
    made = screen.table("", "stage", "worker", "pid", "device", "queued s", "run s", "steps", "in", "out", "runs", right=right)
    for r in runs:
        numbers = (f"{r.queued_s:.3f}", f"{r.run_s:.3f}", str(r.steps), screen.size(r.bytes_in), screen.size(r.bytes_out), str(r.runs))
        made.add_row(r.stage, r.worker, str(r.pid), r.device, *numbers)
    return made


@click.command(short_help="End a job early.")
@click.argument("job", shell_complete=completion.jobs)
@options.as_json
@options.coordinator
@options.configured
def cancel(job: str, as_json: bool, config_file: Path | None) -> int:
    """End JOB now.  Exit 0: it was cancelled; 1: it had ended otherwise before.

    \b
    ifmesh cancel 3f9c2a7be01d4c55
    """
    from ifmesh import screen
    from ifmesh.protocol import Cancelled

    with options.door(config_file) as client:
        ended = client.cancel(job)
    how = type(ended).__name__.lower()
    if as_json:
        screen.document({"job": job, "ended": how})
    else:
        screen.tell(f"{job} {how}")
    return 0 if isinstance(ended, Cancelled) else 1


@click.command(short_help="Everything once: mesh, prompt, pictures.")
@click.argument("prompt", required=False, default="")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True, help="Folder to write to."
)
@click.option("--toy", is_flag=True, help="Stages without models or torch.")
@click.option("--cascade", default="", metavar="PATH|if-xl|if-l|if-m", help="Weights; without it, the built-in cascade.")
def demo(prompt: str, out: Path, toy: bool, cascade: str) -> int:
    """Start a mesh of its own, draw PROMPT, write the pictures of all stages and a contact sheet, and take everything down.

    \b
    ifmesh demo "a lighthouse in a storm" --out pictures
    """
    from ifmesh import demo as show_all

    ended: int = show_all.run(out, prompt, cascade, toy)
    return ended
