"""The commands `ifmesh bench stages` and `tolerance`: what the stages are worth on this machine, beside diffusers' own pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ifmesh.cli_heavy import heavy
from ifmesh.request import STAGES

F = TypeVar("F", bound=Callable[..., Any])
MEASURED = STAGES[:4]  # the guard draws nothing
Tell = Callable[[str], None]


def _whole(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part) <= 64 for part in parts):
        raise click.BadParameter(f"{text!r}: whole numbers from 1 to 64, as in 1,2,4,8,16", ctx, param)
    return tuple(sorted({int(part) for part in parts}))


def _about(f: F) -> F:
    """What both measure, and on what."""
    for option in reversed(
        (
            click.option("--cascade", metavar="PATH|nano|nano16|if-xl|if-l|if-m", default="nano16", help="Weights; nano16: tiny, 16 px."),
            click.option("--real", type=click.Choice(["if-xl", "if-l", "if-m"]), help="The published sizes with random weights, instead."),
            click.option("--stage", "stages", type=click.Choice(MEASURED), multiple=True, help="Only this one; repeatable."),
            click.option("--device", default="auto", help="cpu, cuda, cuda:0; auto: the card, if there is one."),
            click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Without it, the device's own."),
            click.option("--threads", type=click.IntRange(1), default=1, help="torch's threads on the CPU."),
            click.option(
                "--json", "file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="The numbers; -: stdout."
            ),
        )
    ):
        f = option(f)
    return f


@click.command(short_help="Steps and pictures per second.")
@_about
@click.option("--requests", default="1,2,4,8,16", callback=_whole, metavar="N,N,...", help="How many at once.  [1,2,4,8,16]")
@click.option("--steps", type=click.IntRange(1, 1000), help="Of each request.  [3; on a card 20]")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Of each measurement, at most.  [5]")
@click.option("--seconds", type=click.FloatRange(0), default=2.0, help="After which no measurement begins a third round.  [2]")
@click.option("--compile", is_flag=True, help="With torch.compile, too.")
def stages(file: Path | None, **wanted: Any) -> int:
    """Every stage with one request and with many: steps/s, images/s, ms per step, peak memory.  Rounds take turns; medians.

    exact: one request after the other.  pooled: one call for all; fixed rows: of always the same size.  Beside them diffusers' pipelines
    with the same weights, one by one and as one static batch.  On one CPU thread seconds are the processor's.

    \b
    ifmesh bench stages                                  all of it, on the CPU about three minutes
    ifmesh bench stages --real if-xl --json table.json   on a card, at the published sizes
    """
    with _prepared(wanted) as (ask, tell):
        report = heavy("bench.stages", "bench").measured(ask, tell)
    _written(report, file, _print_stages)
    return 0


@click.command(short_help="How far pooled is from exact.")
@_about
def tolerance(file: Path | None, **wanted: Any) -> int:
    """The largest and the mean difference of pooled pictures from exact ones, and of exact ones from diffusers' own, by stage and dtype.

    Without --dtype in fp32 and bf16.  Pictures are of about -1 to 1, the upscaler's of 0 to 255.
    """
    with _prepared(wanted) as (ask, tell):
        report = heavy("bench.tolerance", "bench").measured(ask, tell)
    _written(report, file, _print_tolerance)
    return 0


@contextmanager
def _prepared(wanted: dict[str, Any]) -> Iterator[tuple[Any, Tell]]:
    """What is measured, and whom to tell: a line that is overwritten on a terminal, lines elsewhere."""
    from ifmesh import screen

    wanted["stages"] = wanted["stages"] or MEASURED
    wanted["cascade"] = "" if wanted["cascade"] == "nano" else wanted["cascade"]
    ask = heavy("bench.workbench", "bench").Wanted(**{key: value for key, value in wanted.items() if value is not None})
    console = screen.stderr()
    if not console.is_terminal:
        yield ask, screen.say
        return
    with console.status("") as status:
        yield ask, lambda line: status.update(line)


def _written(report: dict[str, Any], file: Path | None, show: Callable[[dict[str, Any]], None]) -> None:
    from ifmesh import screen

    if file == Path("-"):
        screen.document(report)
        return
    show(report)
    if file:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        screen.say(f"written to {file}")


def _print_stages(report: dict[str, Any]) -> None:
    from ifmesh import screen

    out = screen.stdout()
    _print_machine(report)
    columns = ("requests", "", "steps/s", "images/s", "ms per step", "peak", "x one by one", "x one batch")
    for stage in dict.fromkeys(row["stage"] for row in report["rows"]):
        said = "texts" if stage == "encoder" else f"{report['steps']} steps each"
        table = screen.table(f"{stage}, {said}", *columns, right=(columns[0], *columns[2:]))
        before = 0
        for row in (row for row in report["rows"] if row["stage"] == stage):
            number = row["requests"]
            table.add_row(
                "" if number == before else str(number),
                row["way"],
                *(f"{row[name]:.3g}" for name in ("steps_per_s", "images_per_s", "ms_per_step")),
                "" if row["peak"] is None else screen.size(row["peak"]),
                *(f"{row[name]:.2f}" for name in ("of_one_by_one", "of_one_batch")),
            )
            before = number
        out.print(table)
    for row in report["share"]:
        of = f"{row['requests']} request{'s' * (row['requests'] > 1)}"
        screen.tell(f"{row['stage']}, {of}: time in the models: exact {row['exact']:.1%}, pooled {row['pooled']:.1%}")
    if first := report.get("first_picture"):
        said = ", ".join(f"{way} {seconds:.3g} s" for way, seconds in first["seconds"].items())
        screen.tell(f"Stage I until its first picture, {first['steps']} steps: {said}")
    if cost := report.get("overhead"):
        screen.tell(f"the pool with one request against diffusers' pipeline: {cost['share']:+.1%} time")
    for row in report.get("overlapping", ()):
        side = f"{row['side']} px"
        screen.tell(f"{row['requests']} overlapping requests in Stage I, {side}: {row['ratio']:.2f} x as fast as diffusers one by one")


def _print_tolerance(report: dict[str, Any]) -> None:
    from ifmesh import screen

    _print_machine(report)
    kinds = [key for key in report["rows"][0] if key not in ("stage", "dtype", "way")] if report["rows"] else []
    for stage in dict.fromkeys(row["stage"] for row in report["rows"]):
        scale = "levels of 255" if stage == "upscaler" else "pictures of -1 to 1"
        table = screen.table(f"{stage}: from exact, most (mean), {scale}", "dtype", "", *kinds, right=tuple(kinds))
        for row in (row for row in report["rows"] if row["stage"] == stage):
            table.add_row(row["dtype"], row["way"], *(_far(row.get(kind)) for kind in kinds))
        screen.stdout().print(table)


def _far(of: dict[str, float] | None) -> str:
    if of is None:
        return "-"
    return f"{of['most']:.2g} ({of['mean']:.1g})" if of["most"] else "0"


def _print_machine(report: dict[str, Any]) -> None:
    from ifmesh import screen

    of = report["machine"]
    device = of["card"] or f"{of['device']} ({of['capability']})"
    screen.tell(
        f"{report['cascade']} on {device}, {of['threads']} thread{'s' * (of['threads'] > 1)}, {of['clock']} seconds, torch {of['torch']}"
    )
