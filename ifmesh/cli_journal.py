"""`ifmesh journal`: is what the coordinator remembers sound, and what can be saved when it is not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ifmesh import cli_options as options
from ifmesh import exits

if TYPE_CHECKING:
    from ifmesh.audit import Audit, Told

SHOWN = 20  # damages and orphans in words; all of them with --json
MANY = 200  # results from which on it is told how far the look has come


@click.group(short_help="Check or restore what the coordinator remembers.")
def journal() -> None:
    """The coordinator's journal: requests, endings and results in the state folder."""


@journal.command(short_help="Look through it, changing nothing.")
@options.as_json
@options.configured
def check(as_json: bool, config_file: Path | None) -> int:
    """Look through the whole journal: the database, every record, and every result against its digest.

    A coordinator may run meanwhile.  Exit 0: it is sound; 1: it is damaged, and each damage is named.

    \b
    ifmesh journal check
    ifmesh journal check --state /srv/ifmesh --json | jq .damages
    """
    from ifmesh import audit, screen

    config, _ = options.configuration(config_file)
    it = audit.audit(config.mesh.state, _progress())
    if as_json:
        screen.document({**asdict(it), "sound": it.sound})
    else:
        _print(it)
    return exits.OK if it.sound else exits.FAILURE


@journal.command(short_help="Save what can be read of a damaged one.")
@options.as_json
@options.configured
def restore(as_json: bool, config_file: Path | None) -> int:
    """Copy what can be read of the journal into a fresh one, and put that in its place.

    The old one stays beside it, under a new name.  No coordinator may run: `ifmesh down` first.  Jobs whose ending is lost run again;
    with the same pixels.

    \b
    ifmesh journal restore
    """
    from ifmesh import salvage, screen

    config, _ = options.configuration(config_file)
    it = salvage.restore(config.mesh.state)
    if as_json:
        screen.document(asdict(it))
        return exits.OK
    screen.tell(f"saved: {', '.join(f'{count} {table}' for table, count in it.saved.items()) or 'nothing'}")
    _list("lost", it.lost)
    screen.tell(f"the old journal: {it.kept}")
    return exits.OK


def _progress() -> Told:
    from rich.progress import Progress

    from ifmesh import screen

    console = screen.stderr()
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("results")

    def told(done: int, of: int) -> None:
        if of < MANY:
            return
        bar.start()
        bar.update(task, completed=done, total=of)
        if done >= of:
            bar.stop()

    return told


def _print(it: Audit) -> None:
    from ifmesh import screen

    screen.tell(f"{it.state}: {'sound' if it.sound else 'damaged'}")
    screen.tell(f"jobs      {it.open} open, {it.ended} ended, {it.finished} of them with a result")
    screen.tell(f"files     results {screen.size(it.results_bytes)}, {it.uploads} uploads")
    screen.tell(f"database  {screen.size(it.database_bytes)}, its log {screen.size(it.log_bytes)}; version {it.schema}, epoch {it.epoch}")
    _list("orphans", it.orphans)
    if it.orphans:
        screen.say("orphans are results that belong to no job; the next start of the coordinator removes them")
    _list("damages", it.damages)
    if it.damages:
        screen.say("`ifmesh journal restore` saves what can be read")


def _list(title: str, lines: list[str]) -> None:
    from ifmesh import screen

    if not lines:
        return
    screen.tell(f"{title} ({len(lines)}):")
    for line in lines[:SHOWN]:
        screen.tell(f"  {line}")
    if len(lines) > SHOWN:
        screen.tell(f"  and {len(lines) - SHOWN} more: --json names all")
