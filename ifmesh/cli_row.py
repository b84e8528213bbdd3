"""Several pictures of one prompt: handed in all at once, shown one after the other."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ifmesh import screen
from ifmesh.cli_batch import pause_of
from ifmesh.cli_wishes import Order
from ifmesh.errors import Lost, MeshBusy, MeshError

if TYPE_CHECKING:
    from ifmesh.client import Client, Job
    from ifmesh.image import Image
    from ifmesh.request import Request
    from ifmesh.wishes import Brought


@dataclass(slots=True)
class _Place:
    name: str
    order: Order
    request: Request
    brought: Brought
    job: Job | None = None


class Row:
    """Orders in their order.  Several wait for a full mesh; one alone is told.

    open: job id -> Order, of what is under way.  Nothing is kept of what has landed: a picture is large, and there may be a thousand.
    """

    def __init__(self, client: Client, orders: Iterable[tuple[Order, Request, Brought]]) -> None:
        self.open: dict[str, Order] = {}
        self._client = client
        self._places = deque(_Place(secrets.token_hex(8), *made) for made in orders)
        self._count = len(self._places)

    def landed(self, see: Callable[[Job, str], Image]) -> Iterator[tuple[Order, str, Image | MeshError]]:
        """(order, job id, what came of it).  see: waits for a job and shows its way, behind this prefix.  Lost: the mesh is silent."""
        for place in self._places:
            self._hand_in(place)
        while self._places:
            came = self._came(see)
            if isinstance(came, MeshBusy) and self._count > 1:
                self._again(came)
                continue
            place = self._places.popleft()
            order, name = self.open.pop(place.name), place.name
            del place
            yield order, name, came
            del came

    @property
    def _prefix(self) -> str:
        return f"{self._count - len(self._places) + 1}/{self._count} " if self._count > 1 else ""

    def _came(self, see: Callable[[Job, str], Image]) -> Image | MeshError:
        job = self._places[0].job
        assert job is not None
        try:
            return see(job, self._prefix)
        except Lost:
            raise
        except MeshError as error:
            return error

    def _hand_in(self, place: _Place) -> None:
        self.open[place.name] = place.order  # before it is asked for: interrupted, somebody has to know its name
        place.job = self._client.ask(place.request, place.name, place.brought)

    def _again(self, busy: MeshBusy) -> None:
        """Ask once more for all that were not taken."""
        left = [place for place in self._places if place.job is not None and place.job._case.busy]
        for place in left:
            del self.open[place.name]
        screen.say(f"{self._prefix}waits: {busy}", "yellow")
        time.sleep(pause_of(busy))
        for place in left:
            self._hand_in(place)
