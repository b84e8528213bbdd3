"""A toy encoder on a host from which the coordinator can be reached, but no other worker: what it dials for them, nobody answers.

Option `coordinator`: the one URL that it reaches, for bags.
"""

from __future__ import annotations

from typing import Any

from ifmesh import sockets, toy
from ifmesh.log import logger
from ifmesh.stage import Setup

NOWHERE = "tcp://127.0.0.1:1"
CUT = "the cable is cut:"


class Encoder(toy.Encoder):
    def load(self, setup: Setup) -> str:
        reached, outlet = str((setup.options or {})["coordinator"]), sockets.outlet

        def cut(ctx: sockets.Context, url: str, *more: Any) -> sockets.Socket:
            if url != reached:
                logger.info("%s %s", CUT, url)
            return outlet(ctx, url if url == reached else NOWHERE, *more)

        sockets.outlet = cut  # type: ignore[assignment]
        return super().load(setup)
