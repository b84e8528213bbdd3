"""Ray Serve: a deployment for each stage, composed by handles: responses are passed from one to the next."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from ifmesh.bench.peers.payload import BAGS, Drive, looped


class Stage:
    def __init__(self, name: str) -> None:
        self._gives = BAGS[name]

    def __call__(self, bag: Any) -> dict[str, bytes]:
        return self._gives


def start() -> Drive:
    import ray
    from ray import serve

    ray.init(num_cpus=2 * len(BAGS), include_dashboard=False, log_to_driver=False, configure_logging=False)
    handles = []
    for name in BAGS:
        deployment: Any = serve.deployment(Stage, name=name, num_replicas=1, max_ongoing_requests=64)
        handles.append(serve.run(deployment.bind(name), name=name, route_prefix=None))
    pool = ThreadPoolExecutor(64)

    def whole() -> object:
        made: Any = "a red fox in the snow"
        for handle in handles:
            made = handle.remote(made)
        return made.result()

    def ended(begun: list[Future[object]]) -> set[Future[object]]:
        done = wait(begun, return_when=FIRST_COMPLETED).done
        for one in done:
            one.result()
        return done

    return lambda in_flight, seconds, least: looped(in_flight, seconds, least, lambda: pool.submit(whole), ended)
