"""Best of N: many seeds through Stage I alone, and the rest of the way for those that are chosen, at once or by a later command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ifmesh import cli_completion as completion
from ifmesh import cli_flags as flags
from ifmesh import cli_options as options
from ifmesh import cli_run as run
from ifmesh import cli_targets as targets
from ifmesh import cli_wishes as wishes
from ifmesh import exits, screen
from ifmesh.cli_targets import Output
from ifmesh.cli_wishes import Order
from ifmesh.errors import BadRequest
from ifmesh.request import DEADLINES
from ifmesh.rules import DRAW

if TYPE_CHECKING:
    from ifmesh.client import Client
    from ifmesh.image import Image

HOUR = 3600.0
NONE = "none"
ONWARDS = ("size", "stages", "format", "priority", *DEADLINES, "tied")  # wishes for the rest of the way; what it draws is inherited


def orders(whole: Order, count: int) -> list[Order]:
    """So many seeds of Stage I alone.  BadRequest: they, or the rest of the way, can never work."""
    if whole.wishes["size"] == 64:
        raise click.UsageError(f"--candidates: --size 64 is Stage I alone, and nothing comes after: -n {count}, or a larger size")
    if upscale := whole.wishes.get("upscale"):
        raise click.UsageError(f"--candidates: {wishes.UPSCALE[upscale]} leaves out Stage I: -n instead, or leave one of them out")
    begun = {**whole.wishes, "size": 64, "format": "png", "stages": False, "keep": whole.wishes.get("keep", HOUR)}
    with wishes.flagged():
        replace(whole, wishes={**whole.wishes, "seed": 0, "keep": 0.0}).made()
        several = replace(whole, wishes=begun, target=None).times(count)
        several[0].made()
        several[-1].made()
    return [replace(order, candidate=number) for number, order in enumerate(several, 1)]


def chosen(text: str, among: Collection[int]) -> tuple[int, ...]:
    """(2, 5) of "2,5", () of "none".  ValueError: what would be right."""
    words = text.replace(",", " ").split()
    if words == [NONE]:
        return ()
    for word in words:
        if not word.isdecimal() or int(word) not in among:
            raise ValueError(f"{word!r}: {_numbers(among)}, as in 2,5; or {NONE}")
    if not words:
        raise ValueError(f"{_numbers(among)}, as in 2,5; or {NONE}")
    return tuple(dict.fromkeys(map(int, words)))


def best(client: Client, whole: Order, begun: list[Order], keep: tuple[int, ...] | None, output: Output) -> int:
    """Draw the candidates, show them, and go on with those of `keep`; None: ask, or, where nobody can be asked, say how to go on."""
    found = _drawn(client, begun, output)
    failed = len(begun) - len(found)
    if not found:
        return exits.JOB_FAILED
    sheet = _shown(found, whole)
    if not keep:
        out = f" -o {shlex.quote(str(whole.target))}" if whole.target else ""
        screen.say(f"to go on later, within {begun[0].wishes['keep']:g} s: ifmesh proceed JOB{out}")
    asks = keep is None and not output.as_json and sys.stdin.isatty() and sys.stderr.isatty()
    kept = _asked(found) if asks else keep or ()
    if output.as_json:
        told = [{"candidate": n, "job": image.job, "seed": image.seed, "flagged": image.flagged} for n, image in found.items()]
        screen.document({"sheet": str(sheet), "candidates": told, "keep": list(kept)})
    elif not kept and not asks:
        for image in found.values():
            screen.tell(image.job)
    if not kept:
        return run.code(failed, len(begun))
    onwards = {key: whole.wishes[key] for key in ONWARDS if key in whole.wishes}
    rest = _onward({n: found[n] for n in kept if n in found}, onwards, whole.target, len(kept) > 1)
    if not rest:
        return exits.JOB_FAILED
    return run.each(client, rest, output, forsake=True) or run.code(failed, len(begun))


def _drawn(client: Client, begun: list[Order], output: Output) -> dict[int, Image]:
    """By their numbers; of those that fail, it is said."""
    from ifmesh.cli_progress import Board
    from ifmesh.cli_row import Row
    from ifmesh.image import Image

    made = [(order, *order.made()) for order in begun]
    run.warn_missing(client, (request for _, request, _ in made))
    row, board = Row(client, made), Board()
    found = {}
    with run.tended(client, row.open, forsake=True):
        for order, job, came in row.landed(run.watcher(output)):
            if isinstance(came, Image):
                found[order.candidate] = came
                output.stages(came)
            else:
                output.failed(order, job, came, board)
    return found


def _shown(found: Mapping[int, Image], whole: Order) -> Path:
    """They are listed, and their contact sheet is written; where it is."""
    from ifmesh import sheet

    for number, image in found.items():
        screen.say(f"{number:>3}  seed {image.seed}  job {image.job}{f'  {targets.BLANKED}' if image.flagged else ''}")
    path = whole.path(next(iter(found.values())).job)
    path = path.with_name(f"{path.stem}-candidates.png")
    targets.save(lambda where: sheet.several(found).save(where), path)
    screen.say(f"{path} shows them")
    return path


def _asked(found: Mapping[int, Image]) -> tuple[int, ...]:
    """Until the answer can be understood.  The end of the input: none."""
    while True:
        print(f"continue with which? (e.g. 2,5; {NONE}) ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline().decode(errors="replace")
        try:
            if not line.endswith("\n"):  # Ctrl-D
                print(file=sys.stderr)
            return chosen(line if line else NONE, found)
        except ValueError as error:
            screen.say(str(error), "yellow")


def _onward(found: Mapping[int, Image], onwards: Mapping[str, Any], out: Path | None, numbered: bool) -> list[Order]:
    """The rest of the way of each.  numbered: its file has its number in the name.  BadRequest: it was not kept, say."""
    rest = []
    for number, image in found.items():
        target = out.with_stem(f"{out.stem}-{number}") if out and numbered else out
        rest.append(Order("", {**onwards, "continues": image}, target=target, candidate=number))
    with wishes.flagged():
        for order in rest:
            order.made()
    return rest


def _numbers(among: Collection[int]) -> str:
    least, most = min(among), max(among)
    return f"from {least} to {most}" if len(among) == most - least + 1 else f"one of {', '.join(map(str, among))}"


@click.command(short_help="Go on from a picture that was kept.")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...", shell_complete=completion.jobs)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; of several OUT-1.png ...; without it JOB.png here.")
@flags.proceeding
@flags.writing
@options.as_json
@options.coordinator
@options.configured
def proceed(
    jobs: tuple[str, ...],
    out: Path | None,
    stages_dir: Path | None,
    no_parameters: bool,
    no_wait: bool,
    as_json: bool,
    config_file: Path | None,
    **given: Any,
) -> int:
    """Go on where each JOB ended, through the rest of the cascade: a candidate of `ifmesh submit --candidates`, or a job with --keep-for.

    What it draws is as it was asked for; the flags here are for the stages that come.  The bytes are those of one job that went all the
    way.

    \b
    ifmesh submit "a fox" --candidates 8 -o fox.png --keep none    # prints their ids
    ifmesh proceed 3f9c2a7be01d4c55 -o fox.png
    ifmesh proceed 3f9c2a7be01d4c55 9b1d02c4aa7e6f10 -o fox.png --guidance II=6    # fox-1.png, fox-2.png
    """
    onwards = wishes.wished(**given, stages=stages_dir is not None, way=DRAW[1:])
    output = Output(stages_dir, not no_parameters, as_json)
    targets.check_folder(stages_dir, "--stages-dir")
    targets.check_file(out)
    if no_wait:
        run.check_detached(onwards["tied"])
    with options.door(config_file) as client:
        found = {number: _fetched(client, job, output) for number, job in enumerate(dict.fromkeys(jobs), 1)}
        for image in found.values():
            if not image.kept and not (image.request and image.request.keep):
                raise BadRequest(
                    "JOB", image.job, "was not kept: ask for it with --candidates, or with --size 64 --keep-for 3600 (seconds)"
                )
        rest = [replace(order, candidate=0) for order in _onward(found, onwards, out, len(found) > 1)]
        if no_wait:
            return run.hand_in(client, rest, output, patient=False)
        return run.each(client, rest, output, forsake=True)


def _fetched(client: Client, job: str, output: Output) -> Image:
    return run.watcher(output)(client.job(job), "")
