"""What comes out: the guard's pictures, as whole PNG files, and what each stage did for them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ifmesh import bags, wire
from ifmesh.cascade import DRAWN, FLAGGED, PNG
from ifmesh.protocol import Finished, StageRun

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_suffix(path: Path) -> None:
    """ValueError: no picture can be written under this name.  Whoever asks before drawing loses nothing."""
    suffix = path.suffix.lower()
    if suffix == ".png":
        return
    from PIL import Image as pillow

    if pillow.registered_extensions().get(suffix) not in pillow.SAVE:  # some formats can only be read
        raise ValueError(f"{path.name}: no picture format to write has the suffix {path.suffix!r}; .png keeps every bit")


@dataclass(frozen=True, slots=True)
class Picture:
    """One stage's picture.  stage: who drew it; png: the file that the guard published, byte for byte."""

    stage: str
    png: bytes = field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as the PNG's header states them."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")

    @property
    def pil(self) -> Pixels:
        """A Pillow image, RGB, decoded anew at each access: change it as you like.  Imports Pillow."""
        from PIL import Image as pillow  # lazily: `import ifmesh` and a client that only stores files need no Pillow

        picture = pillow.open(io.BytesIO(self.png), formats=["PNG"])
        picture.load()
        return picture

    def save(self, path: str | Path) -> Path:
        """Write it; the suffix chooses the format.  .png: the guard's bytes as they are.  ValueError: a suffix Pillow cannot write."""
        path = Path(path)
        check_suffix(path)
        if path.suffix.lower() == ".png":
            path.write_bytes(self.png)
        else:
            self.pil.save(path, quality=95)  # for JPEG and WebP; the others have no such thing and do not mind
        return path

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True, slots=True)
class Image(Picture):
    """A finished job.  It is the picture of the last stage, and knows the others.

    job: its id; seed: of its one generator.  stages: name -> Picture, in the order of the cascade, the last one included; earlier
    ones only when the request asked for them.  timings: what each stage did.  flagged: the safety checker blanked a picture.
    reproducible: every stage stayed within one numeric class, so the same request gives the same pixels there.
    """

    job: str
    seed: int
    stages: Mapping[str, Picture] = field(repr=False, hash=False)
    timings: tuple[StageRun, ...] = field(repr=False)
    flagged: bool
    reproducible: bool

    @classmethod
    def published(cls, finished: Finished, frame: bytes) -> Image:
        """From the frame that the coordinator stored: uint8 tensors png_STAGE [bytes] and flagged [1].

        Raises wire.Garbled when the frame is not what `finished` announced, or not what a guard publishes.
        """
        if len(frame) != finished.size:
            raise wire.Garbled(f"result of {finished.job}: {len(frame)} bytes, announced were {finished.size}")
        bag = bags.decode(frame)
        names = {PNG[stage].name: stage for stage in DRAWN}
        if FLAGGED.name not in bag or len(bag) < 2 or not bag.keys() <= {*names, FLAGGED.name}:
            raise wire.Garbled(f"result of {finished.job}: holds {', '.join(sorted(bag))[:200]}, not a guard's pictures")
        if any(t.dtype != "U8" or len(t.shape) != 1 for t in bag.values()) or bag[FLAGGED.name].shape != (1,):
            raise wire.Garbled(f"result of {finished.job}: not flat bytes")
        stages = {stage: Picture(stage, bytes(bag[name].data)) for name, stage in names.items() if name in bag}
        for stage, picture in stages.items():
            if not picture.png.startswith(_SIGNATURE) or len(picture.png) < 24:
                raise wire.Garbled(f"result of {finished.job}: {stage} is no PNG")
        last = list(stages.values())[-1]
        return cls(
            stage=last.stage,
            png=last.png,
            job=finished.job,
            seed=finished.seed,
            stages=stages,
            timings=finished.runs,
            flagged=bool(bytes(bag[FLAGGED.name].data)[0]),
            reproducible=finished.reproducible,
        )
