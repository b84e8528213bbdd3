"""Writes what has been trained as a cascade: the hub's layout, half precision, as small as it gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ifmesh_services.nano import builder
from ifmesh_services.nano.part import trained
from ifmesh_services.nano.tokenizers import write_json
from ifmesh_services.nano.vae import Vae, folded
from ifmesh_services.nano.widths import WIDTHS
from ifmesh_services.nano.wording import captions

ONE, TWO, THREE = "IF-I-nano", "IF-II-nano", "x4-nano"  # as builder.build names them
PLACES: dict[str, dict[str, tuple[str, ...]]] = {  # part -> model -> where it lies
    "text": {"text_encoder": (f"{ONE}/text_encoder", f"{TWO}/text_encoder")},
    "stage_one": {"unet": (f"{ONE}/unet",)},
    "stage_two": {"unet": (f"{TWO}/unet",)},
    "vae": {"vae": (f"{THREE}/vae",)},
    "upscaler": {"text_encoder": (f"{THREE}/text_encoder",), "unet": (f"{THREE}/unet",)},
}
FIRST = [round(990 * i / 29) for i in reversed(range(30))]  # steps of one length would begin at 957: there the noise has colours in it
RECIPE: dict[str, dict[str, Any]] = {  # beside the repositories' names; what is not said is as published
    "stage_one": {
        "timesteps": FIRST,
        "guidance": 3.0,
        "vary": {"steps": 40, "guidance": 3.0},
        "inpaint": {"timesteps": FIRST, "guidance": 3.0},
    },
    "stage_two": {
        "steps": 12,
        "guidance": 1.0,
        "noise_level": 60,
        "vary": {"steps": 15, "guidance": 1.0, "noise_level": 60},
        "inpaint": {"steps": 15, "guidance": 1.0},
    },
    "upscaler": {"steps": 10, "guidance": 1.0, "noise_level": 20},
}


def write(out: Path, folder: Path) -> list[str]:
    """The cascade of the parts trained in `out`, into `folder`, which must not exist; the parts that are not trained, and so random."""
    builder.build(folder, other=WIDTHS, texts=captions)
    missing = []
    for part, places in PLACES.items():
        try:
            weights = trained(out, part)
        except FileNotFoundError:
            missing.append(part)
            continue
        for model, where in places.items():
            _put(weights[model], model, [folder / each for each in where])
    for path in folder.rglob("*.fp16.safetensors"):
        path.unlink()
    for path in folder.rglob("*.safetensors"):
        halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
        save_file(halved, path, metadata={"format": "pt"})
    cascade = json.loads((folder / "cascade.json").read_text(encoding="utf-8"))
    repos = {stage: {"repo": cascade[stage]["repo"], **entry} for stage, entry in RECIPE.items()}
    write_json(folder / "cascade.json", {"name": cascade["name"], **repos}, sort=False)
    return missing


def _put(weights: dict[str, torch.Tensor], model: str, where: list[Path]) -> None:
    """In place of the random ones, of the same names and shapes.  ValueError: they are not of these."""
    if model == "vae":
        made = Vae(Path()).models()["vae"]
        made.load_state_dict(weights)
        weights = folded(made.eval()).state_dict()
    for folder in where:
        [path] = [each for each in folder.glob("*.safetensors") if ".fp16." not in each.name]
        stored = load_file(path)
        if wrong := [name for name in stored if name not in weights or weights[name].shape != stored[name].shape]:
            raise ValueError(f"{folder}: {wrong[0]} is not of this size in what was trained: train it anew, or take the sizes it had")
        save_file({name: weights[name].detach().float().contiguous() for name in stored}, path, metadata={"format": "pt"})
