"""How long each stage of a cascade takes for a picture on this CPU: two short pictures, one of few steps and one of more.

Seconds are the processor's, of one thread: a busy machine disturbs them little.  A picture's time is what it takes besides, and so much
for a step; the steps are the cascade's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

from ifmesh import bags
from ifmesh.cascade import DRAWN, IF
from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Setup, Stage

from . import recipes
from .encoder import Encoder
from .guard import Guard
from .stage_one import StageOne
from .stage_two import StageTwo
from .upscaler import Upscaler

KINDS: Mapping[str, Callable[[], Stage]] = {
    "encoder": Encoder,
    "stage_one": StageOne,
    "stage_two": StageTwo,
    "upscaler": Upscaler,
    "guard": Guard,
}
FEW, MORE = 1, 4  # steps
ROUNDS = 3


def measured(cascade: str, tell: Callable[[str], None]) -> dict[str, float]:
    """Seconds for a picture, by stage.  Misconfigured: the cascade cannot be loaded here."""
    recipe = recipes.read(cascade)
    tell(f"loading {recipe.name}")
    stages = {name: kind() for name, kind in KINDS.items()}
    for stage in stages.values():
        stage.load(Setup(cascade=cascade))
    tell(f"measuring: {ROUNDS} times a picture of {FEW} and one of {MORE} steps")
    _picture(stages, FEW, 0)
    taken = [(_picture(stages, FEW, i), _picture(stages, MORE, i)) for i in range(1, ROUNDS + 1)]
    few, more = ({name: median(one[i][name] for one in taken) for name in stages} for i in (0, 1))
    made = {}
    for name in stages:
        steps = recipe.defaults["generate"][name].steps if name in DRAWN else 0
        each = max(0.0, more[name] - few[name]) / (MORE - FEW) if steps else 0.0
        made[name] = few[name] + each * ((steps or FEW) - FEW)
    return made


def _picture(stages: Mapping[str, Stage], steps: int, seed: int) -> dict[str, float]:
    """Seconds of each stage for one picture, through all of them."""
    request = Request(f"a red panda with {seed} maps", seed, settings={name: Settings(steps=steps) for name in DRAWN})
    taken: dict[str, float] = {}
    frame = bags.encode({})
    for name in IF.route(request):
        arrived = bags.decode(frame, IF.enters(request, name))
        began = time.process_time()
        output = _through(stages[name], request, arrived)
        taken[name] = time.process_time() - began
        rides = {blob.name for blob in IF.carries(request, name)}
        frame = bags.encode({key: value for key, value in {**arrived, **output}.items() if key in rides})
    return taken


def _through(stage: Stage, request: Request, bag: Bag) -> Bag:
    stage.admit("calibration", request, bag)
    while True:
        for advance in stage.step():
            if advance.output is not None:
                return advance.output
