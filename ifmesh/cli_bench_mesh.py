"""The command `ifmesh bench mesh`, and the hidden ones that benchmarks start: a mesh (`up`), and a client of one (`client`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ifmesh import cli_options as options
from ifmesh import exits
from ifmesh.cli_bench_report import reported, whole_numbers
from ifmesh.config import DURABILITY

TRANSPORTS = ("ipc", "tcp", "tcp+curve")


@click.command(short_help="What the mesh itself costs, beside a bare chain.")
@click.option("--transport", "transports", type=click.Choice(TRANSPORTS), multiple=True, help="Only this one; repeatable.")
@click.option("--in-flight", default="1,4,16,64", show_default=True, callback=whole_numbers, metavar="N,N,...", help="Requests at once.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of all measurements, in turns.")
@click.option("--least", type=click.IntRange(2), default=20, show_default=True, help="Requests of each measurement.")
@click.option("--durability", type=click.Choice(DURABILITY), default="none", show_default=True, help="Of the mesh beside the floor.")
@click.option("--tiny", is_flag=True, help="Tensors of some bytes: the coordinator alone.")
@click.option("--no-floor", is_flag=True, help="The mesh alone.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), help="On the disk that is meant.  [temporary]")
@options.sets
@reported
def mesh(transports: tuple[str, ...], no_floor: bool, report: Any, **wanted: Any) -> int:
    """Stages that do nothing and give tensors of the true sizes, one at a time and many in flight; in the same run, a bare chain of
    processes that push the same frames on: "floor", with the last hop through one more process, as through a coordinator.

    \b
    ifmesh bench mesh                                     some minutes
    ifmesh bench mesh --transport ipc --in-flight 1,16 --json
    """
    from ifmesh.bench.crossing import Crossing, Wanted

    settings = dict(click.get_current_context().meta.get("ifmesh.overrides", {}))
    asked = Wanted(transports or TRANSPORTS, floor=not no_floor, settings=settings, **wanted)
    with report as page:
        crossing = Crossing(asked, page.tell, page.over)
        page.take(crossing.measure, crossing.report, show)
    return exits.OK


@click.command(hidden=True)
@click.option("--apart", is_flag=True)
@options.configured
def up(apart: bool, config_file: Path | None) -> int:
    """`ifmesh up --tied`.  apart: of each process the others think that it is on another host."""
    from ifmesh import lease, screen, supervisor
    from ifmesh.bench.apart import program
    from ifmesh.cli_up import readiness
    from ifmesh.tied import to_stdin

    config, flags = options.configuration(config_file)
    to_stdin()
    with lease.lock(config.mesh.state):
        kept = supervisor.services(config, tuple(flags))
        runs = program if apart else supervisor.python

        def say(name: str, line: str) -> None:
            if name == "up":
                screen.say(line)

        return supervisor.Supervisor(config, kept, say, lambda: readiness(config), runs).run()


@click.command(hidden=True)
def client() -> int:
    """A client of a benchmark: orders on stdin, reports on stdout."""
    from ifmesh import log
    from ifmesh.bench import agent

    log.start()
    agent.serve()
    return exits.OK


def show(report: dict[str, Any]) -> None:
    """For a reader, on stdout."""
    from ifmesh import screen

    columns = ("in flight", "", "p50 ms", "p95 ms", "requests/s", "p50 x floor", "requests/s x floor")
    for transport in dict.fromkeys((*report["floor"], *report["mesh"])):
        table = screen.table(transport, *columns, right=(columns[0], *columns[2:]))
        for number in map(str, report["asked"]["in_flight"]):
            for name, said in (("chain", "bare chain"), ("floor", "floor: with a relay"), ("guarded", "with guard and relay")):
                if row := report[name].get(transport, {}).get(number):
                    table.add_row(number, said, *_figures(row), "", "")
            if row := report["mesh"].get(transport, {}).get(number):
                times = report["ratios"].get(transport, {}).get(number, {})
                table.add_row(number, "mesh", *_figures(row), *(f"{times[name]:.2f}" if name in times else "" for name in TIMES))
            if row := report["durable"].get(transport, {}).get(number):
                table.add_row(number, "mesh, durable", *_figures(row), "", "")
        screen.stdout().print(table)
    if disk := report["durable_write_ms"].get("4096"):
        said = ", ".join(f"{transport} {times:g}" for transport, times in report["durable_writes"].items())
        screen.tell(
            f"a durable write of this disk: p50 {disk['p50_ms']:.2f} ms; what durability adds to the p50, in such writes: {said or '-'}"
        )
    if report["curve_ms"]:
        said = ", ".join(f"{ms:.2f} ms with {number} in flight" for number, ms in report["curve_ms"].items())
        screen.tell(f"CURVE adds to the p50: {said}")
    for transport, why in report["skipped"].items():
        screen.tell(f"{transport}: skipped: {why}")


TIMES = ("p50", "requests_per_s")


def _figures(row: dict[str, float]) -> tuple[str, ...]:
    return tuple(f"{row[name]:.2f}" for name in ("p50_ms", "p95_ms", "requests_per_s"))
