"""Who runs the mesh of a state folder: one `ifmesh up` holds its lock, and writes down what it runs (up.json)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ifmesh.errors import MeshError


@contextlib.contextmanager
def lock(state: Path) -> Iterator[None]:
    """One `up` per state folder.  MeshError names the other."""
    state.mkdir(parents=True, exist_ok=True)
    with open(state / "up.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeshError(f"`ifmesh up` (pid {holder(state) or '?'}) runs this mesh already: {state}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def holder(state: Path) -> int:
    """The pid of the `up` that runs the mesh of this state folder; 0: none does.  It holds the lock, so the pid is not a stranger's."""
    try:
        with open(state / "up.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = file.read().strip()
                return int(said) if said.isdecimal() else 0
    except OSError:
        pass
    return 0


def written(state: Path) -> dict[str, object]:
    """What the running `up` says of itself (up.json); {} when there is none."""
    try:
        said = json.loads((state / "up.json").read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) and holder(state) and said.get("pid") == holder(state) else {}


def write(state: Path, told: dict[str, object]) -> None:
    """up.json: what `ps`, `down` and `up --wait` look at.  Whole, or not at all."""
    fresh = state / "up.json.new"
    fresh.write_text(json.dumps(told) + "\n")
    fresh.replace(state / "up.json")
