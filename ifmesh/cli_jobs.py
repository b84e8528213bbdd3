"""The commands about jobs: submit, show, cancel, demo."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ifmesh import cli_options as options
from ifmesh.protocol import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ifmesh.client import Client, Job
    from ifmesh.image import Image, Picture
    from ifmesh.protocol import StageRun

SHORT = {"I": "stage_one", "II": "stage_two", "x4": "upscaler", "1": "stage_one", "2": "stage_two"}
SIZES = ("64", "256", "1024")


def door(config_file: Path | None) -> Client:
    """The client that this command's flags describe."""
    from ifmesh.client import Client

    config, _ = options.configuration(config_file)
    return Client(config.mesh.coordinator or None, state=config.mesh.state)


def per_stage(texts: Iterable[str], kind: type[int] | type[float], param: str) -> dict[str, int | float]:
    """{"stage_one": 27} of ["I=27"]; a bare number is for every stage that draws."""
    found: dict[str, int | float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        stages = tuple(dict.fromkeys(SHORT.values())) if not equals else (SHORT.get(name, name),)
        try:
            found |= dict.fromkeys(stages, kind(number))
        except ValueError:
            raise click.BadParameter(f"{text!r}: STAGE=NUMBER, as in I=27", param_hint=param) from None
        if wrong := [s for s in stages if s not in SHORT.values()]:
            raise click.BadParameter(f"{wrong[0]!r}: I, II or x4 (stage_one, stage_two, upscaler)", param_hint=param)
    return found


def settings(steps: Iterable[str], guidance: Iterable[str]) -> dict[str, dict[str, object]]:
    """By stage, as Client.submit takes them."""
    found: dict[str, dict[str, object]] = {}
    for key, values in (("steps", per_stage(steps, int, "--steps")), ("guidance", per_stage(guidance, float, "--guidance"))):
        for stage, value in values.items():
            found.setdefault(stage, {})[key] = value
    return found


def _target(out: Path | None, job: str, index: int, count: int) -> Path:
    if out is None:
        return Path(f"{job}.png")
    return out if count == 1 else out.with_stem(f"{out.stem}-{index + 1}")


def _check_target(out: Path | None) -> None:
    """Before anything is drawn: could it be written?"""
    from ifmesh.image import check_suffix

    if out is None:
        return
    if not out.parent.is_dir():
        raise click.BadParameter(f"{out}: no folder {out.parent}", param_hint="--out")
    if out.is_dir() or not out.suffix:
        raise click.BadParameter(f"{out}: the name of a file, as in out.png", param_hint="--out")
    try:
        check_suffix(out)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--out") from None
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise click.BadParameter(f"{out}: may not be written", param_hint="--out")


def _save(picture: Picture, path: Path, job: str) -> None:
    """A disk that fails now costs nothing but another command: the mesh keeps the picture."""
    from ifmesh.errors import MeshError

    try:
        picture.save(path)
    except OSError as error:
        raise MeshError(f"{path}: {error.strerror or error}; the mesh keeps it: ifmesh show {job} -o ELSEWHERE.png") from None


@click.command(short_help="Draw one prompt.")
@click.argument("prompt")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; without it JOB.png here.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Same seed, same request: same pixels.  Without it, a random one.")
@click.option("--negative", default="", metavar="TEXT", help="What should not be there.")
@click.option("--size", type=click.Choice(SIZES), default="1024", show_default=True, help="Pixels: where the cascade stops.")
@click.option("--steps", multiple=True, metavar="STAGE=N", help="Denoising steps; I, II, x4.  Repeatable.")
@click.option("--guidance", multiple=True, metavar="STAGE=X", help="Classifier-free guidance; I, II, x4.  Repeatable.")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=1, help="So many pictures, with seeds SEED, SEED+1 ...")
@click.option("--stages", is_flag=True, help="Write the earlier stages' pictures too: out-64.png ...")
@click.option("--priority", type=int, default=0, show_default=True, help="-100 to 100; higher goes first.")
@click.option("--deadline", type=float, metavar="S", help="Seconds until the job is given up.")
@click.option("--no-wait", is_flag=True, help="Only hand it in, and print the job's id.")
@options.as_json
@options.coordinator
@options.configured
def submit(
    prompt: str,
    out: Path | None,
    seed: int | None,
    size: str,
    steps: tuple[str, ...],
    guidance: tuple[str, ...],
    count: int,
    stages: bool,
    no_wait: bool,
    as_json: bool,
    config_file: Path | None,
    **wishes: Any,
) -> int:
    """Draw PROMPT and write the picture.  Progress goes to stderr; with --json one line per picture to stdout.

    \b
    ifmesh submit "a red panda reading a map" -o panda.png --seed 7
    ifmesh submit "a lighthouse" --size 64 --steps I=50 --guidance I=9 --json
    """
    import secrets

    from ifmesh import screen

    _check_target(out)
    chosen = settings(steps, guidance)
    with door(config_file) as client:
        _warn_missing(client, STAGES[: 2 + SIZES.index(size)])
        first = secrets.randbits(32) if seed is None else seed
        jobs: list[Job] = []
        began = time.monotonic()
        try:
            for index in range(count):
                jobs.append(client.submit(prompt, seed=first + index, size=int(size), settings=chosen, stages=stages, **wishes))
            if no_wait:
                for job in jobs:
                    next(job.events())  # it is in the mesh's journal, or this raises
                    if as_json:
                        screen.document({"job": job.id, "seed": job.seed})
                    else:
                        screen.tell(job.id)
                return 0
            return _collect(jobs, began, out, stages, as_json)
        except KeyboardInterrupt:
            for job in jobs:
                screen.say(f"job {job.id} goes on: ifmesh show {job.id} -o out.png, or ifmesh cancel {job.id}")
            raise


