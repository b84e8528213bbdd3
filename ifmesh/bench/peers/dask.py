"""dask.distributed: a worker process for each stage; tasks depend on each other, and the client gathers the picture alone."""

from __future__ import annotations

from typing import Any

from ifmesh.bench.peers.payload import BAGS, Drive, looped


def stage(name: str, bag: Any) -> dict[str, bytes]:
    return BAGS[name]


def start() -> Drive:
    from distributed import Client, LocalCluster, wait

    cluster = LocalCluster(n_workers=len(BAGS), threads_per_worker=1, processes=True, dashboard_address=None)
    client = Client(cluster)
    seats = dict(zip(BAGS, client.scheduler_info()["workers"], strict=True))

    def begin() -> Any:
        made: Any = "a red fox in the snow"
        for name in BAGS:
            made = client.submit(stage, name, made, workers=[seats[name]], pure=False)
        return made

    def ended(begun: list[Any]) -> list[Any]:
        done = list(wait(begun, return_when="FIRST_COMPLETED").done)
        for one in done:
            one.result()
        return done

    return lambda in_flight, seconds, least: looped(in_flight, seconds, least, begin, ended)
