"""The command `ifmesh bench links`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ifmesh import cli_options as options

if TYPE_CHECKING:
    from ifmesh.bench.links import Row

LARGEST = 8 << 20  # bytes: see `survey`
ALL = 256 << 20


@click.command(short_help="Bandwidth and round trip of every link of a running mesh.")
@click.option("--all", "every", is_flag=True, help="From each service to each other, not only the ways that bags go.")
@click.option("--size", type=click.IntRange(1, LARGEST), default=1 << 20, show_default=True, help="Bytes of a large frame.")
@click.option("--count", type=click.IntRange(2, ALL), default=64, show_default=True, help="Large frames over each link; 3 s at most.")
@options.as_json
@options.coordinator
@options.configured
def links(every: bool, size: int, count: int, as_json: bool, config_file: Path | None) -> int:
    """What the links between the services of a running mesh do, one after the other: as its own bags go, over the same sockets, with the
    same keys, by the same processes.

    Round trips are of small frames, by the sender's clock; the bandwidth is of large ones, by the receiver's.  For operators.  Ctrl-C
    ends it, and what was measured is shown.  Exit 1: a link is down.

    \b
    ifmesh bench links
    ifmesh bench links --json --all > links.json
    """
    from ifmesh import screen
    from ifmesh.bench.head import head
    from ifmesh.bench.links import row
    from ifmesh.doctor.ways import every as each
    from ifmesh.doctor.ways import ways
    from ifmesh.errors import BadRequest

    if size * count > ALL:
        raise BadRequest("count", count, f"with frames of {size} bytes at most {ALL // size}: {ALL} bytes in all")
    config, _ = options.configuration(config_file)
    rows: list[Row] = []
    report = head("links", config) | {"size": size, "count": count, "links": rows, "interrupted": False}
    with options.client(config) as client, screen.stderr().status("") as status:
        known = options.services(client)
        wanted = (each if every else ways)(known)
        try:
            for n, (source, target) in enumerate(wanted, 1):
                status.update(f"{n} of {len(wanted)}: {source} -> {target}")
                rows.append(row(source, target, client.probe(source, target, size, count)))
        except KeyboardInterrupt:
            report["interrupted"] = True
    if as_json:
        screen.document(report)
    else:
        _print(rows)
    if report["interrupted"]:
        screen.say(f"interrupted after {len(rows)} of {len(wanted)} links", "yellow")
        return 130
    return int(any(not one["arrived"] for one in rows))


def _print(rows: list[Row]) -> None:
    from ifmesh import screen
    from ifmesh.bench.links import matrix

    targets, lines = matrix(rows)
    made = screen.table("", "from \\ to", *targets, right=tuple(targets))
    for source, cells in lines:
        made.add_row(source, *cells)
    screen.stdout().print(made, markup=False)
    for one in rows:
        if one["error"]:
            screen.tell(f"{one['source']} -> {one['target']}: {one['error']} {one['url']}")
