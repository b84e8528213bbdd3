"""The meshes that are measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ifmesh.config import CLASSES
from ifmesh.own import Own, Settings
from ifmesh.request import STAGES

TRANSPORTS = ("ipc", "tcp", "tcp+curve")
RESULTS = 128 << 20
"""Bytes of pictures that nobody fetches again."""


def still(options: Settings | None = None, each: Mapping[str, Settings] | None = None) -> dict[str, object]:
    """Settings for stages that do nothing, with these options (`bench.stages`); each: more of them, of single stages."""
    made: dict[str, object] = {"cascade.toy": True, "cascade.path": ""}
    for stage in STAGES:
        made[f"services.{stage}.run"] = f"ifmesh.bench.stages:{CLASSES[stage]}"
        for key, value in {**(options or {}), **(each or {}).get(stage, {})}.items():
            made[f"services.{stage}.options.{key}"] = value
    return made


def over(transport: str) -> dict[str, object]:
    """Settings for one of TRANSPORTS."""
    return {"mesh.curve": transport.endswith("curve")}


def measured(settings: Settings, apart: bool = False, folder: Path | None = None, file: Path | None = None) -> Own:
    """A mesh for one measurement.  apart: its processes reach each other by TCP, as those of different hosts.  The rest: see Own."""
    words = ["bench", "up", *(["--apart"] if apart else [])]
    return Own({"mesh.results_bytes": RESULTS, **settings}, words, folder, file)
