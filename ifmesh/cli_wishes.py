"""What becomes of the flags that say what to draw: Orders, each of one picture."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ifmesh.cli_targets import SUFFIX
from ifmesh.errors import BadRequest
from ifmesh.request import DEADLINES
from ifmesh.rules import DRAW, STRENGTH

if TYPE_CHECKING:
    from ifmesh.request import Request
    from ifmesh.wishes import Brought

N = TypeVar("N", int, float, str)

SHORT = {"I": "stage_one", "II": "stage_two", "x4": "upscaler", "1": "stage_one", "2": "stage_two"}
LONG = {"stage_one": "I", "stage_two": "II", "upscaler": "x4"}
PLAIN = ("mask", "embeds", "negative", "style", "seed", "seeding", "size", "width", "height", "strength", "upscale", "format", "priority")
FLAGS = {name: f"--{name.replace('_', '-')}" for name in (*PLAIN, *DEADLINES)} | {
    "source": "--image",
    "aspect_ratio": "--aspect-ratio",
    "keep": "--keep-for",
    "continues": "JOB",
}
SAMPLE = {"steps": "I=27", "guidance": "I=7.5", "strength": "I=0.7", "noise-level": "II=250", "scheduler": "I=dpm++"} | {
    "threshold-ratio": "I=0.99",
    "threshold-max": "I=2",
    "positive-mixer": "I=0.25",
}
UPSCALE = {True: "--upscale", "alone": "--upscale-alone"}  # wish -> its flag
PIXELS = ("stage_one", "stage_two")  # those that draw pixels, not latents, by lists of timesteps


@dataclass(frozen=True, slots=True)
class Order:
    """One picture that is wished for.  wishes: as in `ifmesh.wishes.Wishes`, always with a seed or the Image that it continues.

    image, mask: paths or URLs; embeds: a path.  target: the file to write; None: JOB.png in `place`, or as the format is called.
    line: of the batch; candidate: its number among several; 0: of none.
    """

    prompt: Any
    wishes: Mapping[str, Any]
    image: str | None = None
    mask: str | None = None
    embeds: str | None = None
    target: Path | None = None
    place: Path = Path()
    line: int = 0
    candidate: int = 0

    @property
    def seed(self) -> Any:
        return self.wishes["seed"] if "seed" in self.wishes else self.wishes["continues"].seed

    @property
    def format(self) -> Any:
        """Of the published file: as wished, else as the target's name has it."""
        return self.wishes.get("format") or _format(self.target)

    def path(self, job: str) -> Path:
        return self.target or self.place / f"{job}{SUFFIX.get(self.format, '.png')}"

    def made(self, fetch: bool = True) -> tuple[Request, Brought]:
        """The Request and what it brings.  BadRequest: it can never work.  fetch: False: for checking alone, without a look at URLs."""
        from ifmesh import wishes

        if self.target is not None and self.format != (told := _format(self.target)):
            raise BadRequest("format", self.format, f"{self.target.name} is to be {told}: leave one of them out")
        return wishes.made(self.prompt, None, None, {**self.wishes, "format": self.format}, self._brought(fetch))

    def times(self, count: int) -> list[Order]:
        """So many of it, with seeds that count on from the first, and files of their own."""
        first = secrets.randbits(32) if self.wishes.get("seed") is None else self.wishes["seed"]
        found = []
        for index in range(count):
            seed = first + index if type(first) is int else first  # whatever else it is, `made` says so
            target = self.target if self.target is None or count == 1 else self.target.with_stem(f"{self.target.stem}-{index + 1}")
            found.append(replace(self, wishes={**self.wishes, "seed": seed}, target=target))
        return found

    def _brought(self, fetch: bool) -> Brought:
        if not fetch and any("://" in name for name in (self.image or "", self.mask or "")):
            from ifmesh.wishes import Brought

            given = {"source": self.image, "mask": self.mask, "embeds": self.embeds}
            names = tuple(name for name, what in given.items() if what is not None)
            return Brought(names, digest="0" * 64, source=b"", mask=None if self.mask is None else b"")
        return _read(self.image, self.mask, self.embeds)


def _format(target: Path | None) -> str:
    """What the mesh is asked for: what its suffix says; png, which keeps every bit, where it is converted to something else."""
    from ifmesh.image import SUFFIXES

    return "png" if target is None else SUFFIXES.get(target.suffix.lower(), "png")


@lru_cache(maxsize=4)
def _read(image: str | None, mask: str | None, embeds: str | None) -> Brought:
    """Read once what neighbours in a batch share."""
    from ifmesh import wishes
    from ifmesh.embeds import Embeds

    return wishes.bring(image, mask, None if embeds is None else Embeds.load(embeds), None)


@contextmanager
def flagged() -> Iterator[None]:
    """Errors name the flag that is to be changed, not the field behind it."""
    try:
        yield
    except BadRequest as error:
        raise BadRequest(flag(error.field), error.value, error.remedy) from None


