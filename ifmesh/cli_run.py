"""Orders under way: handed in, shown, written; and what is said of them when nobody waits any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from ifmesh import exits, screen
from ifmesh.cli_targets import Output
from ifmesh.cli_wishes import Order
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError

if TYPE_CHECKING:
    from ifmesh.cli_progress import Board
    from ifmesh.client import Client, Job
    from ifmesh.image import Image
    from ifmesh.request import Request

NAMED = 10  # jobs that an interrupted command names
ENDINGS = (JobFailed, DeadlineExceeded, JobCancelled, MeshBusy)  # what --json tells of one job, instead of failing


def check_detached(tied: object, where: str = "") -> None:
    """Before a job is handed in that nobody waits for.  where: in which line that was said; else by a flag."""
    remedy = "with --no-wait this command is gone at once, and the job with it: leave one of them out"
    if tied and where:
        raise BadRequest(f"{where}: tied", tied, remedy)
    if tied:
        raise click.UsageError(f"--tied: {remedy}")


def warn_missing(client: Client, requests: Iterable[Request]) -> None:
    """Stages without a worker: the jobs are taken and wait; say what to start."""
    from ifmesh.cascade import IF

    route = {stage for request in requests for stage in IF.route(request)}
    if missing := [stage for stage in client.status().missing if stage in route]:
        remedy = " and ".join(f"`ifmesh worker {s}`" for s in missing)
        screen.say(f"no worker for {', '.join(missing)}: the job will wait; start {remedy} (or all with `ifmesh up`)", "yellow")


def hand_in(client: Client, orders: list[Order], output: Output, patient: bool) -> int:
    """One after the other, each in the mesh's journal before its id is printed.  patient: wait for a mesh that is full."""
    from ifmesh import cli_batch
    from ifmesh.cli_progress import Board

    warn_missing(client, (order.made(fetch=False)[0] for order in orders))
    board = Board()
    for order in orders:
        while True:
            request, brought = order.made()
            job = client.ask(request, upload=brought)
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


def each(client: Client, orders: list[Order], output: Output, forsake: bool = False) -> int:
    """All at once, shown one after the other; 0, or 5 when it failed, 6 when some of several did.  forsake: see `tended`."""
    from ifmesh.cli_progress import Board
    from ifmesh.cli_row import Row
    from ifmesh.image import Image

    made = [(order, *order.made()) for order in orders]
    warn_missing(client, (request for _, request, _ in made))
    began, failed = time.monotonic(), 0
    row, board = Row(client, made), Board()
    with tended(client, row.open, forsake):
        for order, job, came in row.landed(watcher(output)):
            if len(orders) == 1 and isinstance(came, MeshError) and not (output.as_json and isinstance(came, ENDINGS)):
                raise came
            if len(orders) == 1 and isinstance(came, Image):
                # one that cannot be written ends the command, by its own words
                output.finished(came, order, time.monotonic() - began, board)
            else:
                failed += not _told(order, job, came, output, time.monotonic() - began, board)
            del came  # before the next one is there
    return code(failed, len(orders))


def fly(client: Client, orders: list[Order], ahead: int, output: Output) -> int:
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
        with tended(client, flight.open), Board() as board:
            board.expect(len(orders))
            for order, job, came in flight.landed():
                failed += not _told(order, job, came, output, time.monotonic() - began, board)
                board.ended(failed)
    except (KeyboardInterrupt, Lost, OSError):
        if flight.waiting:
            lines = ", ".join(str(order.line) for order in list(flight.waiting)[:NAMED])
            more = f" and {len(flight.waiting) - NAMED} more" if len(flight.waiting) > NAMED else ""
            screen.say(f"{len(flight.waiting)} were not handed in: lines {lines}{more}")
        raise
    return code(failed, len(orders))


def watcher(output: Output) -> Callable[[Job, str], Image]:
    """What waits for a job and shows its way, behind a prefix."""
    from ifmesh.cli_progress import Board

    began = time.monotonic()
    early = None if output.stages_dir is None else output.early

    def see(job: Job, prefix: str) -> Image:
        with Board() as board:
            board.follow(job, began, early, prefix)
            return job.result()

    return see


@contextmanager
def tended(client: Client, left: dict[str, Order], forsake: bool = False) -> Iterator[None]:
    """Interrupted, or without an answer: end the jobs that are `left` and tied to this command, and say of the others how to come back.

    forsake: nobody wants them then: end them all.
    """
    try:
        yield
    except (KeyboardInterrupt, Lost, OSError) as error:  # OSError: nobody reads what we print, say
        _leave(client, left, isinstance(error, Lost), forsake)
        raise


def _leave(client: Client, left: dict[str, Order], lost: bool, forsake: bool) -> None:
    """lost: the mesh does not answer."""
    for number, (job, order) in enumerate(left.items()):
        said = f"job {job} goes on: ifmesh show {job} -o out.png, or ifmesh cancel {job}"
        if order.wishes.get("tied"):
            said = f"job {job} is tied to this command, and ends with it"
        elif forsake and not lost:
            said = f"job {job} is cancelled"
        if not lost and (forsake or order.wishes.get("tied")):
            with suppress(MeshError):
                client.cancel(job)
        if number < NAMED:
            screen.say(said)
    if len(left) > NAMED:
        screen.say(f"and {len(left) - NAMED} more: ifmesh ps --jobs")


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


def code(failed: int, count: int) -> int:
    """Of so many pictures."""
    return exits.OK if not failed else exits.JOB_FAILED if failed == count else exits.SOME_FAILED
