"""A toy Stage I that is killed by a request as soon as it has it; and nothing of a beginning is told by its process.

What dies: every prompt with `die`; with `wait`, not before there is a file of the name that the option `gate` says.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ifmesh import toy
from ifmesh.log import logger
from ifmesh.protocol import Beat, Step
from ifmesh.request import Request
from ifmesh.stage import Bag, Setup
from ifmesh.uplink import Uplink
from ifmesh.wire import TO_COORDINATOR

DYING = "about to die"


class StageOne(toy.StageOne):
    def load(self, setup: Setup) -> str:
        self._gate = Path(str((setup.options or {})["gate"]))
        send = Uplink.send

        def mute(uplink: Uplink, frame: bytes) -> None:
            said = TO_COORDINATOR.decode(frame)
            if not isinstance(said, Step) and not (isinstance(said, Beat) and any(h.state == "running" for h in said.held)):
                send(uplink, frame)

        Uplink.send = mute  # type: ignore[assignment,method-assign]
        return super().load(setup)

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        if "die" in request.prompt:
            logger.info(DYING, extra={"job": job})
            while "wait" in request.prompt and not self._gate.exists():
                time.sleep(0.01)
            os.abort()
        return super().admit(job, request, bag, saved)
