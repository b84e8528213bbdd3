"""What the stages of a cascade in a folder need, by its files' headers and configurations alone: no weights are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ifmesh import demand
from ifmesh.demand import Demand
from ifmesh.errors import Misconfigured
from ifmesh.published import PARTS
from ifmesh.request import STAGES

MOST = 100_000_000  # bytes of a header; safetensors' own limit
LARGER = 4  # times, by each stage
GUARDED = 8  # elements for each pixel of the picture: the guard's copies of it


def of(folder: Path) -> Mapping[str, Demand]:
    """By stage.  Misconfigured: there is no such cascade, or its repositories are not in the folder."""
    try:
        recipe = json.loads((folder / "cascade.json").read_text(encoding="utf-8"))
        one, two, up = (folder / recipe[stage]["repo"] for stage in ("stage_one", "stage_two", "upscaler"))
        side = _config(one, "unet")["sample_size"]
        drawn = dict(zip(STAGES, ((one, 0), (one, side), (two, LARGER * side), (up, LARGER * side), (one, LARGER**2 * side)), strict=True))
        return {stage: _stage(stage, repo, size) for stage, (repo, size) in drawn.items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Misconfigured(f"{folder}: no cascade whose files can be read here: {error!r}") from error


def parameters(file: Path) -> int:
    """Numbers in a safetensors file.  ValueError: it is none."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= MOST:
            raise ValueError(f"{file}: no safetensors file")
        header = json.loads(opened.read(length))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _stage(stage: str, repo: Path, side: int) -> Demand:
    count = sum(parameters(file) for part in PARTS[stage] for file in _plain(repo / part))
    if stage == "encoder":
        return Demand(count, {}, demand.t5(_config(repo, "text_encoder")))
    if stage == "guard":
        return Demand(count, {}, GUARDED * side * side)
    config = _config(repo, "unet")
    drawn = demand.decode(_config(repo, "vae"), LARGER * side) if stage == "upscaler" else 0
    return Demand(count, {}, demand.unet(config, side), drawn, narrow=demand.narrow(config["block_out_channels"]))


def _plain(part: Path) -> list[Path]:
    """The files of one variant: the one without a name, else the first."""
    by: dict[str, list[Path]] = {}
    for file in sorted(part.glob("*.safetensors")):
        by.setdefault(file.name.split(".")[1].partition("-")[0] if file.name.count(".") > 1 else "", []).append(file)
    return by[min(by)] if by else []


def _config(repo: Path, part: str) -> dict[str, Any]:
    read = json.loads((repo / part / "config.json").read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise ValueError(f"{repo / part}: no configuration")
    return read
