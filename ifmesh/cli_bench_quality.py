"""The command `ifmesh bench quality`: are the pictures what the captions say?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ifmesh import cli_options as options
from ifmesh import exits
from ifmesh.cli_bench_load import mesh
from ifmesh.cli_bench_report import reported
from ifmesh.cli_heavy import heavy


@click.command(short_help="Do the pictures show what the captions say?")
@click.option("--captions", type=click.IntRange(1, 300), default=60, show_default=True, help="Of 300 that training never saw.")
@click.option("--size", type=click.Choice(["64", "256", "1024"]), default="64", show_default=True, help="Up to this many pixels a side.")
@click.option("--in-flight", type=click.IntRange(1, 4096), default=8, show_default=True, help="Requests at once.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first; each has the next.")
@click.option("--sheet", type=click.Path(path_type=Path, dir_okay=False, writable=True), metavar="FILE",
              help="All pictures; what is wrong has a red frame.")  # fmt: skip
@click.option("--start", is_flag=True, help="A mesh for this alone, as configured; else the one that runs is asked.")
@options.cascade
@options.copies
@options.coordinator
@options.configured
@reported
def quality(size: str, report: Any, **given: Any) -> int:
    """Draw captions of the built-in cascade's language, and have them judged: shape, both colours, position.  The judge knows thresholds
    and outlines, and no model.  What a change of precision, batching or sampling does to the picture is seen here.

    \b
    ifmesh bench quality --start                                              60 captions at 64 px
    ifmesh bench quality --start --set services.stage_one.dtype=bf16 --captions 100
    ifmesh bench quality --size 256 --captions 300 --sheet sheet.png --json   of the mesh that runs
    """
    from ifmesh.bench.head import head
    from ifmesh.bench.quality import Quality, Wanted

    exam = heavy("nano.exam", "bench quality")
    wanted = Wanted(size=int(size), **{name: given[name] for name in ("captions", "in_flight", "seed", "sheet")})
    with report as page, mesh(given, page.tell) as (door, config):
        begun = head("quality", config)
        work = Quality(exam, wanted, door, page.tell, page.over)
        page.take(work.measure, lambda: {**begun, **work.figures()})
    return exits.OK