def _warn_missing(client: Client, route: tuple[str, ...]) -> None:
    """A stage without a worker: the job is taken and waits; say what to start."""
    from ifmesh import screen

    if missing := [s for s in client.inspect().missing if s in (*route, "guard")]:
        remedy = " and ".join(f"`ifmesh worker {s}`" for s in missing)
        screen.say(f"no worker for {', '.join(missing)}: the job will wait; start {remedy} (or all with `ifmesh up`)", "yellow")


def _collect(jobs: list[Job], began: float, out: Path | None, stages: bool, as_json: bool) -> int:
    """Wait for each, write what comes; 0, or 5 when it failed, 6 when some of several did."""
    from ifmesh import screen
    from ifmesh.errors import DeadlineExceeded, JobCancelled, JobFailed, MeshBusy

    failed = 0
    for index, job in enumerate(jobs):
        try:
            _follow(job, f"{index + 1}/{len(jobs)} " if len(jobs) > 1 else "")
            image = job.result()
        except (JobFailed, DeadlineExceeded, JobCancelled, MeshBusy) as error:
            if len(jobs) == 1 and not as_json:
                raise
            failed += 1
            screen.say(f"ifmesh: {error}", "red")
            if as_json:
                screen.document({"job": job.id, "seed": job.seed, "error": str(error)})
            continue
        path = _target(out, job.id, index, len(jobs))
        _save(image, path, job.id)
        if stages:
            for name, picture in image.stages.items():
                if name != image.stage:
                    _save(picture, path.with_stem(f"{path.stem}-{picture.size[0]}"), job.id)
        if as_json:
            screen.document(described(image, path, time.monotonic() - began))
        else:
            screen.tell(str(path))
        if image.flagged:
            screen.say(f"{path}: the safety checker has blanked it", "yellow")
    return 0 if not failed else 5 if failed == len(jobs) else 6


def described(image: Image, path: Path | None, seconds: float) -> dict[str, object]:
    """The JSON line of one picture.  size: [width, height]; seconds: since they were handed in; stages: what each of them did."""
    return {
        "job": image.job,
        "seed": image.seed,
        "path": str(path) if path else None,
        "size": list(image.size),
        "flagged": image.flagged,
        "reproducible": image.reproducible,
        "seconds": round(seconds, 3),
        "stages": [ran(run) for run in image.timings],
    }


def ran(run: StageRun) -> dict[str, object]:
    """What one stage did, for JSON: seconds to the microsecond."""
    return asdict(run) | {"queued_s": round(run.queued_s, 6), "run_s": round(run.run_s, 6)}


