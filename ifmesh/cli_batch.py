"""Many pictures by one command: the file that names them, and the flight of a few at a time."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from ifmesh.cli_targets import SUFFIX
from ifmesh.cli_wishes import Order, gone_through
from ifmesh.errors import BadRequest, Lost, MeshBusy, MeshError

if TYPE_CHECKING:
    from ifmesh.client import Client, Job
    from ifmesh.image import Image

FILES = ("image", "mask", "embeds")
OBJECTS = ("generator", "continues")  # wishes that no JSON can say
STDIN = "-"
LEAST, LONGEST = 0.1, 60.0  # seconds between two tries at a mesh that is full, whatever it says


def read(path: str, shared: Order, out: Path) -> list[Order]:
    """The orders of a file of JSON lines; of `-`, of stdin.  shared: what lines do not say themselves; out: the folder of the pictures.

    BadRequest, naming the line: the first that can never work.
    """
    name = "stdin" if path == STDIN else path
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise BadRequest("--batch", path, f"cannot be read: {error.strerror or error}") from None
    base = Path() if path == STDIN else Path(path).parent
    found: list[Order] = []
    wrong: list[tuple[int, BadRequest]] = []
    targets: dict[Path, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            order = replace(_order(line, shared, base, out), line=number)
            if order.target is not None and (before := targets.setdefault(order.target, number)) != number:
                raise BadRequest("out", order.target.name, f"line {before} has it, too: each picture needs a name of its own")
            found.append(order)
        except BadRequest as error:
            wrong.append((number, error))
    for order in found:
        try:
            order.made(fetch=False)
        except BadRequest as error:
            wrong.append((order.line, error))
    if wrong:
        number, first = min(wrong, key=lambda one: one[0])
        field = "image" if first.field == "source" else first.field
        more = f"; {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise BadRequest(f"{name}, line {number}: {field}", first.value, f"{first.remedy} (nothing was handed in{more})")
    if not found:
        raise BadRequest("--batch", name, 'holds no line, such as {"prompt": "a fox"}')
    return found


def _order(line: bytes, shared: Order, base: Path, out: Path) -> Order:
    from ifmesh.wishes import Wishes

    try:
        told = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadRequest("JSON", _short(line), f"cannot be read: {str(error)[:80]}") from None
    if not isinstance(told, dict):
        raise BadRequest("JSON", told, 'one object each line, such as {"prompt": "a fox", "seed": 7, "out": "fox.png"}')
    names = ("prompt", "out", *FILES, *(name for name in Wishes.__annotations__ if name not in (*FILES, *OBJECTS)))
    for key, value in told.items():
        if key not in names:
            near = get_close_matches(key, names, n=1, cutoff=0.5)
            raise BadRequest(key, value, f"no such wish; {f'did you mean {near[0]}?' if near else 'one of ' + ', '.join(sorted(names))}")
    files: dict[str, Any] = {key: _file(key, told[key], base) for key in FILES if told.get(key) is not None}
    wishes = {**shared.wishes, **{key: value for key, value in told.items() if key not in ("prompt", "out", *FILES) and value is not None}}
    if told.get("settings") is None and isinstance(flags := shared.wishes.get("settings"), Mapping):
        wishes["settings"] = {stage: flags[stage] for stage in flags if stage in gone_through(told.get("upscale"))}
    target = None if told.get("out") is None else out / _name(told["out"], wishes.get("format"))
    [order] = replace(shared, **files, prompt=told.get("prompt", shared.prompt), wishes=wishes, target=target, place=out).times(1)
    return order


def _file(key: str, value: object, base: Path) -> str:
    if not isinstance(value, str):
        raise BadRequest(key, value, "a path, relative to the file of the batch" + (", or a URL" if key != "embeds" else ""))
    return value if "://" in value else str(base / value)


def _name(value: object, format: object) -> str:
    from ifmesh.image import check_suffix

    if not isinstance(value, str) or not _nameable(value) or Path(value).is_absolute() or ".." in Path(value).parts:
        raise BadRequest("out", value, "the name of a file within the folder that --out names, such as fox.png")
    path = Path(value if Path(value).suffix else f"{value}{SUFFIX.get(str(format), '.png')}")
    try:
        check_suffix(path)
    except ValueError as error:
        raise BadRequest("out", value, str(error)) from None
    return str(path)


def _nameable(name: str) -> bool:
    """Can a file be called so, and its name be printed?  Half a surrogate pair can be neither."""
    try:
        os.fsencode(name)
        name.encode()
    except UnicodeError:
        return False
    return bool(name) and "\0" not in name


def _short(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return text if len(text) <= 60 else text[:57] + "..."


def pause_of(busy: MeshBusy) -> float:
    """Seconds until a mesh that was full is tried again."""
    return min(LONGEST, max(LEAST, busy.retry_after))


class Flight:
    """Orders under way, at most `ahead` at once.  A full mesh is waited for.

    waiting: not handed in yet; open: job id -> Order.  onlook: runs beside each job, in a thread of its own, until it has ended.
    """

    def __init__(self, client: Client, orders: list[Order], ahead: int, onlook: Callable[[Job], None] | None = None) -> None:
        self.waiting = deque(orders)
        self.open: dict[str, Order] = {}
        self._client, self._ahead, self._onlook = client, ahead, onlook
        self._jobs: dict[str, Job] = {}
        self._onlookers: dict[str, Thread] = {}
        self._later = 0.0  # when to try again at a mesh that was full

    def landed(self) -> Iterator[tuple[Order, str, Image | MeshError]]:
        """(order, job id, what came of it), as they end.  An order that could not even be made has no job.  Lost: the mesh is silent."""
        while self.waiting or self.open:
            while self._room() and time.monotonic() >= self._later:
                order = self.waiting.popleft()
                if (wrong := self._hand_in(order)) is not None:
                    yield order, "", wrong
            pause = max(0.0, self._later - time.monotonic()) if self._room() else None
            if not self._jobs:
                time.sleep(pause or 0)
                continue
            with suppress(TimeoutError):
                job = next(self._client.as_completed(list(self._jobs.values()), pause))
                order = self.open[job.id]
                came = self._came(job)
                if (onlooker := self._onlookers.pop(job.id, None)) is not None:
                    onlooker.join()
                del self.open[job.id], self._jobs[job.id]
                if isinstance(came, MeshBusy):
                    self._later = time.monotonic() + pause_of(came)
                    self.waiting.appendleft(order)
                else:
                    yield order, job.id, came

    def _room(self) -> bool:
        return bool(self.waiting) and len(self.open) < self._ahead

    def _hand_in(self, order: Order) -> MeshError | None:
        try:
            request, brought = order.made()
        except BadRequest as error:  # a URL, or a file that has changed since it was checked
            return error
        name = secrets.token_hex(8)
        self.open[name] = order  # before it is asked for: interrupted, somebody has to know its name
        job = self._jobs[name] = self._client.ask(request, name, brought)
        if self._onlook is not None:
            thread = self._onlookers[name] = Thread(target=self._onlook, args=(job,), daemon=True)
            thread.start()
        return None

    def _came(self, job: Job) -> Any:
        try:
            return job.result()
        except Lost:
            raise
        except MeshError as error:
            return error
