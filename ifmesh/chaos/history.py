"""What was seen and done, line by line, as it happens: readable whenever a process dies, and by whoever comes later.

One JSON object a line: t (seconds, the monotonic clock that all processes of a machine share), by (who says it), what, and the rest.
A line is written by one call to a file opened for appending, so many processes share a file, and SIGKILL leaves whole lines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SEEN = "history.jsonl"  # what clients saw, and what was done to the mesh
WORK = "work.jsonl"  # what the stages did, and what the coordinator says of it
STATE = "state"  # folder of the mesh, beside them


class History:
    """One writer.  path: of the file, made with the first line."""

    def __init__(self, path: Path, by: str) -> None:
        self._path, self._by = path, by
        self._file = -1

    def say(self, what: str, **told: object) -> None:
        if self._file < 0:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        line = {"t": round(time.monotonic(), 4), "by": self._by, "what": what, **told}
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(folder: Path) -> Iterator[Record]:
    """Every line of both files of a run.  A line that is none is told as {"what": "torn"}; OSError: there is no history."""
    for path in (folder / SEEN, folder / WORK):
        if path.name == WORK and not path.exists():  # stages that write nothing down
            continue
        yield from lines(path)


def lines(path: Path) -> Iterator[Record]:
    """Every line of one file, as in `read`."""
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield record if isinstance(record, dict) and isinstance(record.get("what"), str) else {"what": "torn", "t": 0.0, "by": ""}
