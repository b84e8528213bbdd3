"""`python -m ifmesh_services.bench.notebook`: a cascade as the published notebooks run it, one part in memory at a time.

For each picture: load T5, encode, free it; load Stage I's pipeline, draw, free it; Stage II; the upscaler.  diffusers' own pipelines by
from_pretrained, and one CPU generator through all of them: what a mesh must give, bit by bit, and what it must beat.

One JSON object a line, on stdin and stdout:

    -> {"build": {"real", "folder", "stages"}}               <- {"built": true}          random weights of a published size
    -> {"inflate": {"folder"}}                               <- {"built": true}          much to load, little to compute with
    -> {"open": {"cascade", "stages"}}                       <- {"name": the cascade's}
    -> {"draw": {"request", "source", "mask", "folder"}}     <- {"drawn": {"seconds", "loads": {stage: so many so far}}}

stages: by name {"device", "dtype", "threads", "options"}.  request: Request's fields.  source, mask: files, or null.  folder: there each
stage writes what it made, STAGE.safetensors, and the last its picture.png; or null.  What cannot be done is {"error": why}.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers import (
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
)
from diffusers.utils.loading_utils import load_image
from diffusers.utils.pil_utils import numpy_to_pil
from PIL import Image
from transformers import T5EncoderModel

from ifmesh import bags
from ifmesh.cascade import DRAWN, EMBEDS
from ifmesh.request import Request, Settings
from ifmesh.stage import Setup

from .. import hub, loading, precision, recipes
from ..mending import quiet
from ..samplers import alike, thresholded
from ..schedules import Plan, planned
from ..tensors import to_blob
from ..terms import Terms
from . import inflated, published
from .rivals import PLAIN

TEXTLESS = {**PLAIN, "text_encoder": None, "tokenizer": None}
PIPELINES: Mapping[str, Mapping[str, Any]] = {
    "generate": {"stage_one": IFPipeline, "stage_two": IFSuperResolutionPipeline},
    "vary": {"stage_one": IFImg2ImgPipeline, "stage_two": IFImg2ImgSuperResolutionPipeline},
    "inpaint": {"stage_one": IFInpaintingPipeline, "stage_two": IFInpaintingSuperResolutionPipeline},
}
SIZED = {"stage_one": 1, "stage_two": 4}  # times the request's own width and height
to_pil: Any = numpy_to_pil  # not typed


class Notebook:
    """setups: by stage, of those that are drawn with; their cascade is this one."""

    def __init__(self, recipe: recipes.Recipe, setups: Mapping[str, Setup]) -> None:
        self._recipe, self._setups = recipe, setups
        self.loads = dict.fromkeys(setups, 0)

    def draw(self, request: Request, source: Image.Image | None, mask: Image.Image | None) -> dict[str, torch.Tensor]:
        """By stage what it made: embeds [2, 77, C], pictures [3, h, w] of about -1 to 1, the upscaler's U8.

        Of a request with one prompt, chained, that generates, varies or inpaints.
        """
        generator = torch.Generator("cpu").manual_seed(request.seed)
        made = {"encoder": self._encoded(request)}
        low: Any = None
        for stage in self._way(request):
            low = self._drawn(stage, request, made["encoder"], low, {"image": source, "mask_image": mask}, generator)
            made[stage] = torch.from_numpy(numpy.array(low[0])).permute(2, 0, 1) if stage == "upscaler" else low[0]
        return made

    def _way(self, request: Request) -> list[str]:
        stages = list(DRAWN)
        return stages[: stages.index(request.last_stage) + 1]

    def _encoded(self, request: Request) -> torch.Tensor:
        pipe = self._texts()
        with torch.no_grad():
            positive, negative = pipe.encode_prompt(request.prompt, negative_prompt=request.negative)
        made = torch.cat([negative, positive]).cpu()
        del pipe
        _freed()
        return made

    def _drawn(self, stage: str, request: Request, embeds: torch.Tensor, low: Any, files: dict[str, Any], source: torch.Generator) -> Any:
        pipe = self._pipeline(stage, request.task)
        plan = planned(self._recipe.defaults[request.task][stage], request.settings.get(stage))
        pipe.scheduler = alike(pipe.scheduler, plan.scheduler)
        thresholded(pipe.scheduler, plan.threshold_ratio, plan.threshold_max)
        wishes: dict[str, Any] = {"guidance_scale": plan.guidance, "generator": source, **_walk(plan)}
        if stage == "upscaler":
            texts = {"prompt": request.prompt, "negative_prompt": request.negative, "output_type": "pil"}
            wishes |= {"image": (low / 2 + 0.5).clamp(0, 1), **texts, "noise_level": plan.noise_level}  # it takes 0 to 1
        else:
            both = embeds.to(pipe.unet.device, pipe.unet.dtype)
            wishes |= {"negative_prompt_embeds": both[:1], "prompt_embeds": both[1:], "output_type": "pt"}
            wishes |= _sketch(stage, files) | ({"strength": plan.strength} if request.task != "generate" else {})
            if request.width and request.height and request.task == "generate":
                wishes |= {"width": SIZED[stage] * request.width, "height": SIZED[stage] * request.height}
        if stage == "stage_two":
            wishes |= {"image": low, "noise_level": plan.noise_level}
        pictures = pipe(**wishes).images
        del pipe
        _freed()
        return pictures

    def _texts(self) -> Any:
        setup, folder = self._begun("encoder")
        terms = Terms.read("encoder", setup.options, setup.device)
        dtype = precision.dtype_of(setup, text=True)
        if terms.quantize or terms.variant:  # the published 8-bit files do not say so of themselves: only our loader knows them
            model = loading.component(str(folder), "text_encoder", T5EncoderModel, dtype, setup.device, terms)
            return _ready(IFPipeline, folder, setup, text_encoder=model, unet=None, **PLAIN)
        kind: Any = T5EncoderModel
        with quiet():
            model = kind.from_pretrained(
                folder, subfolder="text_encoder", variant=_variant(folder / "text_encoder", dtype), use_safetensors=True, dtype=dtype
            )
        return _ready(IFPipeline, folder, setup, text_encoder=model.to(setup.device), unet=None, **PLAIN)

    def _pipeline(self, stage: str, task: str) -> Any:
        setup, folder = self._begun(stage)
        dtype = precision.dtype_of(setup)
        variant = Terms.read(stage, setup.options, setup.device).variant or _variant(folder / "unet", dtype)
        kind = PIPELINES[task].get(stage, StableDiffusionUpscalePipeline)
        without = {} if stage == "upscaler" else TEXTLESS
        return _ready(kind, folder, setup, dtype=dtype, variant=variant, use_safetensors=True, **without).to(setup.device)

    def _begun(self, stage: str) -> tuple[Setup, Path]:
        """How the stage is loaded, and from where; from now on torch has its threads."""
        self.loads[stage] += 1
        loading.settle(self._setups[stage])
        return self._setups[stage], hub.where(self._recipe.repos[stage])


def _ready(kind: Any, folder: Path, setup: Setup, **parts: Any) -> Any:
    with quiet():
        pipe = kind.from_pretrained(folder, local_files_only=True, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _variant(folder: Path, dtype: torch.dtype) -> str | None:
    half = dtype == torch.float16 and any(hub.variant_of(path) == "fp16" for path in folder.glob("*.safetensors"))
    return "fp16" if half else None


def _walk(plan: Plan) -> dict[str, Any]:
    return {"num_inference_steps": plan.steps} if plan.timesteps is None else {"timesteps": list(plan.timesteps)}


def _sketch(stage: str, files: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures that were brought, by the pipeline's own names."""
    given = {name: picture for name, picture in files.items() if picture is not None}
    return {"original_image" if name == "image" and stage == "stage_two" else name: picture for name, picture in given.items()}


