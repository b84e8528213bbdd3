"""The life of a job as a bar for each stage: how long it waited there, how long it ran.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["queued", "running", "lost"]
"""lost: an attempt that came to nothing: its worker died, or the stage raised."""

KINDS: Final[tuple[Kind, ...]] = ("queued", "running", "lost")
MARKS: Final[dict[Kind, str]] = {"queued": "·", "running": "█", "lost": "▒"}
PLAIN: Final[dict[Kind, str]] = {"queued": ".", "running": "#", "lost": "x"}  # where a terminal knows no others
LINE: Final = re.compile(r"(\w+): (begun on|advanced|completed|retried|exhausted|cancelled|expired|done on)\b")
LEGEND: Final[dict[Kind, str]] = {"queued": "waits", "running": "runs", "lost": "in vain"}


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds since acceptance."""

    stage: str
    kind: Kind
    begin: float
    end: float


def spans(story: Iterable[tuple[float, str]], now: tuple[str, float] | None = None) -> list[Span]:
    """story: of the books: (seconds since acceptance, what happened).  now: the stage and the age of a job that has not ended."""
    found: list[Span] = []
    since, running, at = 0.0, False, ""
    for when, what in story:
        if (line := LINE.match(what)) is None:
            continue
        stage, event = line.groups()
        at = stage
        if event == "begun on":
            found.append(Span(stage, "lost" if running else "queued", since, when))
        elif event == "done on":  # the last stage: its result is on the way to disk
            continue
        else:
            done = event in ("advanced", "completed")
            found.append(Span(stage, "queued" if not running else "running" if done else "lost", since, when))
        since, running = when, event == "begun on"
    if now is not None:
        stage, age = now
        found.append(Span(stage, "running" if running and stage == at else "queued", since, max(since, age)))
    return found


def seconds(of: Iterable[Span], stage: str, kind: Kind) -> float:
    return sum(span.end - span.begin for span in of if (span.stage, span.kind) == (stage, kind))


def bar(of: list[Span], stage: str, width: int, marks: dict[Kind, str] = MARKS) -> str:
    """The stage's own line, `width` characters for the whole life of the job.  Whatever ran is seen, however short."""
    whole = max((span.end for span in of), default=0.0)
    cells = [" "] * width
    for span in sorted(of, key=lambda span: span.kind == "running"):  # drawn over the others
        if span.stage == stage and whole > 0:
            first, last = (min(width, round(moment / whole * width)) for moment in (span.begin, span.end))
            if first == last and span.kind != "queued":
                first = min(first, width - 1)
                last = first + 1
            cells[first:last] = marks[span.kind] * (last - first)
    return "".join(cells)


def chart(of: list[Span], width: int, plain: bool = False) -> list[tuple[str, str, str]]:
    """(stage, bar, seconds) for each stage that the job has come to, in that order."""
    marks = PLAIN if plain else MARKS
    lines = []
    for stage in dict.fromkeys(span.stage for span in of):
        told = [(kind, seconds(of, stage, kind)) for kind in KINDS]
        said = ", ".join(f"{LEGEND[kind]} {spent:.3f} s" for kind, spent in told if spent > 0 or kind == "running")
        lines.append((stage, bar(of, stage, width, marks), said))
    return lines
