"""How a picture was made, as text within its PNG file.  Pure: chunks are put between others, no pixel is touched.

PNG, chunks and iTXt: https://www.w3.org/TR/png-3/#11iTXt.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Final

from ifmesh import typed
from ifmesh.request import Request, Settings

BODY: Final = 33  # bytes to the end of IHDR: where other chunks may begin
NAMES: Final = {"stage_one": "Stage I", "stage_two": "Stage II", "upscaler": "Upscaler"}
SAID: Final = {
    "scheduler": "Sampler",
    "schedule": "Schedule type",
    "guidance": "CFG scale",
    "strength": "Denoising strength",
    "noise_level": "Noise level",
    "threshold_ratio": "Threshold ratio",
    "threshold_max": "Threshold max",
    "positive_mixer": "Positive mixer",
}


def told(png: bytes, readable: str, whole: str) -> bytes:
    """The same picture with two texts: "parameters", for readers, and "ifmesh", for programs."""
    return png[:BODY] + _chunk("parameters", readable) + _chunk("ifmesh", whole) + png[BODY:]


def readable(request: Request | None, seed: int, stage: str, size: tuple[int, int], steps: Mapping[str, int]) -> str:
    """As other programs write it, and many read it: the prompt, the negative prompt, and a line of "Name: value, Name: value", where
    a value that has a comma, a colon or a line's end in it is quoted as in JSON.

    stage: the last that drew; size: (width, height) of the picture; steps: those that ran, by stage.  What nobody asked for, and the
    cascade chose, is left out; Stage I has the plain names.
    """
    lines = []
    if request is not None:
        lines.append(request.prompt)
        if request.negative:
            lines.append(f"Negative prompt: {request.negative}")
    drew = [name for name in NAMES if name in steps]
    said: dict[str, object] = {_name(name, "Steps"): steps[name] for name in drew}
    for name in drew:
        asked = request.settings.get(name, Settings()) if request is not None else Settings()
        said |= {_name(name, called): getattr(asked, wish) for wish, called in SAID.items()}
    said |= {"Seed": seed, "Size": f"{size[0]}x{size[1]}", "Model": f"ifmesh {stage}"}
    if request is not None:
        said |= {"Task": request.task if request.task != "generate" else None, "Style": request.style or None}
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in said.items() if value is not None))
    return "\n".join(lines)


def whole(request: Request | None, seed: int, stage: str, reproducible: bool) -> str:
    """JSON: the Request as it was sent (of what it brings, the names and the SHA-256), and what became of it.

    No job, host or time: the same request gives the same file.
    """
    asked = None if request is None else typed.plain(request)
    made = {"seed": seed, "stage": stage, "reproducible": reproducible, "request": asked}
    return json.dumps(made, ensure_ascii=False, sort_keys=True)


def _name(stage: str, called: str) -> str:
    return called if stage == "stage_one" else f"{NAMES[stage]} {called if called.startswith('CFG') else called.lower()}"


def _quoted(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and re.search(r'[",:\n\r]', value) else value


def _chunk(keyword: str, text: str) -> bytes:
    """iTXt, not compressed, of no language."""
    body = b"iTXt" + keyword.encode() + b"\0\0\0\0\0" + text.encode(errors="replace")
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