def flag(field: str) -> str:
    if found := re.fullmatch(r"settings\.(stage_one|stage_two|upscaler)\.(\w+)", field):
        return f"--{found[2].replace('_', '-')} {LONG[found[1]]}"
    return FLAGS.get(field, field)


def gone_through(upscale: object) -> tuple[str, ...]:
    """The drawing stages, by the wish for upscale."""
    return DRAW[1:] if upscale is True else DRAW[2:] if upscale == "alone" else DRAW


def per_stage(texts: Iterable[str], kind: type[N], option: str, every: tuple[str, ...] = DRAW) -> dict[str, N]:
    """{"stage_one": 27, "stage_two": 5} of ["I=27,II=5"].  A bare number is for `every` stage that is not named."""
    found: dict[str, N] = {}
    hint = f"--{option}"
    parts = [part.strip() for text in texts for part in text.split(",")]
    for text in sorted(parts, key=lambda part: "=" in part):
        name, equals, number = text.rpartition("=")
        try:
            value = kind(number)
        except ValueError:
            raise click.BadParameter(f"{text!r}: STAGE=NUMBER, as in {SAMPLE[option]}", param_hint=hint) from None
        found |= dict.fromkeys((_stage(name, hint),) if equals else every, value)
    return found


def schedules(texts: Iterable[str], every: tuple[str, ...] = PIXELS) -> dict[str, str]:
    """{"stage_one": "fast27", "stage_two": "10,10,5"} of ["I=fast27,II=10,10,5"].  One without a stage is for `every` that is not named."""
    said: list[tuple[tuple[str, ...], str]] = []
    for text in texts:
        for number, part in enumerate(text.split(",")):
            name, equals, value = part.rpartition("=")
            if equals:
                said.append(((_stage(name, "--schedule"),), value))
            elif number:  # a comma within the schedule
                said[-1] = (said[-1][0], f"{said[-1][1]},{part}")
            else:
                said.append((every, part))
    found: dict[str, str] = {}
    for stages, value in sorted(said, key=lambda one: len(one[0]), reverse=True):
        found |= dict.fromkeys(stages, value.strip())
    return found


def timesteps(texts: Iterable[str]) -> dict[str, list[int]]:
    """{"stage_one": [999, 500, 0]} of ["I=999,500,0"]."""
    found = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            found[_stage(name, "--timesteps")] = [int(number) for number in numbers.split(",")]
        except ValueError:
            raise click.BadParameter(f"{text!r}: STAGE=N,N,..., falling, as in I=999,500,0", param_hint="--timesteps") from None
    return found


def _stage(name: str, hint: str) -> str:
    stage = SHORT.get(name.strip(), name.strip())
    if stage not in DRAW:
        raise click.BadParameter(f"{stage!r}: I, II or x4 (stage_one, stage_two, upscaler)", param_hint=hint)
    return stage


def wished(
    steps: Iterable[str] = (),
    timesteps_of: Iterable[str] = (),
    guidance: Iterable[str] = (),
    strength: Iterable[str] = (),
    noise_level: Iterable[str] = (),
    schedule: Iterable[str] = (),
    scheduler: Iterable[str] = (),
    threshold_ratio: Iterable[str] = (),
    threshold_max: Iterable[str] = (),
    positive_mixer: Iterable[str] = (),
    way: tuple[str, ...] = DRAW,
    **plain: Any,
) -> dict[str, Any]:
    """The wishes that the flags say, as the client takes them; what was not said is left out.

    way: the stages that are gone through; a bare number is for those of them that know what it says.
    """

    def every(*able: str) -> tuple[str, ...]:
        return tuple(stage for stage in able if stage in way) or able  # none: the request says that it does not apply

    settings: dict[str, dict[str, object]] = {}
    bare = [text for text in strength if "=" not in text]
    staged: dict[str, Mapping[str, object]] = {
        "steps": per_stage(steps, int, "steps", every(*DRAW)),
        "timesteps": timesteps(timesteps_of),
        "guidance": per_stage(guidance, float, "guidance", every(*DRAW)),
        "strength": per_stage((text for text in strength if "=" in text), float, "strength", STRENGTH),
        "noise_level": per_stage(noise_level, int, "noise-level", every("stage_two", "upscaler")),
        "schedule": schedules(schedule, every(*PIXELS)),
        "scheduler": per_stage(scheduler, str, "scheduler", every(*DRAW)),
        "threshold_ratio": per_stage(threshold_ratio, float, "threshold-ratio", every(*PIXELS)),
        "threshold_max": per_stage(threshold_max, float, "threshold-max", every(*PIXELS)),
        "positive_mixer": per_stage(positive_mixer, float, "positive-mixer", every(*PIXELS)),
    }
    for key, values in staged.items():
        for stage, value in values.items():
            settings.setdefault(stage, {})[key] = value
    found = {name: value for name, value in plain.items() if value is not None}
    if settings:
        found["settings"] = settings
    if bare:
        found["strength"] = next(iter(per_stage(bare[-1:], float, "strength").values()))
    return found