def _freed() -> None:
    """As the notebooks do it.  Nothing may refer to the pipeline any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _written(folder: Path, made: Mapping[str, torch.Tensor]) -> None:
    for stage, tensor in made.items():
        name = DRAWN[stage].name if stage in DRAWN else EMBEDS.name
        (folder / f"{stage}.safetensors").write_bytes(bags.encode({name: to_blob(tensor)}))
    *_, last = made.values()
    if last.dtype == torch.uint8:
        picture = Image.fromarray(last.permute(1, 2, 0).contiguous().numpy())
    else:
        [picture] = to_pil((last.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)[None].cpu().numpy())
    picture.save(folder / "picture.png")


def asked(said: Mapping[str, Any]) -> Request:
    """Of plain data, as JSON brings it."""
    given = {stage: {**of, "timesteps": tuple(of["timesteps"]) if of.get("timesteps") else None} for stage, of in said["settings"].items()}
    settings = {stage: Settings(**of) for stage, of in given.items()}
    return Request(**{**said, "settings": settings, "brings": tuple(said["brings"])})


def _setups(cascade: str, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Setup]:
    return {stage: Setup(cascade=cascade, **said) for stage, said in stages.items()}


def _build(real: str, folder: str, stages: Mapping[str, Mapping[str, Any]]) -> None:
    setups = _setups(folder, stages)
    dtypes = {stage: precision.dtype_of(setup, text=stage == "encoder") for stage, setup in setups.items()}
    published.build(Path(folder), published.CASCADES[real], dtypes, next(iter(setups.values())).device)


def _draw(notebook: Notebook, request: Mapping[str, Any], source: str | None, mask: str | None, folder: str | None) -> dict[str, Any]:
    began = time.perf_counter()
    pictures = [load_image(file) if file else None for file in (source, mask)]
    made = notebook.draw(asked(request), *pictures)
    taken = time.perf_counter() - began
    if folder:
        _written(Path(folder), made)
    return {"seconds": taken, "loads": dict(notebook.loads)}


def main() -> None:
    """Until stdin ends."""
    notebook: Notebook | None = None
    told: dict[str, Any]
    for line in sys.stdin:
        try:
            match json.loads(line):
                case {"build": wanted}:
                    _build(**wanted)
                    told = {"built": True}
                case {"inflate": wanted}:
                    inflated.build(Path(wanted["folder"]))
                    told = {"built": True}
                case {"open": wanted}:
                    recipe = recipes.read(wanted["cascade"])
                    notebook = Notebook(recipe, _setups(wanted["cascade"], wanted["stages"]))
                    told = {"name": recipe.name}
                case {"draw": wanted} if notebook is not None:
                    told = {"drawn": _draw(notebook, **wanted)}
                case other:
                    raise ValueError(f"no such order: {str(other)[:100]}")
        except Exception as error:  # whoever asked shows it, and ends
            told = {"error": f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
