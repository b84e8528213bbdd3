"""The commands that ask for something new: submit, encode."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ifmesh import cli_options as options
from ifmesh import cli_targets as targets
from ifmesh import cli_wishes as wishes
from ifmesh import exits
from ifmesh.cli_targets import Output
from ifmesh.cli_wishes import Order
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError

if TYPE_CHECKING:
    from ifmesh.cli_progress import Board
    from ifmesh.client import Client, Job
    from ifmesh.image import Image
    from ifmesh.protocol import Request

NAMED = 10  # jobs that an interrupted command names
ENDINGS = (JobFailed, DeadlineExceeded, JobCancelled, MeshBusy)  # what --json tells of one job, instead of failing


@click.command(short_help="Draw a prompt, vary or repaint a picture; or many.")
@click.argument("prompt", required=False)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; without it JOB.png here.  With --batch: a folder.")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=1, help="So many pictures, with seeds SEED, SEED+1 ...")
@wishes.drawing
@click.option("--batch", type=click.Path(), metavar="FILE", help="A picture for each line of JSON; - is stdin.")
@click.option("--ahead", type=click.IntRange(1, 1000), default=8, show_default=True, help="With --batch: so many at once.")
@click.option("--stages-dir", type=click.Path(path_type=Path), metavar="DIR", help="Every stage's picture, as it comes: JOB-64.png ...")
@click.option("--no-parameters", is_flag=True, help="Do not tell in the PNG how it was made.")
@click.option("--no-wait", is_flag=True, help="Only hand it in, and print the job's id.")
@options.as_json
@options.coordinator
@options.configured
def submit(
    prompt: str | None,
    out: Path | None,
    count: int,
    image: str | None,
    mask: str | None,
    embeds: str | None,
    batch: str | None,
    ahead: int,
    stages_dir: Path | None,
    no_parameters: bool,
    no_wait: bool,
    as_json: bool,
    config_file: Path | None,
    **given: Any,
) -> int:
    """Draw PROMPT and write the picture.  Progress goes to stderr; with --json one line per picture to stdout.

    \b
    ifmesh submit "a red panda reading a map" -o panda.png --seed 7
    ifmesh submit "a lighthouse" --size 64 --steps I=50 --guidance I=9 --json
    ifmesh submit "a panda in the rain" --image panda.png --strength 0.6
    ifmesh submit "a hat" --image panda.png --mask mask.png --stages-dir stages
    ifmesh submit "an owl" -n 4 --seed 10 -o owl.png           # owl-1.png ... owl-4.png

    With --batch every line is an object: prompt and any other wish of the client by its name, image, mask and embeds as paths (relative
    to the file), out as the name of the picture.  The flags here are for the lines that do not say otherwise.

    \b
    {"prompt": "a fox", "seed": 7, "size": 64, "out": "fox.png"}
    {"prompt": "a wolf", "image": "fox.png", "settings": {"stage_one": {"steps": 50, "strength": 0.6}}}
    ifmesh submit --batch prompts.jsonl -o pictures --json
    """
    shared = Order(prompt or "", wishes.wished(**given, stages=stages_dir is not None), image, mask, embeds)
    output = Output(stages_dir, not no_parameters, as_json)
    targets.check_folder(stages_dir, "--stages-dir")
    if batch is not None:
        orders = _batch(batch, shared, prompt, out, count)
    elif prompt is None and embeds is None:
        raise click.MissingParameter(param_type="argument", param_hint="'PROMPT'", message="say what to draw, or --batch FILE")
    else:
        targets.check_file(out)
        with wishes.flagged():
            orders = replace(shared, target=out).times(count)
            for order in orders:
                order.made()
    if no_wait:
        _check_detached(orders, batch)
    with options.door(config_file) as client:
        if no_wait:
            return _hand_in(client, orders, output, patient=batch is not None)
        if batch is not None:
            return _fly(client, orders, ahead, output)
        return _each(client, orders, output)


def _batch(batch: str, shared: Order, prompt: str | None, out: Path | None, count: int) -> list[Order]:
    from ifmesh import cli_batch

    if prompt is not None:
        raise click.UsageError(f"PROMPT: {prompt!r}: every line of --batch has its own: leave it out")
    if out is not None and out.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") and not out.is_dir():
        raise click.BadParameter(f"{out}: with --batch the name of a folder", param_hint=targets.OUT)
    targets.check_folder(out, targets.OUT)
    orders = cli_batch.read(batch, shared, out or Path())
    return [one for order in orders for one in order.times(count)]


def _check_detached(orders: list[Order], batch: str | None) -> None:
    remedy = "with --no-wait this command is gone at once, and the job with it: leave one of them out"
    for order in orders:
        if order.wishes.get("tied"):
            if batch is None:
                raise click.UsageError(f"--tied: {remedy}")
            raise BadRequest(f"{'stdin' if batch == '-' else batch}, line {order.line}: tied", True, remedy)


def warn_missing(client: Client, requests: Iterable[Request]) -> None:
    """Stages without a worker: the jobs are taken and wait; say what to start."""
    from ifmesh import screen
    from ifmesh.cascade import IF

    route = {stage for request in requests for stage in IF.route(request)}
    if missing := [stage for stage in client.status().missing if stage in route]:
        remedy = " and ".join(f"`ifmesh worker {s}`" for s in missing)
        screen.say(f"no worker for {', '.join(missing)}: the job will wait; start {remedy} (or all with `ifmesh up`)", "yellow")


def _hand_in(client: Client, orders: list[Order], output: Output, patient: bool) -> int:
    """One after the other, each in the mesh's journal before its id is printed.  patient: wait for a mesh that is full."""
    from ifmesh import cli_batch, screen
    from ifmesh.cli_progress import Board

    warn_missing(client, (order.made(fetch=False)[0] for order in orders))
    board = Board()
    for order in orders:
        while True:
            request, brought = order.made()
            job = client.ask(request, upload=brought.frame)
            try:
                next(job.events(previews=False))  # accepted, or this raises
                break
            except MeshBusy as busy:
                if not patient:
                    raise
                screen.say(f"line {order.line} waits: {busy}", "yellow")
                time.sleep(cli_batch.pause_of(busy))
        output.accepted(order, job.id, board)
    return exits.OK


