"""What somebody wants drawn: the Request, and how each stage is to draw it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

STAGES = ("encoder", "stage_one", "stage_two", "upscaler", "guard")
TASKS = ("generate", "vary", "inpaint", "upscale", "encode")
DEADLINES = ("deadline", "deadline_queued", "deadline_running")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one stage draws.  None: the cascade's default.

    steps: number of denoising steps, or timesteps: the explicit falling list within 999..0, or schedule: the name of one, or how to make
    it (see `respacing.timesteps`).  guidance: classifier-free guidance scale.  strength: (0, 1], vary and inpaint.  noise_level: 0..999,
    noise put on the low-resolution input (Stage II, upscaler).

    scheduler: "ddpm", "dpm++" (DPM-Solver++ multistep), "dpm++-single" (singlestep) or "ddim".  threshold_ratio, threshold_max: dynamic
    thresholding of Stage I and II (Imagen, arXiv:2205.11487): what is foreseen is cut at that quantile of its absolute values, which
    counts as at least 1 and at most threshold_max, and divided by it.

    positive_mixer: [0, 1], Stage I and II of a request with a style: how much of the style the prompt gives way to.
    """

    steps: int | None = None
    timesteps: tuple[int, ...] | None = None
    guidance: float | None = None
    strength: float | None = None
    noise_level: int | None = None
    schedule: str | None = None
    scheduler: str | None = None
    threshold_ratio: float | None = None
    threshold_max: float | None = None
    positive_mixer: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants drawn.  The same Request gives the same bytes within one numeric class.

    seed: of the one CPU generator that travels in the bag.  style: a second text, which the encoder reads and Stage I and II mix into
    the prompt, see Settings.positive_mixer.  settings: by stage name.  width, height: base pixels (Stage I) of what is generated; vary,
    inpaint and upscale follow their source.  seeding: "chained" (one generator through all stages) or "per_stage" (fresh in each).
    stages: publish the pictures of the earlier stages too.  format: of the published files; webp is lossless, jpeg is not.

    priority: higher goes first.  deadline: seconds from acceptance to the end; deadline_queued: from acceptance until its first stage
    begins; deadline_running: from there to the end, and anew after a restart of the coordinator.  tied: the job is cancelled when no
    client that watches it has been heard for a while.  keep: seconds for which the mesh keeps, beside the result, what the next stage
    would need (`cascade.kept`), as an upload named by Finished.kept: another request may bring it, and so go on where this one ends.

    brings: names of the tensors in the upload, in the order of `cascade.BROUGHT`; they enter the first bag.  upload: SHA-256 (hex) of
    their safetensors frame.
    """

    prompt: str
    seed: int
    task: str = "generate"
    negative: str = ""
    settings: dict[str, Settings] = field(default_factory=dict)
    style: str = ""
    width: int | None = None
    height: int | None = None
    seeding: Literal["chained", "per_stage"] = "chained"
    first_stage: str = "encoder"
    last_stage: str = "upscaler"
    stages: bool = True
    format: Literal["png", "webp", "jpeg"] = "png"
    priority: int = 0
    deadline: float | None = None
    deadline_queued: float | None = None
    deadline_running: float | None = None
    tied: bool = False
    keep: float = 0.0
    brings: tuple[str, ...] = ()
    upload: str = ""
