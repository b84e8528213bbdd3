"""What is seen in a notebook while pictures are drawn: a bar for each stage and the newest picture, below the cell."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ifmesh.file import Event
from ifmesh.image import Preview
from ifmesh.protocol import Cancelled, Failed, Finished, Progress, Queued, Started
from ifmesh.request import STAGES

SHOWN = 256
"""Pixels of a side of an early picture, as it is shown."""


def in_notebook() -> bool:
    """Does this code run in one (Jupyter, Colab)?"""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@dataclass(slots=True)
class _Row:
    """A stage.  text: where it is; step, steps: of its bar, 0 of 0 for none."""

    text: str = ""
    step: int = 0
    steps: int = 0


@dataclass(slots=True)
class _Card:
    """What is shown of one job, or of the mesh while it starts.  handle: of IPython's display."""

    handle: Any
    rows: dict[str, _Row] = field(default_factory=dict)
    picture: Preview | None = None


class Inline:
    """Needs IPython, which every notebook has."""

    def __init__(self) -> None:
        self._cards: dict[str, _Card] = {}

    def starting(self, states: Mapping[str, str]) -> None:
        """While the mesh starts.  By stage, as in `ifmesh ps`."""
        card = self._card("")
        rows = {stage: _Row(states.get(stage, "starting")) for stage in STAGES}
        if rows != card.rows:
            card.rows = rows
            self._show(card)

    def ready(self) -> None:
        """It has started."""
        if (card := self._cards.pop("", None)) is not None:
            self._say(card, "the mesh is ready")

    def event(self, event: Event) -> None:
        """Of a job."""
        card = self._card(event.job)
        match event:
            case Queued(stage=stage, position=position):
                card.rows[stage] = _Row(f"waiting, {position} before" if position else "waiting")
            case Started(stage=stage, worker=worker):
                card.rows[stage] = _Row(f"on {worker}")
            case Progress(stage=stage, step=step, steps=steps):
                row = card.rows.setdefault(stage, _Row())
                row.step, row.steps = step, steps
            case Preview():
                card.picture = event
            case Finished(runs=runs):
                del self._cards[event.job]
                return self._say(card, ", ".join(f"{run.stage} {run.run_s:.1f} s" for run in runs))
            case Failed() | Cancelled():
                del self._cards[event.job]
                return self._say(card, f"no picture: {type(event).__name__.lower()}")
        return self._show(card)

    def _card(self, job: str) -> _Card:
        if job not in self._cards:
            self._cards[job] = _Card(_ipython().display(_ipython().HTML(""), display_id=True))
        return self._cards[job]

    def _show(self, card: _Card) -> None:
        bars = "".join(f"<tr><td>{stage}</td><td>{_bar(row)}</td><td>{html.escape(row.text)}</td></tr>" for stage, row in card.rows.items())
        _update(card, f"<table>{bars}</table>{_shown(card.picture)}")

    def _say(self, card: _Card, line: str) -> None:
        _update(card, f"<small>{html.escape(line)}</small>")


def _bar(row: _Row) -> str:
    return f'<progress value="{row.step}" max="{row.steps}"></progress> {row.step} of {row.steps}' if row.steps else ""


def _shown(picture: Preview | None) -> str:
    if picture is None:
        return ""
    data = base64.b64encode(picture.data).decode()
    return f'<img width="{SHOWN}" style="image-rendering: pixelated" src="data:image/{picture.format};base64,{data}">'


def _update(card: _Card, text: str) -> None:
    card.handle.update(_ipython().HTML(text))


def _ipython() -> Any:
    return import_module("IPython.display")
