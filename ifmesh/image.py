"""What comes out: the guard's pictures, as whole files, and what each stage did for them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ifmesh import bags, formats, parameters, wire
from ifmesh.cascade import DRAWN, FLAGGED, PICTURE, TOKENS, Blob
from ifmesh.notes import notes
from ifmesh.protocol import Finished, StageRun
from ifmesh.request import DEADLINES, Request
from ifmesh.stage import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

SUFFIXES: Final = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


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
    """One stage's picture.  stage: who drew it; data: the file that the guard published, byte for byte."""

    stage: str
    data: bytes = field(repr=False)

    @property
    def format(self) -> str:
        """Of the file: "png", "webp" or "jpeg", as the request has it."""
        return formats.kind(self.data)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as the file's header states them."""
        return formats.size(self.data)

    @property
    def pil(self) -> Pixels:
        """A Pillow image, RGB, decoded anew at each access: change it as you like.  Imports Pillow."""
        from PIL import Image as pillow  # lazily: `import ifmesh` and a client that only stores files need no Pillow

        return pillow.open(io.BytesIO(self.data), formats=[self.format]).convert("RGB")

    def save(self, path: str | Path) -> Path:
        """Write it; the suffix chooses the format.  That of the guard's file: its bytes as they are; else they are converted.

        ValueError: a suffix Pillow cannot write.
        """
        path = Path(path)
        path.write_bytes(self._file(path))
        return path

    def _file(self, path: Path) -> bytes:
        """What a file of this name holds."""
        check_suffix(path)
        suffix = path.suffix.lower()
        if SUFFIXES.get(suffix) == self.format:
            return self.data
        from PIL import Image as pillow

        file = io.BytesIO()
        how = {"lossless": True} if SUFFIXES.get(suffix) == "webp" else {"quality": 95}  # the quality is for JPEG; the others do not mind
        self.pil.save(file, pillow.registered_extensions()[suffix], **how)
        return file.getvalue()

    def _repr_png_(self) -> bytes | None:
        """For notebooks, which do not all know WebP."""
        return None if self.format == "jpeg" else self._file(Path("shown.png"))

    def _repr_jpeg_(self) -> bytes | None:
        return self.data if self.format == "jpeg" else None


@dataclass(frozen=True, slots=True)
class Preview(Picture):
    """An early picture of a running job, checked and marked by the guard.  flagged: the safety checker blanked it."""

    job: str
    flagged: bool

    @classmethod
    def published(cls, job: str, stage: str, frame: bytes | memoryview) -> Preview:
        """From the frame that came with the message: uint8 tensors picture_STAGE [bytes] and flagged [1].  Raises wire.Garbled."""
        if stage not in DRAWN:
            raise wire.Garbled(f"preview of {job}: not of a stage that draws")
        bag = bags.decode(frame, (PICTURE[stage], FLAGGED))
        return cls(stage, _file(bag, stage, f"preview of {job}"), job, _flag(bag))


