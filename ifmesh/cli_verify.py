"""The command `ifmesh verify`: is the mesh what diffusers is, on these weights and this machine?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ifmesh import cli_options as options
from ifmesh import exits
from ifmesh.bench.cases import CASES
from ifmesh.cli_bench_report import reported
from ifmesh.config import PUBLISHED
from ifmesh.request import STAGES

DTYPES = ("fp32", "bf16", "fp16")


def _everywhere(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """A flag that sets one key of all services; the guard, which draws nothing, computes as it does."""
    for stage in STAGES if value is not None else ():
        if stage != "guard" or param.name == "device":
            options.put(f"services.{stage}.{param.name}", value)


@click.command(short_help="Is a picture what diffusers makes of the same weights?")
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="Only this one; repeatable.")
@click.option("--size", type=click.Choice(["64", "256", "1024"]), default="1024", show_default=True, help="Up to this many pixels a side.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Of each stage.  [the cascade's own]")
@click.option("--real", type=click.Choice(PUBLISHED), help="The published sizes with random weights, instead of a cascade.")
@click.option("--reference", default="", metavar="PATH|if-xl|if-l|if-m", help="Weights for diffusers, where they are to be others.")
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, show_default=True,
              help="How far a stage may be off, in pictures of -1 to 1.")  # fmt: skip
@click.option("--device", callback=_everywhere, expose_value=False, help="cpu, cuda, cuda:0; of both.")
@click.option("--dtype", type=click.Choice(DTYPES), callback=_everywhere, expose_value=False, help="Of both; without it, the device's own.")
@options.cascade
@options.sets
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="ifmesh.toml to read.")
@reported
def verify(cases: tuple[str, ...], size: str, config_file: Path | None, report: Any, **given: Any) -> int:
    """Draw the published examples with diffusers' own pipelines, each part loaded, used and freed in one process, then with a mesh of its
    own: the same weights, dtype and threads.  What each stage gives is compared bit by bit.  Pictures to start from are drawn here.

    --out DIR: report.md, report.json, report.html and sheet.png, the pictures side by side, to be kept as evidence.

    Exit 1: a stage differs by more than --tolerance; it is named.  Which is for modes and devices that promise no equal bits.

    \b
    ifmesh verify --size 64                                    the built-in cascade
    ifmesh verify --cascade if-xl --device cuda:0 --out evidence
    ifmesh verify --real if-m --device cuda:0 --steps 10       without weights, at the published sizes
    """
    from ifmesh import screen
    from ifmesh.bench.verify import Verify, Wanted

    settings = dict(click.get_current_context().meta.get("ifmesh.overrides", {}))
    asked = {name: value for name, value in given.items() if value}
    wanted = Wanted(cases=tuple(dict.fromkeys(cases)) or tuple(CASES), size=int(size), settings=settings, file=config_file, **asked)
    with report as page:
        work = Verify(wanted, page.tell, page.over)
        page.take(work.measure, work.report)
        if page.out is not None:
            _evidence(page.out, work)
    wrong = work.wrong()
    for line in wrong:
        screen.say(line, "red")
    return exits.FAILURE if wrong or page.over() else exits.OK


def _evidence(folder: Path, work: Any) -> None:
    from ifmesh import screen
    from ifmesh.bench.markdown import markdown

    report = work.report()
    picture = "sheet.png" if any(row["seconds"] for row in report["cases"]) else ""
    if picture:
        work.sheet().save(folder / picture)
    (folder / "report.md").write_text(markdown(report, f"ifmesh verify: {report['verdict']}", picture), encoding="utf-8")
    screen.say(f"written: {folder / 'report.md'}{' and ' + picture if picture else ''}")
