"""The flags that say what to draw; what becomes of them is in `cli_wishes`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from ifmesh import cli_completion as completion

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path)
FILE = click.Path()  # for its completion alone: what is no file may be a URL, and what is wrong is said by whoever reads it


def drawing(f: F) -> F:
    """The flags of a picture.  Those that are given become `cli_wishes.wished`."""
    return _all((*BROUGHT, *TEXTS, _size("64", "256", "1024"), *SHAPE, *STAGES, SEEDING, *TERMS), f)


def proceeding(f: F) -> F:
    """The same of a picture that is begun already."""
    return _all((_size("256", "1024"), *STAGES, *TERMS), f)


def writing(f: F) -> F:
    """How pictures are written."""
    return _all(
        (
            click.option("--stages-dir", type=FOLDER, metavar="DIR", help="Every stage's picture, as it comes: JOB-64.png ..."),
            click.option("--no-parameters", is_flag=True, help="Do not tell in the file how it was made."),
            click.option("--no-wait", is_flag=True, help="Only hand it in, and print the job's id."),
        ),
        f,
    )


def _all(options: Iterable[Callable[[F], F]], f: F) -> F:
    for option in reversed(tuple(options)):
        f = option(f)
    return f


def _size(*sizes: str) -> Callable[[F], F]:
    return click.option(
        "--size",
        type=click.Choice(sizes),
        default="1024",
        show_default=True,
        callback=lambda ctx, param, value: int(value),
        help="Pixels of the shorter side: where the cascade stops.",
    )


def _staged(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, multiple=True, metavar="STAGE=X", shell_complete=completion.stages, help=text)


def _upscaling(name: str, value: object, text: str) -> Callable[[F], F]:
    return click.option(name, "upscale", flag_value=value, type=click.UNPROCESSED, help=text)


BROUGHT = (
    click.option("--image", type=FILE, metavar="PATH|URL", help="Vary this picture: PNG, JPEG or WebP."),
    click.option("--mask", type=FILE, metavar="PATH|URL", help="With --image: draw anew what is white in it."),
    _upscaling("--upscale", True, "With --image: make it larger, by Stage II and the upscaler, four times by each."),
    _upscaling("--upscale-alone", "alone", "The same, by the upscaler alone: four times."),
    click.option("--embeds", type=FILE, metavar="FILE", help="Texts from `ifmesh encode`; then PROMPT may be left out."),
)
TEXTS = (
    click.option("--negative", metavar="TEXT", help="What should not be there."),
    click.option("--style", metavar="TEXT", help="What it should look like; mixed into the prompt as --positive-mixer says."),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Same seed, same request: same pixels.  Else a random one."),
)
SHAPE = (
    click.option("--width", type=int, metavar="N", help="Base pixels (Stage I) of a new picture: a multiple of 8; default 64."),
    click.option("--height", type=int, metavar="N", help="The same."),
    click.option("--aspect-ratio", metavar="W:H", help="Instead: 3:2, 16:9, 2:3 ... with a shorter side of 64."),
)
STAGES = (
    click.option("--strength", multiple=True, metavar="X", help="With --image: above 0; 1 keeps nothing of it.  Or I=X,II=X."),
    _staged("--steps", "Denoising steps: I=100,II=50; a bare number is for all."),
    click.option("--timesteps", "timesteps_of", multiple=True, metavar="STAGE=T,T", help="Instead of steps: I=999,900,800; II=..."),
    _staged("--schedule", "Instead of steps: I=fast27,II=smart50, or 10,10,3,2,2 (steps per section), or ddim50."),
    _staged("--scheduler", "How to step: I=dpm++,II=ddpm; also dpm++-single and ddim."),
    _staged("--guidance", "Classifier-free guidance: I=7,II=4; a bare number is for all."),
    _staged("--noise-level", "Noise on what comes in: II=250,x4=100; a bare number is for both."),
    _staged("--threshold-ratio", "Dynamic thresholding: the quantile to cut at: I=0.95."),
    _staged("--threshold-max", "The most that the quantile counts as: I=1.5,II=1."),
    _staged("--positive-mixer", "With --style: how much of it, from 0 to 1: I=0.25,II=0.5; a bare number is for both."),
)
SEEDING = click.option("--seeding", type=click.Choice(("chained", "per_stage")), help="One generator through all stages, or fresh in each.")
TERMS = (
    click.option("--format", type=click.Choice(("png", "webp", "jpeg")), help="Of the file; without it, as the suffix of --out has it."),
    click.option(
        "--keep-for",
        "keep",
        type=click.FloatRange(0, min_open=True),
        metavar="S",
        help="So many seconds `ifmesh proceed` can go on from what ends early.",
    ),
    click.option("--priority", type=int, default=0, show_default=True, help="-100 to 100; higher goes first."),
    click.option("--deadline", type=float, metavar="S", help="Seconds until the job is given up."),
    click.option("--deadline-queued", type=float, metavar="S", help="The same, but only until its first stage begins."),
    click.option("--deadline-running", type=float, metavar="S", help="The same, from when its first stage has begun."),
    click.option("--tied/--detached", help="Cancel the job when this command vanishes; without it, it goes on."),
)
