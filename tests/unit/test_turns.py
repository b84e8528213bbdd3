"""`ifmesh ps` tells whose weights are in memory; and a service that waits for its turn counts as there."""

from __future__ import annotations

from dataclasses import asdict, replace

from ifmesh.cli_mesh import _turns, not_ready
from ifmesh.protocol import Books, ServiceRow
from ifmesh.request import STAGES

ROW = ServiceRow("encoder-0", "encoder", 1, "h", "cuda:0", "swapped", 0, 0, 0, 0.1, "", needs=5_900_000_000)


def shown(*rows: ServiceRow) -> list[str]:
    return _turns([{**asdict(row), "host_name": "here"} for row in rows])


def test_each_device_has_a_line() -> None:
    one = replace(ROW, service="stage_one-0", state="busy", needs=8_600_000_000)
    other = replace(ROW, service="guard-0", device="cpu", state="unloading", needs=600_000)
    resident = replace(ROW, service="upscaler-0", state="ready", needs=0)
    assert shown(ROW, one, other, resident) == [
        "by turns on cuda:0 of here: stage_one-0 (8.6 GB) in memory; encoder-0 (5.9 GB) on disk",
        "by turns on cpu of here: guard-0 (0.6 MB) in memory; nobody on disk",
    ]
    assert shown(resident) == []


def test_who_waits_for_its_turn_is_there() -> None:
    rows = [
        replace(ROW, stage=stage, state=state) for stage, state in zip(STAGES, ("swapped", "loading", "unloading", "busy"), strict=False)
    ]
    assert not_ready(Books(0, 1, tuple(rows), (), {}, ())) == ["guard"]
    assert not_ready(Books(0, 1, (replace(ROW, state="loading", needs=0),), (), {}, ())) == list(STAGES)
    assert not_ready(Books(0, 1, (replace(ROW, state="draining"),), (), {}, ())) == list(STAGES)