@dataclass(frozen=True, slots=True)
class Image(Picture):
    """A finished job.  It is the picture of the last stage, and knows the others.

    job: its id; seed: of its one generator.  stages: name -> Picture, in the order of the cascade, the last one included; earlier
    ones only when the request asked for them.  timings: what each stage did for it.  flagged: the safety checker blanked a picture.
    reproducible: every stage stayed within one numeric class, so the same request gives the same pixels there.

    request: what was asked.  source, mask: the files that were sent with it, where this client knows them.  notes: what the encoder
    could not read of the texts, as sentences; () when all is well.  kept: SHA-256 of what the mesh keeps of it, for as long as the
    request says, so that `proceed` can go on from here; "" for nothing.
    """

    job: str
    seed: int
    stages: Mapping[str, Picture] = field(repr=False, hash=False)
    timings: tuple[StageRun, ...] = field(repr=False)
    flagged: bool
    reproducible: bool
    request: Request | None = field(default=None, repr=False, hash=False)
    source: bytes | None = field(default=None, repr=False)
    mask: bytes | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    kept: str = field(default="", repr=False)

    @classmethod
    def published(
        cls,
        finished: Finished,
        frame: bytes | memoryview,
        request: Request | None = None,
        source: bytes | None = None,
        mask: bytes | None = None,
    ) -> Image:
        """From the frame that the coordinator stored: uint8 tensors picture_STAGE [bytes] and flagged [1], and int64 tokens [texts, 3] or
        none.

        Raises wire.Garbled when the frame is not what `finished` announced, or not what a guard publishes.
        """
        where = f"result of {finished.job}"
        if len(frame) != finished.size:
            raise wire.Garbled(f"{where}: {len(frame)} bytes, announced were {finished.size}")
        bag = bags.decode(frame)
        drawn = [stage for stage, blob in PICTURE.items() if blob.name in bag]
        known = {FLAGGED.name, TOKENS.name, *(PICTURE[stage].name for stage in drawn)}
        if FLAGGED.name not in bag or not drawn or not bag.keys() <= known:
            raise wire.Garbled(f"{where}: holds {', '.join(sorted(bag))[:200]}, not a guard's pictures")
        if not all(_fits(bag[blob.name], blob) for blob in (FLAGGED, TOKENS, *(PICTURE[stage] for stage in drawn)) if blob.name in bag):
            raise wire.Garbled(f"{where}: not flat bytes")
        stages = {stage: Picture(stage, _file(bag, stage, where)) for stage in drawn}
        last = stages[drawn[-1]]
        return cls(
            stage=last.stage,
            data=last.data,
            job=finished.job,
            seed=finished.seed,
            stages=stages,
            timings=finished.runs,
            flagged=_flag(bag),
            reproducible=finished.reproducible,
            request=request,
            source=source,
            mask=mask,
            notes=notes(bag[TOKENS.name]) if TOKENS.name in bag else (),
            kept=finished.kept,
        )

    def after(self, earlier: Image) -> Image:
        """The same, as if both jobs had been one: what was asked, what each stage did, and the pictures, if the request wants them."""
        shown = self.request is None or self.request.stages
        mine = {run.stage for run in self.timings}
        return replace(
            self,
            stages={**earlier.stages, **self.stages} if shown else self.stages,
            timings=(*(run for run in earlier.timings if run.stage not in mine), *self.timings),
            flagged=self.flagged or (shown and earlier.flagged),
            reproducible=self.reproducible and earlier.reproducible,
            request=_joined(earlier.request, self.request),
            notes=(*earlier.notes, *self.notes),
        )

    def save(self, path: str | Path, parameters: bool = True) -> Path:
        """Write it; the suffix chooses the format.  That of the guard's file: its pixels, bit by bit.  ValueError: a suffix Pillow
        cannot write.

        parameters: into a .png, two text chunks, which tell how it was made: "parameters" for readers, "ifmesh" as JSON for programs;
        they hold the prompt, but no time, host or user.  False: none.
        """
        path = Path(path)
        data = self._file(path)
        path.write_bytes(self._told(data) if parameters and path.suffix.lower() == ".png" else data)
        return path

    def sheet(self) -> Pixels:
        """A contact sheet, RGB: source, mask, and every stage's picture, side by side, with captions.  Imports Pillow."""
        from ifmesh import sheet

        return sheet.drawn(self)

    def _told(self, png: bytes) -> bytes:
        steps = {run.stage: run.steps for run in self.timings}
        readable = parameters.readable(self.request, self.seed, self.stage, self.size, steps)
        return parameters.told(png, readable, parameters.whole(self.request, self.seed, self.stage, self.reproducible))


def _joined(earlier: Request | None, later: Request | None) -> Request | None:
    """The request that draws in one go what these two drew one after the other; where texts differ there is none, and it is the later."""
    if earlier is None or later is None or (earlier.prompt, earlier.negative) != (later.prompt, later.negative):
        return later
    onwards = ("last_stage", "stages", "format", "priority", *DEADLINES, "tied", "keep")
    return replace(earlier, settings={**earlier.settings, **later.settings}, **{name: getattr(later, name) for name in onwards})


def _fits(tensor: Tensor, blob: Blob) -> bool:
    if tensor.dtype != blob.dtype or len(tensor.shape) != len(blob.shape):
        return False
    return all(isinstance(wanted, str) or n == wanted for n, wanted in zip(tensor.shape, blob.shape, strict=True))


def _flag(bag: Mapping[str, Tensor]) -> bool:
    return bool(bytes(bag[FLAGGED.name].data)[0])


def _file(bag: Mapping[str, Tensor], stage: str, where: str) -> bytes:
    data = bytes(bag[PICTURE[stage].name].data)
    try:
        formats.size(data)
    except ValueError as error:
        raise wire.Garbled(f"{where}: {stage} is {error}") from None
    return data