def _each(client: Client, orders: list[Order], output: Output) -> int:
    """All at once, shown one after the other; 0, or 5 when it failed, 6 when some of several did."""
    from ifmesh.cli_progress import Board
    from ifmesh.cli_row import Row
    from ifmesh.image import Image

    made = [(order, *order.made()) for order in orders]
    warn_missing(client, (request for _, request, _ in made))
    began, failed = time.monotonic(), 0
    early = None if output.stages_dir is None else output.early

    def see(job: Job, prefix: str) -> Image:
        with Board() as board:
            board.follow(job, began, early, prefix)
            return job.result()

    row = Row(client, made)
    board = Board()
    try:
        for order, job, came in row.landed(see):
            if len(orders) == 1 and isinstance(came, MeshError) and not (output.as_json and isinstance(came, ENDINGS)):
                raise came
            if len(orders) == 1 and isinstance(came, Image):
                output.finished(
                    came, order, time.monotonic() - began, board
                )  # one that cannot be written ends the command, by its own words
            else:
                failed += not _told(order, job, came, output, time.monotonic() - began, board)
            del came  # before the next one is there
    except (KeyboardInterrupt, Lost, OSError) as error:  # OSError: nobody reads what we print, say
        leave(client, row.open, isinstance(error, Lost))
        raise
    return _code(failed, len(orders))


def _fly(client: Client, orders: list[Order], ahead: int, output: Output) -> int:
    """A few at a time, told as they end."""
    from ifmesh.cli_batch import Flight
    from ifmesh.cli_progress import Board

    warn_missing(client, (order.made(fetch=False)[0] for order in orders))
    began = time.monotonic()

    def onlook(job: Job) -> None:
        from ifmesh.image import Preview

        try:
            for event in job.events():
                if isinstance(event, Preview):
                    output.early(event)
        except MeshError:
            pass  # whatever it is, the job's own end tells it

    flight = Flight(client, orders, ahead, None if output.stages_dir is None else onlook)
    failed = 0
    try:
        with Board() as board:
            board.expect(len(orders))
            for order, job, came in flight.landed():
                failed += not _told(order, job, came, output, time.monotonic() - began, board)
                board.ended(failed)
    except (KeyboardInterrupt, Lost, OSError) as error:
        leave(client, flight.open, isinstance(error, Lost))
        if flight.waiting:
            lines = ", ".join(str(order.line) for order in list(flight.waiting)[:NAMED])
            more = f" and {len(flight.waiting) - NAMED} more" if len(flight.waiting) > NAMED else ""
            from ifmesh import screen

            screen.say(f"{len(flight.waiting)} were not handed in: lines {lines}{more}")
        raise
    return _code(failed, len(orders))


def _told(order: Order, job: str, came: object, output: Output, seconds: float, board: Board) -> bool:
    """Write what came, and say so.  False: it failed, or cannot be written."""
    from ifmesh.image import Image

    try:
        if isinstance(came, Image):
            output.finished(came, order, seconds, board)
            return True
        assert isinstance(came, MeshError)
        raise came
    except MeshError as error:
        output.failed(order, job, error, board)
        return False


def leave(client: Client, left: dict[str, Order], lost: bool) -> None:
    """End the jobs that are tied to this command, and say of the others how to come back to them.  lost: the mesh does not answer."""
    from ifmesh import screen

    for number, (job, order) in enumerate(left.items()):
        said = f"job {job} goes on: ifmesh show {job} -o out.png, or ifmesh cancel {job}"
        if order.wishes.get("tied"):
            said = f"job {job} is tied to this command, and ends with it"
            if not lost:
                with suppress(MeshError):
                    client.cancel(job)
        if number < NAMED:
            screen.say(said)
    if len(left) > NAMED:
        screen.say(f"and {len(left) - NAMED} more: ifmesh ps --jobs")


def _code(failed: int, count: int) -> int:
    return exits.OK if not failed else exits.JOB_FAILED if failed == count else exits.SOME_FAILED


@click.command(short_help="Encode a prompt, to draw it later.")
@click.argument("prompt")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File to write, as in fox.safetensors.")
@click.option("--negative", default="", metavar="TEXT", help="What should not be there.")
@options.as_json
@options.coordinator
@options.configured
def encode(prompt: str, out: Path, negative: str, as_json: bool, config_file: Path | None) -> int:
    """Write what the encoder makes of PROMPT, for `ifmesh submit --embeds`.

    \b
    ifmesh encode "a red panda reading a map" -o panda.safetensors
    ifmesh submit --embeds panda.safetensors --seed 7
    """
    from ifmesh import screen
    from ifmesh import wishes as wished

    targets.check_file(out, (".safetensors",))
    with wishes.flagged():
        request = wished.encoding(prompt, negative)
    with options.door(config_file) as client:
        warn_missing(client, [request])
        embeds = client.encode(prompt, negative)
    targets.save(embeds.save, out)
    if as_json:
        tensor = embeds.tensor
        screen.document({"path": str(out), "shape": list(tensor.shape), "dtype": tensor.dtype, "notes": list(embeds.notes)})
    else:
        screen.tell(str(out))
    for note in embeds.notes:
        screen.say(f"{out}: {note}", "yellow")
    return exits.OK


COMMANDS = (submit, encode)
