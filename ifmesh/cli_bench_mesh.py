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
        page.take(crossing.measure, crossing.report)
    return exits.OK


@click.command(hidden=True)
@click.option("--apart", is_flag=True)
@options.configured
def up(apart: bool, config_file: Path | None) -> int:
    """`ifmesh up --tied`.  apart: of each process the others think that it is on another host."""
    from ifmesh import kept, lease, screen, supervisor
    from ifmesh.bench.apart import program
    from ifmesh.cli_up import readiness
    from ifmesh.tied import to_stdin

    config, flags = options.configuration(config_file)
    to_stdin()
    with lease.lock(config.mesh.state):
        runs = program if apart else supervisor.python

        def say(name: str, line: str) -> None:
            if name == "up":
                screen.say(line)

        return supervisor.Supervisor(config, kept.services(config, tuple(flags)), say, lambda: readiness(config), runs).run()


@click.command(hidden=True)
def client() -> int:
    """A client of a benchmark: orders on stdin, reports on stdout."""
    from ifmesh import log
    from ifmesh.bench import agent

    log.start()
    agent.serve()
    return exits.OK
