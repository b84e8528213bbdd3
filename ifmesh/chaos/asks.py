"""What the clients are to ask: one seed, one list, whoever draws it up again."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import shake_128
from random import Random

from ifmesh import wishes
from ifmesh.request import STAGES, Request
from ifmesh.wishes import LAST, NOTHING, Brought

TASKS = {"generate": 11, "vary": 3, "inpaint": 2, "upscale": 2, "alone": 1, "encode": 1}
SIZES = {64: 8, 256: 7, 1024: 5}
FATES = {"fine": 83, "cancel": 5, "deadline": 5, "raise": 2, "bad": 2, "flag": 2, "poison": 1}
"""What becomes of a request, in hundredths.  cancel: its client thinks better of it; deadline: it has a short one; raise: a stage raises,
each time; bad: a stage calls it wrong; flag: the safety checker blanks it; poison: it kills whatever worker steps it."""
FATES_REAL = {"fine": 90, "cancel": 5, "deadline": 5}
TROUBLE = {"raise": "raise", "bad": "bad", "poison": "abort"}
TWINS = 0.04
"""Share of requests that two clients ask for, under one id."""
SMALL = ((64, 64), (96, 64), (64, 80))
STEPS = {"stage_one": {"steps": 8}, "stage_two": {"steps": 6}}  # of the real cascade
FAST, SLOW = (0.2, 8.0), (5.0, 60.0)  # seconds within which a client cancels, and of deadlines: of toy stages, of real ones


@dataclass(frozen=True, slots=True)
class Ask:
    """at: seconds after the beginning.  clients: the numbers of those who ask.  stage: which one makes the trouble of `fate`.

    after: seconds until it is cancelled.  deadline: None for none.
    """

    job: str
    at: float
    clients: tuple[int, ...]
    fate: str
    stage: str
    after: float
    deadline: float | None
    previews: bool
    task: str
    size: int
    seed: int
    priority: int
    stages: bool
    source: tuple[int, int]
    real: bool

    @property
    def prompt(self) -> str:
        """It holds the job's id: a stage knows by it whose trouble it is in."""
        words = f"a lighthouse in a storm, job {self.job}"
        if self.fate == "flag":
            return f"{words} toy:flag"
        return f"{words} toy:{TROUBLE[self.fate]}={self.stage}" if self.fate in TROUBLE else words


def asks(seed: int, count: int, seconds: float, clients: int, real: bool) -> tuple[Ask, ...]:
    """So many requests, over so many seconds, by time.  real: for stages with models, which make no trouble when asked to."""
    random = Random(f"asks {seed}")
    fates = FATES_REAL if real else FATES
    sizes = {size: weight for size, weight in SIZES.items() if size <= 256 or not real}
    times = sorted(random.uniform(0, seconds) for _ in range(count))
    made = []
    for number, at in enumerate(times):
        task = random.choices(list(TASKS), list(TASKS.values()))[0]
        task = "upscale" if task == "alone" and real else task  # four times its source by the upscaler: 40 s on a CPU
        size = 1024 if task == "alone" else random.choices(list(sizes), list(sizes.values()))[0]
        size = max(size, 256) if task == "upscale" else size
        fate = random.choices(list(fates), list(fates.values()))[0]
        fate = "fine" if fate == "flag" and task == "encode" else fate
        pair = random.sample(range(clients), min(2, clients))
        made.append(
            Ask(
                job=f"chaos-{seed}-{number:06d}",
                at=round(at, 3),
                clients=tuple(pair if random.random() < TWINS else pair[:1]),
                fate=fate,
                stage=random.choice(_way(task, size)),
                after=round(random.uniform(0, (SLOW if real else FAST)[1]), 3),
                deadline=round(random.uniform(*(SLOW if real else FAST)), 3) if fate == "deadline" else None,
                previews=random.random() < 0.3 and fate != "flag",  # a guard that looks at an early picture knows no prompt
                task=task,
                size=size,
                seed=random.getrandbits(48),
                priority=random.choice((0, 0, 0, 0, -3, 5)),
                stages=real or random.random() < 0.7,
                source=random.choice(SMALL),
                real=real,
            )
        )
    return tuple(made)


def made(ask: Ask) -> tuple[Request, Brought]:
    """The request, and what it brings: the same whenever it is made."""
    more = {"priority": ask.priority, "deadline": ask.deadline}
    if ask.task == "encode":
        return replace(wishes.encoding(ask.prompt, "rain"), **more), NOTHING  # type: ignore[arg-type]
    settings = {stage: said for stage, said in STEPS.items() if stage in _way(ask.task, ask.size)} if ask.real else {}
    wanted: dict[str, object] = {**more, "size": ask.size, "seed": ask.seed, "stages": ask.stages, "settings": settings}
    if ask.task in ("upscale", "alone"):
        wanted["upscale"] = True if ask.task == "upscale" else "alone"
    source = None if ask.task == "generate" else _picture(ask.source, ask.seed % 8)
    mask = _picture(ask.source, -1) if ask.task == "inpaint" else None
    return wishes.made(ask.prompt, source, mask, wanted)


def _way(task: str, size: int) -> tuple[str, ...]:
    """The stages that it goes through."""
    if task in ("encode", "alone"):
        return ("encoder",) if task == "encode" else ("upscaler", "guard")
    upto = STAGES[: STAGES.index(LAST[size]) + 1]
    return tuple(stage for stage in (*upto, "guard") if task != "upscale" or stage != "stage_one")


@lru_cache(32)
def _picture(size: tuple[int, int], number: int) -> bytes:
    """A PNG of that (width, height): a pattern of that number; -1: a mask, its left half white."""
    from PIL import Image

    width, height = size
    if number < 0:
        picture = Image.new("L", size)
        picture.paste(255, (0, 0, width // 2, height))
    else:
        picture = Image.frombytes("RGB", size, shake_128(bytes([number])).digest(3 * width * height))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
