"""The scenes are calm: whatever a world of tests/broker draws from its seed, between two scenes only small delays differ."""

from __future__ import annotations

from ifmesh.cascade import Cascade
from ifmesh.commands import Policy
from tests.matrix.scene import Scene

DRAWN = ("seed", "storm_s")
"""By each world; a scene has no storm."""


def climate(seed: int) -> dict[str, object]:
    """All that is set before anything happens."""
    scene = Scene(seed)
    told: dict[str, object] = {name: value for name, value in vars(scene).items() if name not in DRAWN and plain(value)}
    told |= {f"links.{name}": value for name, value in vars(scene.links).items() if plain(value)}
    told |= {f"hub.{name}": value for name, value in vars(scene.hub).items() if plain(value)}
    return told | {f"{s.name}.{name}": value for s in scene.services for name, value in vars(s).items() if plain(value)}


def plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | Policy | Cascade)


def test_scenes_of_all_seeds_are_alike() -> None:
    first = climate(0)
    assert {"length", "mixed", "owned", "every", "outbox", "links.lossy", "links.double", "guard-0.pace"} <= first.keys()
    assert not any(first[name] for name in ("storm", "mixed", "owned", "every", "links.lossy", "links.double", "links.slow"))
    for seed in range(1, 40):
        assert climate(seed) == first
