"""Saved plans: what `ifmesh plan --emit toml` writes, and `ifmesh up --preset` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ifmesh.planner import Place, Plan
from ifmesh.shipped import literal

FOLDER = Path(__file__).with_name("plans")
NAMES: Mapping[str, tuple[str, str]] = {  # by name: the devices and the cascade that it was planned for
    "t4": ("t4,cpu:13GB", "if-xl"),
    "two-gpu": ("t4,t4,cpu:30GB", "if-xl"),
    "a100": ("a100-40,cpu:80GB", "if-xl"),
}
UNIT = 10**7
"""Bytes: of what is written."""


def path(name: str) -> Path:
    return FOLDER / f"{name}.toml"


def toml(plan: Plan, cascade: str, said: str) -> str:
    """The configuration of a plan.  said: on which devices; cascade: as in cascade.path."""
    tables: list[tuple[str, Mapping[str, object]]] = [("cascade", {"path": cascade})] if cascade else []
    if plan.budgets:
        tables.append(("memory", {literal(name): _size(_budget(plan, name)) for name in plan.budgets}))
    for place in plan.places:
        tables.append((f"services.{place.stage}", _service(place)))
        if options := _options(place, cascade.startswith("if-")):
            tables.append((f"services.{place.stage}.options", options))
    written = ["".join([f"[{name}]\n", *(f"{key} = {literal(value)}\n" for key, value in table.items())]) for name, table in tables]
    return "\n".join([f"# ifmesh plan --devices {said} --cascade {cascade or 'the built-in one'}\n", *written])


def _service(place: Place) -> dict[str, object]:
    made: dict[str, object] = {"device": place.device, "copies": place.copies}
    if place.stage != "guard":
        made["dtype"] = place.dtype
    if place.swap:
        made |= {"residency": "swap", "needs": _size(_needs(place))}
    return made


def _needs(place: Place) -> int:
    """Whole units, rounded up."""
    return -(-(place.weights + place.computed) // UNIT)


def _budget(plan: Plan, device: str) -> int:
    """Whole units, rounded down, but room for each that takes turns there."""
    return max(plan.budgets[device] // UNIT, *(_needs(place) for place in plan.places if place.swap and place.device == device))


def _size(units: int) -> str:
    return f"{units / (10**9 // UNIT):.2f}GB"


def _options(place: Place, published: bool) -> dict[str, object]:
    made: dict[str, object] = {}
    if place.form == "nf4":
        made["quantize"] = "nf4"
    if place.form == "8bit":
        made["variant"] = "8bit"
    elif published and place.dtype != "fp32":
        made["variant"] = "fp16"
    if place.disk:
        made["offload"] = "disk"
    if place.tiled:
        made["vae_tiling"] = True
    return made
