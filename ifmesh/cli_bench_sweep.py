"""The commands `ifmesh bench sweep` and `compare`: many loads beside each other."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ifmesh import cli_bench_load as loads
from ifmesh import exits
from ifmesh.cli_bench_report import print_table, reported, whole_numbers
from ifmesh.errors import MeshError
from ifmesh.request import STAGES


def _replicas(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, tuple[int, ...]] | None:
    if text is None:
        return None
    stage, equals, counts = text.partition("=")
    if not equals or stage not in STAGES:
        raise click.BadParameter(f"{text!r}: STAGE=N,N,..., as in stage_one=1,2,4; stages: {', '.join(STAGES)}", ctx, param)
    return stage, whole_numbers(ctx, param, counts)


@click.command(short_help="The same load with one thing growing: where the knee is.")
@click.option("--in-flight", default="16", show_default=True, callback=whole_numbers, metavar="N,N,...", help="Requests at once.")
@click.option("--replicas", callback=_replicas, metavar="STAGE=N,N,...", help="Copies of a stage; each in a mesh of its own.")
@loads.asked
@loads.started
@reported
def sweep(in_flight: tuple[int, ...], replicas: tuple[str, tuple[int, ...]] | None, report: Any, **given: Any) -> int:
    """A closed loop with more and more requests in flight, or more and more copies of a stage.

    \b
    ifmesh bench sweep --in-flight 1,2,4,8,16 --start --toy
    ifmesh bench sweep --replicas stage_one=1,2,4 --sleep encoder=40,stage_one=200,stage_two=40,upscaler=40 --in-flight 24
    """
    from ifmesh.bench import sweep as swept
    from ifmesh.bench.head import configuration, head
    from ifmesh.bench.load import Load

    if replicas is not None and len(in_flight) > 1:
        raise click.UsageError("--replicas and several numbers for --in-flight: one thing at a time")
    stage, values = replicas if replicas is not None else ("", in_flight)
    what = f"copies of {stage}" if stage else "requests in flight"
    points: list[dict[str, Any]] = []
    begun = head("sweep", None)

    with report as page:

        def measure() -> None:
            with ExitStack() as stack:
                door: Any = None
                for place, value in enumerate(values):
                    if page.over():
                        return
                    if stage or door is None:
                        stack.close()
                        settings: dict[str, object] | None = {f"services.{stage}.copies": value} if stage else None
                        door, config = stack.enter_context(loads.mesh(given, page.tell, settings))
                        begun["configuration"] = begun["configuration"] or configuration(config)
                    wanted = loads.made(given, in_flight=value if not stage else in_flight[0])

                    def tell(line: str, done: float, place: int = place, value: int = value) -> None:
                        page.tell(f"{what} {value}: {line}", (place + done) / len(values))

                    load = Load(wanted, door, tell, page.over)
                    load.measure()
                    points.append(swept.point(value, load.figures()))

        page.take(measure, lambda: {**begun, **swept.finished(what, points), "interrupted": page.over()})
    return exits.OK


@click.command(short_help="Two reports of one kind: is B better than A?")
@click.argument("a", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="A.json")
@click.argument("b", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="B.json")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, on stdout.")
def compare(a: Path, b: Path, as_json: bool) -> int:
    """Compare what `ifmesh bench ... --out` has written: each figure with an interval for the difference, and a verdict.  Take --repeat 3
    or more for both, or nobody can tell a difference from chance.
    """
    from dataclasses import asdict

    from ifmesh import screen
    from ifmesh.bench import compare as compared

    ours, theirs = _report(a), _report(b)
    try:
        if as_json:
            found = compared.changes(ours, theirs)
            told = {"a": str(a), "b": str(b), "changes": [asdict(change) for change in found], "verdict": compared.said(found)}
            screen.document({**told, "differences": compared.differences(ours, theirs)})
        else:
            for table in compared.tables(ours, theirs):
                print_table(table)
    except ValueError as error:
        raise MeshError(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise MeshError(f"{a} or {b}: a report that is not whole: {error!r}") from None
    return exits.OK


def _report(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MeshError(f"{path}: no JSON: {error}") from None
    if not isinstance(found, dict) or "kind" not in found:
        raise MeshError(f"{path}: no report of `ifmesh bench`: it has no kind")
    return found
