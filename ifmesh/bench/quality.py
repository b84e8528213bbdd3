"""`ifmesh bench quality`: does the mesh draw what the captions say?  They are those that training never saw; the judge is no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ifmesh.cascade import DRAWN
from ifmesh.client import Client

COLUMNS = (
    *(("captions", "captions"), ("shape", "shape"), ("colours", "both colours"), ("position", "position")),
    *(("all", "all"), ("low", "from"), ("high", "to")),
)
SEEN = ("shape", "colour", "background", "position")
LARGEST = 256
"""Pixels of a side on the sheet, at most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """captions: how many of the list, from its first; size: pixels of a side of the last picture; sheet: where to write all of them."""

    captions: int = 60
    size: int = 64
    in_flight: int = 8
    seed: int = 0
    sheet: Path | None = None


class Quality:
    """exam: the module of that name in ifmesh_services.nano.  door: where the mesh is.  tell: a line of progress, and how much of all is
    done.  over: is this to end?
    """

    def __init__(
        self, exam: Any, wanted: Wanted, door: Mapping[str, Any], tell: Callable[[str, float], None], over: Callable[[], bool]
    ) -> None:
        self._exam, self._wanted, self._door, self._tell, self._over = exam, wanted, door, tell, over
        self._said = exam.questions()[: wanted.captions]
        self._pictures: dict[str, list[Any]] = {}  # by stage, Pillow's

    def measure(self) -> None:
        wanted = self._wanted
        asks = [{"prompt": one["caption"], "seed": wanted.seed + i} for i, one in enumerate(self._said)]
        with Client(self._door["coordinator"], state=self._door["state"] or None, identity=self._door["identity"]) as client:
            for i, image in enumerate(client.map(asks, ahead=wanted.in_flight, size=wanted.size), 1):
                for stage, picture in image.stages.items():
                    self._pictures.setdefault(stage, []).append(picture.pil)
                self._tell(f"{i} of {len(asks)} captions", i / len(asks))
                if self._over():
                    break
        if wanted.sheet and self._pictures:
            self._sheet().save(wanted.sheet)

    def figures(self) -> dict[str, Any]:
        """Of what was drawn so far: what follows the head of a report.  On top the last stage's; rows: each stage's, as far as it drew."""
        scores = {stage: self._exam.score(pictures, self._said[: len(pictures)]) for stage, pictures in self._drawn().items()}
        rows = [{"name": f"{self._pictures[stage][0].width} px", **_row(one)} for stage, one in scores.items()]
        notes = [f"So many of {SEEN[-1]} where a caption says one; from, to: where `all` truly lies, with 95 % confidence."]
        found: dict[str, Any] = {}
        if scores:
            *_, last = scores.values()
            found = {name: value for name, value in asdict(last).items() if name != "wrong"}
            found["wrong"] = [{"caption": self._said[i]["caption"], "seen": self._seen(i)} for i in last.wrong]
        if {"stage_two", "upscaler"} <= scores.keys():
            found["agreeing"] = self._agreeing("stage_two", "upscaler")
            notes.append(f"Of {found['agreeing']:.1%} the judge says the same at 1024 px as at 256 px.")
        asked = {"captions": len(self._said), "size": self._wanted.size, "seed": self._wanted.seed}
        return {"asked": asked, **found, "columns": COLUMNS, "rows": rows, "notes": notes, "interrupted": self._over()}

    def _drawn(self) -> dict[str, list[Any]]:
        return {stage: self._pictures[stage] for stage in DRAWN if stage in self._pictures}

    def _seen(self, i: int) -> str:
        *_, last = self._drawn().values()
        verdict = self._exam.judge(last[i])
        return ", ".join(f"{part} {getattr(verdict, part) or '?'}" for part in SEEN)

    def _agreeing(self, one: str, other: str) -> float:
        pairs = list(zip(self._pictures[one], self._pictures[other], strict=True))
        same = [
            all(getattr(a, part) == getattr(b, part) for part in SEEN)
            for a, b in ((self._exam.judge(x), self._exam.judge(y)) for x, y in pairs)
        ]
        return sum(same) / len(same)

    def _sheet(self) -> Any:
        *_, last = self._drawn().values()
        wrong = self._exam.score(last, self._said[: len(last)]).wrong
        small = [picture.copy() for picture in last]
        for picture in small:
            picture.thumbnail((LARGEST, LARGEST))
        return self._exam.contacts(small, wrong)


def _row(one: Any) -> dict[str, float]:
    return {**{name: getattr(one, name) for name, _ in COLUMNS[:5]}, "low": one.interval[0], "high": one.interval[1]}
