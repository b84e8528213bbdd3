"""Trains the built-in cascade, part by part: `python -m ifmesh_services.nano.train stage_one --seconds 3600 --out nano-train`.

Ended early, it goes on where it was when the same command is given again.  text comes first, then sketch and stage_one (which grows
from it), and stage_two; vae, then upscaler.  `folder --to NAME` writes what has been trained as a cascade, whatever is missing of
random weights.  `exam --to NAME.png` has Stage I, or its sketch, draw captions it has never seen, and judges them.
`pack --to NAME` writes states of a tenth of the size, from which training goes on with --out NAME.

With which options, and for how long, the built-in cascade was trained: cascade/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ifmesh_services.nano import folder, state
from ifmesh_services.nano.batches import picture
from ifmesh_services.nano.exam import contacts, score
from ifmesh_services.nano.part import Part, packed, trained
from ifmesh_services.nano.scenes import questions
from ifmesh_services.nano.stage_one import Sketch, StageOne
from ifmesh_services.nano.stage_two import StageTwo
from ifmesh_services.nano.text import Text
from ifmesh_services.nano.training import Plan, Training
from ifmesh_services.nano.upscaler import Upscaler
from ifmesh_services.nano.vae import Vae

PARTS: dict[str, Any] = {"text": Text, "sketch": Sketch, "stage_one": StageOne, "stage_two": StageTwo, "vae": Vae, "upscaler": Upscaler}
DOZEN = 12  # pictures drawn at once


def main(arguments: list[str] | None = None) -> None:
    usual = Plan()
    parser = argparse.ArgumentParser(prog="python -m ifmesh_services.nano.train", description=__doc__, allow_abbrev=False)
    parser.add_argument("part", choices=[*PARTS, "folder", "pack", "exam"])
    parser.add_argument("--out", type=Path, required=True, help="the folder of all parts; each has one of its own in it")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long")
    parser.add_argument("--steps", type=int, default=usual.steps, help="stop at this step, counted from the first of all")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--batch", type=int, default=0, help="pictures in a step; left out: the part's own")
    parser.add_argument("--side", type=int, default=0, help="pixels of a side; left out: the part's own")
    parser.add_argument("--rate", type=float, default=usual.rate, help="learning rate, after its rise and before its fall")
    parser.add_argument("--told", type=float, default=usual.told, help="share of the captions that leave nothing out, 0 to 1")
    parser.add_argument("--most", type=float, default=usual.most, help="greatest weight of a timestep, of Stage I and II")
    parser.add_argument("--focus", type=float, default=usual.focus, help="of Stage I and II: share of timesteps in the band, 0 to 1")
    parser.add_argument("--band", type=int, nargs=2, default=usual.band, metavar=("FROM", "TO"), help="of focus: timesteps, 0 to 1000")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=usual.precision, help="of the arithmetic; weights are fp32")
    parser.add_argument("--device", default=usual.device)
    parser.add_argument("--threads", type=int, default=0, help="of torch; left out: its own choice.  Another number, other bits")
    parser.add_argument("--every", type=float, default=usual.every, help="seconds between checkpoints")
    parser.add_argument("--sheets", type=float, default=usual.sheets, help="seconds between sheets of samples")
    parser.add_argument("--to", type=Path, help="of folder, pack, exam: what to write; a folder must not exist")
    parser.add_argument("--of", choices=["sketch", "stage_one"], default="stage_one", help="of exam: which part")
    parser.add_argument("--captions", type=int, default=len(questions()), help="of exam: how many of them")
    given = vars(parser.parse_args(arguments))
    given["band"] = tuple(given["band"])
    if threads := given.pop("threads"):
        torch.set_num_threads(threads)
    name, side, out, to, captions, of = (given.pop(key) for key in ("part", "side", "out", "to", "captions", "of"))
    if name in ("folder", "pack") and (to is None or to.exists()):
        parser.error(f"--to {to}: the name of a folder that does not exist yet")
    if name == "folder":
        missing = folder.write(out, to)
        print(f"{to}: {'complete' if not missing else 'random weights for ' + ', '.join(missing)}")
    elif name == "pack":
        for each in (part for part in PARTS if (out / part / state.FILE).exists()):
            packed(out, each, to)
    elif name == "exam":
        _examine(PARTS[of](out), out, to, captions)
    else:
        part: Part = PARTS[name](out, side) if side else PARTS[name](out)
        print(f"{part.name}: {Training(part, out / part.name, Plan(**given)).run()} steps; {out / part.name}")


def _examine(part: StageOne, out: Path, to: Path | None, count: int) -> None:
    """The captions in heldout.json, from the first, each dozen from a seed of its own."""
    models = part.models()
    for name, weights in trained(out, part.name).items():
        models[name].load_state_dict(weights)
        models[name].eval()
    said = questions()[:count]
    pictures = []
    for begin in range(0, len(said), DOZEN):
        texts = [one["caption"] for one in said[begin : begin + DOZEN]]
        pictures += [picture(each) for each in part.draw(models, texts, seed=begin)]
    found = score(pictures, said)
    print(json.dumps(asdict(found)))
    if to:
        contacts(pictures, found.wrong).save(to)


if __name__ == "__main__":
    main()