def _follow(job: Job, prefix: str) -> None:
    """Show the job's progress on stderr until it has ended: bars on a terminal, a line per stage elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ifmesh import protocol, screen

    console = screen.stderr()
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[by]}"),
    )
    bars: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=False) as progress:
        for event in job.events():
            match event:
                case protocol.Queued(stage=stage, position=position):
                    if not console.is_terminal and position:
                        screen.say(f"{prefix}{job.id} waits for {stage}: {position} before it")
                case protocol.Started(stage=stage, worker=worker):
                    if stage not in bars:
                        bars[stage] = progress.add_task(prefix + stage, total=None, by=worker)
                    progress.update(bars[stage], by=worker)
                    if not console.is_terminal:
                        screen.say(f"{prefix}{job.id} {stage} on {worker}")
                case protocol.Progress(stage=stage, step=step, steps=steps) if stage in bars:
                    progress.update(bars[stage], completed=step, total=steps)
                case protocol.Finished(runs=runs):
                    for run in runs:
                        if run.stage in bars:
                            progress.update(bars[run.stage], completed=run.steps, total=run.steps)


@click.command(short_help="The story of one job.")
@click.argument("job")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write its picture to this file, when it has finished.")
@options.as_json
@options.coordinator
@options.configured
def show(job: str, out: Path | None, as_json: bool, config_file: Path | None) -> int:
    """What happened to JOB: its story, and what each stage did.

    \b
    ifmesh show 3f9c2a7be01d4c55
    ifmesh show 3f9c2a7be01d4c55 -o out.png
    """
    from ifmesh import screen

    _check_target(out)
    with door(config_file) as client:
        books = client.inspect(job=job)
        row = books.jobs[0] if books.jobs else None
        if as_json:
            told: Mapping[str, object] = asdict(row) if row else {"job": job}
            story = [{"seconds": round(at, 6), "what": what} for at, what in books.story]
            screen.document({**told, "ending": books.ending, "story": story, "stages": [ran(run) for run in books.runs]})
        else:
            console = screen.stdout()
            if row:
                screen.tell(f"{row.job}  {row.state}  {row.stage}  {row.prompt}")
            lines = screen.table("", "seconds", "what", right=("seconds",))
            for at, what in books.story:
                lines.add_row(f"{at:.3f}", what)
            console.print(lines, markup=False)
            if books.runs:
                console.print(timeline(books.runs), markup=False)
            if books.ending:
                screen.tell(books.ending)
        if out is not None:
            _save(client.job(job).result(), out, job)
            screen.say(f"written: {out}")
    return 0


def timeline(runs: Iterable[StageRun]) -> Any:
    """A table of what each stage did for one job."""
    from ifmesh import screen

    right = ("pid", "queued s", "run s", "steps", "in", "out", "runs")
    made = screen.table("", "stage", "worker", "pid", "device", "queued s", "run s", "steps", "in", "out", "runs", right=right)
    for r in runs:
        numbers = (f"{r.queued_s:.3f}", f"{r.run_s:.3f}", str(r.steps), screen.size(r.bytes_in), screen.size(r.bytes_out), str(r.runs))
        made.add_row(r.stage, r.worker, str(r.pid), r.device, *numbers)
    return made


@click.command(short_help="End a job early.")
@click.argument("job")
@options.as_json
@options.coordinator
@options.configured
def cancel(job: str, as_json: bool, config_file: Path | None) -> int:
    """End JOB now.  Exit 0: it was cancelled; 1: it had ended otherwise before."""
    from ifmesh import screen
    from ifmesh.protocol import Cancelled

    with door(config_file) as client:
        ended = client.cancel(job)
    how = type(ended).__name__.lower()
    if as_json:
        screen.document({"job": job, "ended": how})
    else:
        screen.tell(f"{job} {how}")
    return 0 if isinstance(ended, Cancelled) else 1


@click.command(short_help="Everything once: mesh, prompt, pictures.")
@click.argument("prompt", required=False, default="")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True, help="Folder to write to."
)
@click.option("--toy", is_flag=True, help="Stages without models or torch.")
@click.option("--cascade", default="", metavar="PATH|if-xl|if-l|if-m", help="Weights; without it, the built-in cascade.")
def demo(prompt: str, out: Path, toy: bool, cascade: str) -> int:
    """Start a mesh of its own, draw PROMPT, write the pictures of all stages and a contact sheet, and take everything down."""
    from ifmesh import demo as show_all

    ended: int = show_all.run(out, prompt, cascade, toy)
    return ended


COMMANDS = (submit, show, cancel, demo)
