"""Ray: an actor for each stage; object references are passed from one to the next, so that the driver touches the picture alone."""

from __future__ import annotations

from typing import Any

from ifmesh.bench.peers.payload import BAGS, Drive, looped


class Stage:
    def __init__(self, name: str) -> None:
        self._gives = BAGS[name]

    def run(self, bag: Any) -> dict[str, bytes]:
        return self._gives


def start() -> Drive:
    import ray

    ray.init(num_cpus=len(BAGS), include_dashboard=False, log_to_driver=False, configure_logging=False)
    actors = [ray.remote(Stage).options(num_cpus=1).remote(name) for name in BAGS]

    def begin() -> Any:
        made: Any = "a red fox in the snow"
        for actor in actors:
            made = actor.run.remote(made)
        return made

    def ended(begun: list[Any]) -> list[Any]:
        done, _ = ray.wait(begun, num_returns=1)
        ray.get(done)
        return list(done)

    return lambda in_flight, seconds, least: looped(in_flight, seconds, least, begin, ended)
