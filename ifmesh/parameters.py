"""How a picture was made, as text within its PNG file.  Pure: chunks are put between others, no pixel is touched.

PNG, chunks and iTXt: https://www.w3.org/TR/png-3/#11iTXt.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Final

from ifmesh import typed
from ifmesh.protocol import Request, Settings

HEAD: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
BODY: Final = 33  # bytes to the end of IHDR: where other chunks may begin
NAMES: Final = {"stage_one": "Stage I", "stage_two": "Stage II", "upscaler": "Upscaler"}


def told(png: bytes, readable: str, whole: str) -> bytes:
    """The same picture with two texts: "parameters", for readers, and "ifmesh", for programs."""
    return png[:BODY] + _chunk("parameters", readable) + _chunk("ifmesh", whole) + png[BODY:]


def readable(request: Request | None, seed: int, stage: str, size: tuple[int, int], steps: Mapping[str, int]) -> str:
    """As other programs write it, and many read it: the prompt, the negative prompt, and a line of "Name: value, Name: value".

    stage: the last that drew; size: (width, height) of the picture; steps: those that ran, by stage.  What nobody asked for, and the
    cascade chose, is left out; Stage I has the plain names.
    """
    lines = []
    if request is not None:
        lines.append(request.prompt)
        if request.negative:
            lines.append(f"Negative prompt: {request.negative}")
    drew = [name for name in NAMES if name in steps]
    said: dict[str, object] = {_name(name, "Steps", "steps"): steps[name] for name in drew}
    for name in drew:
        asked = request.settings.get(name, Settings()) if request is not None else Settings()
        said[_name(name, "CFG scale", "CFG scale")] = asked.guidance
        said[_name(name, "Denoising strength", "denoising strength")] = asked.strength
        said[_name(name, "Noise level", "noise level")] = asked.noise_level
    said |= {"Seed": seed, "Size": f"{size[0]}x{size[1]}", "Model": f"ifmesh {stage}"}
    if request is not None and request.task != "generate":
        said["Task"] = request.task
    lines.append(", ".join(f"{name}: {value}" for name, value in said.items() if value is not None))
    return "\n".join(lines)


def whole(request: Request | None, seed: int, stage: str, reproducible: bool) -> str:
    """JSON: the Request as it was sent (of what it brings, the names and the SHA-256), and what became of it.

    No job, host or time: the same request gives the same file.
    """
    asked = None if request is None else typed.plain(request)
    made = {"seed": seed, "stage": stage, "reproducible": reproducible, "request": asked}
    return json.dumps(made, ensure_ascii=False, sort_keys=True)


def _name(stage: str, plain: str, name: str) -> str:
    return plain if stage == "stage_one" else f"{NAMES[stage]} {name}"


def _chunk(keyword: str, text: str) -> bytes:
    """iTXt, not compressed, of no language."""
    body = b"iTXt" + keyword.encode() + b"\0\0\0\0\0" + text.encode(errors="replace")
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
