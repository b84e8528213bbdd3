"""How the requests in a stage's hand step together, and what each mode trades: the words of its options and of its numeric class.

Pure.  Options (services.STAGE.options of ifmesh.toml): mode, "exact" (default) or "pooled"; slots, how many step together; rows, of a
pool's every call (0: any).  The stage refuses what is none of these, see pooled.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ifmesh.protocol import ServiceRow

SLOTS = {"exact": 1, "pooled": 8}
"""By mode, how many requests step together when nothing is said."""


def slots(options: Mapping[str, object]) -> int:
    """How many requests of a stage with these options step together; of options that the stage will refuse, the usual number."""
    said = options.get("slots")
    return said if type(said) is int and said >= 1 else SLOTS.get(str(options.get("mode")), SLOTS["exact"])


def numeric(mode: str, rows: int) -> str:
    """What the mode adds to the numeric class."""
    return "" if mode == "exact" else f", pooled, rows {rows or 'any'}"


def promises(numeric: str) -> bool:
    """Do equal bits follow from this numeric class?  Not where as many rows as there are share a call."""
    return not numeric.endswith(", pooled, rows any")


def told(services: Iterable[ServiceRow]) -> list[str]:
    """For people: in which mode they run, and what it trades; a line for each way, of those whose weights are loaded."""
    ways: dict[str, list[str]] = {}
    for row in services:
        if row.numeric:
            ways.setdefault(_way(row), []).append(row.service)
    return [f"{', '.join(names)}: {way}" for way, names in ways.items()]


def _way(row: ServiceRow) -> str:
    together = f"up to {row.slots} at once" if row.slots > 1 else "one at a time"
    pooled = re.search(r", pooled, rows (any|\d+)$", row.numeric)
    if pooled is None:
        return f"exact, {together}: always the same bits"
    kept = "texts" if row.stage == "encoder" else "guided requests keep exact's bits in fp32 on a CPU; others"
    if pooled[1] == "any":
        return f"pooled, {together}: {kept} may differ in the last bits, by what runs beside them"
    return f"pooled, {together}: {kept} may differ from exact in the last bits, always alike; every call costs {pooled[1]} rows"
