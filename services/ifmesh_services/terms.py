"""On which terms a stage's models are loaded: its options in ifmesh.toml that are about weights and memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from ifmesh.errors import Misconfigured

from .precision import QUANTIZE

OFFLOAD = ("none", "model", "sequential", "disk")
LOADED = ("variant", "download", "offload")
DRAWING = (*LOADED, "compile", "shapes", "attention_slicing")
OPTIONS = {
    "encoder": (*LOADED, "quantize", "compile"),
    "stage_one": DRAWING,
    "stage_two": DRAWING,
    "upscaler": (*DRAWING, "vae_tiling"),
    "guard": LOADED,
}
SHAPES = {"upscaler": "256x256"}  # its UNet's configuration says another size than the one it is used with
SIDES = range(8, 4097)  # pixels


@dataclass(frozen=True, slots=True)
class Terms:
    """variant: of the files, as in model.VARIANT.safetensors; "": fp16 for fp16 where there is one.  download: fetch what is missing.

    offload: "model" keeps the weights in RAM and brings one model at a time to the card, "sequential" one layer at a time, "disk"
    (a CPU's too) reads each layer from its file when its turn comes; "none": all stay on the device.  The bits are the same.
    quantize: "int8" or "nf4", see precision.py.  compile: torch.compile while loading, for `shapes`: (width, height) of what the UNet
    draws, guided; (): its own square.  attention_slicing: "none", "auto", "max", or so many heads at a time.
    vae_tiling: decode in tiles (seams may differ); one picture at a time it always is.
    """

    stage: str = ""
    variant: str = ""
    download: bool = False
    offload: str = "none"
    quantize: str = ""
    compile: bool = False
    shapes: tuple[tuple[int, int], ...] = ()
    attention_slicing: str | int = "none"
    vae_tiling: bool = False

    @classmethod
    def read(cls, stage: str, options: Mapping[str, object] | None, device: str = "cpu", beside: Sequence[str] | None = None) -> Terms:
        """From the stage's options.  beside: names of others that the stage knows; None: somebody else looks for unknown ones.

        Misconfigured: key, value, remedy.
        """
        options, where = options or {}, f"services.{stage}.options"
        for key in options if beside is not None else ():
            if key not in (valid := (*OPTIONS[stage], *(beside or ()))):
                near = get_close_matches(key, valid, 1, cutoff=0.0)
                raise Misconfigured(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
        known = {key: value for key, value in options.items() if key in OPTIONS[stage]}
        made: dict[str, Any] = {}
        for key, value in known.items():
            if key in ("download", "compile", "vae_tiling") and not isinstance(value, bool):
                raise Misconfigured(f"{where}.{key}: {value!r}: true or false")
            if key == "variant" and not (isinstance(value, str) and re.fullmatch(r"[\w-]*", value)):
                raise Misconfigured(f"{where}.variant: {value!r}: the part of the files' names before .safetensors, as in 'fp16' or '8bit'")
            if key == "offload" and value not in OFFLOAD:
                raise Misconfigured(f"{where}.offload: {value!r}: one of {', '.join(OFFLOAD)}")
            if key == "quantize" and value not in ("", *QUANTIZE):
                raise Misconfigured(f"{where}.quantize: {value!r}: {' or '.join(QUANTIZE)}, or leave it out")
            if key == "attention_slicing" and not (value in ("none", "auto", "max") or (type(value) is int and value >= 1)):
                raise Misconfigured(f"{where}.attention_slicing: {value!r}: none, auto, max, or a whole number of heads from 1 up")
            made[key] = _shapes(where, value) if key == "shapes" else value
        if made.get("compile") and "shapes" not in made and stage in SHAPES:
            made["shapes"] = _shapes(where, SHAPES[stage])
        terms = cls(stage, **made)
        terms._check(where, torch.device(device).type, options)
        return terms

    def _check(self, where: str, device: str, options: Mapping[str, object]) -> None:
        """What does not go together."""
        if self.offload in ("model", "sequential") and device == "cpu":
            raise Misconfigured(
                f"{where}.offload: {self.offload!r}: moves weights between RAM and an accelerator, and this service computes on the CPU; "
                "use 'none', or 'disk' to need less RAM"
            )
        if self.shapes and not self.compile:
            raise Misconfigured(f"{where}.shapes: only with compile = true")
        for key, said in (("offload", self.offload if self.offload != "none" else ""), ("quantize", self.quantize)):
            if self.compile and said:
                raise Misconfigured(f"{where}.compile: not with {key} = {said!r}; leave one of them out")
        if self.compile and options.get("mode") == "pooled":
            raise Misconfigured(f"{where}.compile: only with mode = 'exact'; a pool's calls have no shape that could be declared")
        if self.offload == "disk" and device == "cpu" and self.stage != "encoder" and options.get("mode") == "pooled":
            # skinny.py computes with layers' weights itself, and they are not there
            raise Misconfigured(f"{where}.offload: 'disk': on a CPU only with mode = 'exact'; leave one of them out")
        if self.quantize and self.offload != "none":
            raise Misconfigured(f"{where}.quantize: {self.quantize!r}: not with offload = {self.offload!r}; leave one of them out")

    @property
    def numeric(self) -> str:
        """What they add to the numeric class.  Offloading changes no bits."""
        sliced = f", attention slices {self.attention_slicing}" if self.attention_slicing != "none" else ""
        quantised = f", {self.quantize}" if self.quantize else ""
        return f"{quantised}{', compiled' * self.compile}{sliced}{', VAE tiles' * self.vae_tiling}"


def _shapes(where: str, said: object) -> tuple[tuple[int, int], ...]:
    """ "64x64, 96x64" -> ((64, 64), (96, 64))"""
    found = [re.fullmatch(r"\s*(\d+)x(\d+)\s*", part) for part in said.split(",")] if isinstance(said, str) else []
    made = tuple((int(one[1]), int(one[2])) for one in found if one)
    if not made or len(made) < len(found) or any(side not in SIDES or side % 8 for shape in made for side in shape):
        least, most = SIDES[0], SIDES[-1]
        raise Misconfigured(f"{where}.shapes: {said!r}: WIDTHxHEIGHT, as in '64x64, 96x64'; multiples of 8 from {least} to {most}")
    return made
