"""The command `ifmesh doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ifmesh import cli_options as options

if TYPE_CHECKING:
    from ifmesh.client import Client
    from ifmesh.config import Config
    from ifmesh.doctor.finding import Finding
    from ifmesh.protocol import ServiceRow

AT_ONCE = 8
"""Links that are probed at the same time: one that is down takes 3 s to say so."""


@click.command(short_help="Try every hop of the mesh, and name what is broken.")
@options.as_json
@options.coordinator
@options.configured
def doctor(as_json: bool, config_file: Path | None) -> int:
    """Try every hop: configuration, what this host's workers load, keys, the way to the coordinator, the workers and, for an operator,
    every link between services, with real frames over it.  One line for each; below those that are broken, the remedy.

    Exit 1: something is broken.

    \b
    ifmesh doctor
    ifmesh doctor --json | jq '.findings[] | select(.ok | not)'
    """
    from ifmesh import config, screen
    from ifmesh.doctor.finding import well

    read, _ = options.configuration(config_file)
    file = config.locate(config_file, os.environ)
    found = [well("configuration", f"{file or 'no file'}; state folder {read.mesh.state}")]
    if not as_json:
        _show(found[0])
    for finding in findings(read):
        found.append(finding)
        if not as_json:
            _show(finding)
    bad = sum(not finding.ok for finding in found)
    if as_json:
        screen.document({"ok": not bad, "findings": [asdict(finding) for finding in found]})
    else:
        screen.say(f"{bad} of {len(found)} are broken" if bad else f"all is well: {len(found)} hops", "red" if bad else "green")
    return 1 if bad else 0


def findings(config: Config) -> Iterator[Finding]:
    """As they are found out.  Where the way to the coordinator is broken, nothing is known of what is beyond."""
    from ifmesh.doctor.door import door
    from ifmesh.doctor.finding import broken
    from ifmesh.doctor.staff import checkpoints, staff
    from ifmesh.errors import MeshError

    yield from checkpoints(config)
    for finding in door(config):
        yield finding
        if not finding.ok:
            return
    try:
        with options.client(config) as client:
            rows = options.services(client)
            yield from staff(config, rows)
            yield from _links(config, client, rows)
    except MeshError as error:
        said, _, remedy = str(error).rpartition(": ")
        yield broken("client -> coordinator", said, remedy)


def _links(config: Config, client: Client, rows: list[ServiceRow]) -> Iterator[Finding]:
    from ifmesh import credentials
    from ifmesh.doctor.finding import well
    from ifmesh.doctor.ways import homes, told, ways

    me = credentials.of_client(config, config.mesh.identity)
    if me is not None and me.role != "operator":
        yield well("links", f"not tried: for that, be an operator, not {me.role} (--identity: the operator.key of the coordinator's host)")
        return
    wanted = ways(rows)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tried = dict(zip(wanted, pool.map(lambda way: client.probe(*way), wanted), strict=True))
    hosts = homes(rows, tried)
    yield from (told(way, tried, hosts) for way in wanted)


def _show(finding: Finding) -> None:
    from ifmesh import screen

    console = screen.stdout()
    console.print("ok    " if finding.ok else "BROKEN", style="green" if finding.ok else "red", end=" ")
    console.print(f"{finding.hop}: {finding.said}", markup=False, emoji=False)
    if finding.remedy:
        console.print(f"       -> {finding.remedy}", markup=False, emoji=False)
