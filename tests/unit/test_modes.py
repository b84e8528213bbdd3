"""The words of the modes: how many step together, what a numeric class promises, and what people are told."""

from __future__ import annotations

import pytest

from ifmesh import modes
from ifmesh.protocol import ServiceRow

CLASS = "AMD EPYC, fp32, torch 2, threads 1, weights 0123"


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        ({}, 1),
        ({"mode": "exact"}, 1),
        ({"mode": "pooled"}, 8),
        ({"mode": "pooled", "slots": 3}, 3),
        ({"slots": 2}, 2),
        ({"slots": "many"}, 1),
        ({"slots": 0}, 1),
        ({"slots": True, "mode": "pooled"}, 8),
        ({"mode": ["x"]}, 1),
    ],
)
def test_how_many_step_together(options: dict[str, object], slots: int) -> None:
    assert modes.slots(options) == slots


def test_only_a_pool_of_any_rows_promises_nothing() -> None:
    assert modes.promises(CLASS + modes.numeric("exact", 0))
    assert modes.promises(CLASS + modes.numeric("pooled", 16))
    assert not modes.promises(CLASS + modes.numeric("pooled", 0))
    assert modes.promises("")


def row(service: str, numeric: str, slots: int = 1) -> ServiceRow:
    return ServiceRow(service, service.partition("-")[0], 1, "h", "cpu", "ready", 0, 0, 0, 0.0, numeric, slots)


def test_services_of_one_way_share_a_line_and_those_that_load_have_none() -> None:
    guided = "guided requests keep exact's bits in fp32 on a CPU; others "
    told = modes.told(
        [
            row("encoder-0", CLASS + ", pooled, rows 16", 8),
            row("stage_one-0", CLASS),
            row("stage_one-1", ""),
            row("stage_two-0", CLASS + ", pooled, rows any", 4),
            row("stage_two-1", CLASS + ", pooled, rows any", 4),
            row("upscaler-0", CLASS + ", pooled, rows 8", 4),
            row("guard-0", CLASS),
        ]
    )
    assert told == [
        "encoder-0: pooled, up to 8 at once: texts may differ from exact in the last bits, always alike; every call costs 16 rows",
        "stage_one-0, guard-0: exact, one at a time: always the same bits",
        f"stage_two-0, stage_two-1: pooled, up to 4 at once: {guided}may differ in the last bits, by what runs beside them",
        f"upscaler-0: pooled, up to 4 at once: {guided}may differ from exact in the last bits, always alike; every call costs 8 rows",
    ]
