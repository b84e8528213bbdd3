"""What the interpreters of the stories share: the names in them, the clock, and how a value is written."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from ifmesh import protocol
from ifmesh.protocol import Endpoint, StageRun
from ifmesh.request import Request

INLET = (Endpoint("", "tcp://hub"),)
CREW = {"enc.1": "encoder", "one.1": "stage_one", "two.1": "stage_two", "up.1": "upscaler", "guard.1": "guard"}
UPLOADS = {"cat": "c" * 64, "dog": "d" * 64, "egg": "e" * 64}  # SHA-256 of what clients bring, and of what is kept
REQUESTS = {
    "fox": Request("a fox", 1, last_stage="stage_one"),
    "owl": Request("an owl", 2, last_stage="stage_one"),
    "elk": Request("an elk", 3, last_stage="stage_one", priority=5),
    "hare": Request("a hare", 4, last_stage="stage_one", deadline=3.0),
    "tern": Request("a tern", 15, last_stage="stage_one", deadline_queued=3.0),
    "swift": Request("a swift", 16, last_stage="stage_one", deadline_running=3.0),
    "shrike": Request("a shrike", 17, last_stage="stage_one", deadline=2.0, deadline_running=3.0),
    "whole": Request("a whole cascade", 5),
    "empty": Request(" ", 6),
    "cat_1": Request("a cat", 7, "vary", last_stage="stage_one", brings=("source",), upload=UPLOADS["cat"]),
    "cat_2": Request("another cat", 8, "vary", last_stage="stage_one", brings=("source",), upload=UPLOADS["cat"]),
    "dog": Request("a dog", 9, "inpaint", last_stage="stage_one", brings=("source", "mask"), upload=UPLOADS["dog"]),
    "kite": Request("a kite", 10, last_stage="stage_one", tied=True),
    "verse": Request("a verse", 11, "encode", last_stage="encoder"),
    "hen": Request("a hen", 13, last_stage="stage_one", keep=100.0),
    "duck": Request("a hen", 13, last_stage="stage_one", keep=300.0),
    "goose": Request("a goose", 14, last_stage="stage_one", keep=100.0),
    "bird": Request(
        "a bird", 13, first_stage="stage_two", last_stage="stage_two", brings=("embeds", "image64", "rng"), upload=UPLOADS["egg"]
    ),
    "vector": Request("a vector", 12, brings=("embeds",), upload=UPLOADS["dog"], first_stage="stage_one"),
}


def show(value: object) -> str:
    """A value in few words: what is as usual is left out."""
    if isinstance(value, Request):
        return next((name for name, request in REQUESTS.items() if request == value), repr(value))
    if isinstance(value, Endpoint):
        return value.url
    if value in UPLOADS.values():
        return next(name for name, digest in UPLOADS.items() if digest == value)
    if isinstance(value, StageRun):
        return f"{value.stage} on {value.worker}" + (f" x{value.runs}" if value.runs > 1 else "")
    if is_dataclass(value):
        said = []
        for field in fields(value):
            what = getattr(value, field.name)
            usual = field.default_factory() if field.default_factory is not MISSING else field.default
            if what != usual:
                said.append(f"{field.name}={show(what)}")
        return f"{type(value).__name__}({', '.join(said)})"
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return "[" + ", ".join(show(v) for v in value) + "]"
    return repr(round(value, 3)) if isinstance(value, float) else repr(value)


def frame(job: str) -> bytes:
    return f"bag of {job}".encode()


def numbers(words: str) -> dict[str, Any]:
    return {name: float(number) if "." in number else int(number) for name, number in (w.split("=") for w in words.split())}


class Teller:
    """Reads a story line by line, and writes it again with what really happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asleep = False
        self.names: dict[str, object] = {**REQUESTS, **{n: getattr(protocol, n) for n in dir(protocol) if n[0].isupper()}}

    def wakeup(self) -> float | None:
        raise NotImplementedError

    def tick(self) -> list[str]:
        raise NotImplementedError

    def hear(self, who: str, what: str) -> list[str]:
        raise NotImplementedError

    def begin(self, line: str) -> bool:
        """A first line without a time."""
        raise NotImplementedError

    def tell(self, text: str) -> str:
        out: list[str] = []
        for line in text.splitlines():
            if line.startswith("    "):
                continue
            out.append(line)
            self.asleep = self.asleep or line == "asleep"
            if not line or line.startswith("#") or line == "asleep" or self.begin(line):
                continue
            when, who, what = line.split(maxsplit=2)
            before = out.pop()
            out += [] if self.asleep else self.pass_time(float(when))
            self.now, self.asleep = float(when), False
            out.append(before)
            out += [f"    {said}" for said in self.hear(who, what)]
        return "\n".join(out) + "\n"

    def pass_time(self, until: float) -> list[str]:
        out: list[str] = []
        for _ in range(10000):
            due = self.wakeup()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            if said := self.tick():
                out += [f"    -- {self.now:g}, the clock", *(f"    {line}" for line in said)]
        else:
            raise AssertionError("the mind asks to be woken again and again, and does nothing")
        self.now = until
        return out
