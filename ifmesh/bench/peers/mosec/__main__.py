"""`python -m ifmesh.bench.peers.mosec --port N`: the server with its four workers, until a signal ends it."""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

from ifmesh.bench.peers.payload import BAGS


class Encoder(MsgpackMixin, Worker):  # type: ignore[misc]
    name = "encoder"

    def forward(self, data: object) -> dict[str, bytes]:
        return BAGS[self.name]


class StageOne(Encoder):
    name = "stage_one"


class StageTwo(Encoder):
    name = "stage_two"


class Upscaler(Encoder):
    name = "upscaler"


if __name__ == "__main__":
    server: Any = Server()
    for worker in (Encoder, StageOne, StageTwo, Upscaler):
        server.append_worker(worker, num=1, start_method="fork")  # a spawned one would not find its class in a __main__
    server.run()
