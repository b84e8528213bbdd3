"""Trains the built-in cascade, part by part: `python -m ifmesh_services.nano.train stage_one --seconds 3600 --out nano-train`.

Ended early, it goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from ifmesh_services.nano.part import Part
from ifmesh_services.nano.stage_one import StageOne
from ifmesh_services.nano.stage_two import StageTwo
from ifmesh_services.nano.training import Plan, Training
from ifmesh_services.nano.upscaler import Upscaler
from ifmesh_services.nano.vae import Vae


PARTS: dict[str, Any] = {"stage_one": StageOne, "stage_two": StageTwo, "vae": Vae, "upscaler": Upscaler}


def main(arguments: list[str] | None = None) -> None:
    usual = Plan()
    parser = argparse.ArgumentParser(prog="python -m ifmesh_services.nano.train", description=__doc__, allow_abbrev=False)
    parser.add_argument("part", choices=[*PARTS])
    parser.add_argument("--out", type=Path, required=True, help="the folder of all parts; each has one of its own in it")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long")
    parser.add_argument("--steps", type=int, default=usual.steps, help="stop at this step, counted from the first of all")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--batch", type=int, default=0, help="pictures in a step; left out: the part's own")
    parser.add_argument("--side", type=int, default=0, help="pixels of a side; left out: the part's own")
    parser.add_argument("--rate", type=float, default=usual.rate, help="learning rate, after its rise and before its fall")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=usual.precision, help="of the arithmetic; weights are fp32")
    parser.add_argument("--device", default=usual.device)
    parser.add_argument("--threads", type=int, default=0, help="of torch; left out: its own choice.  Another number, other bits")
    parser.add_argument("--every", type=float, default=usual.every, help="seconds between checkpoints")
    parser.add_argument("--sheets", type=float, default=usual.sheets, help="seconds between sheets of samples")
    given = vars(parser.parse_args(arguments))
    if threads := given.pop("threads"):
        torch.set_num_threads(threads)
    name, side, out = given.pop("part"), given.pop("side"), given.pop("out")
    part: Part = PARTS[name](out, side) if side else PARTS[name](out)
    plan = Plan(**given)
    print(f"{part.name}: {Training(part, out / part.name, plan).run()} steps; {out / part.name}")


if __name__ == "__main__":
    main()
