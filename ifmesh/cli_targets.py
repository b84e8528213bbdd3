"""Where pictures are written, and what is said of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ifmesh.errors import MeshError

if TYPE_CHECKING:
    from ifmesh.cli_progress import Board
    from ifmesh.cli_wishes import Order
    from ifmesh.image import Image, Picture, Preview
    from ifmesh.protocol import StageRun

PIXELS = {"stage_one": 64, "stage_two": 256, "upscaler": 1024}
OUT = "--out"
SUFFIX = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}  # format -> that of a file without a name of its own
BLANKED = "the safety checker has blanked it"


def check_file(out: Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Before anything is drawn: could it be written?  suffixes: those that do; none: those of pictures."""
    from ifmesh.image import check_suffix

    if out is None:
        return
    if not out.parent.is_dir():
        raise click.BadParameter(f"{out}: no folder {out.parent}", param_hint=OUT)
    if out.is_dir() or not out.suffix:
        raise click.BadParameter(f"{out}: the name of a file, as in out{(suffixes or ('.png',))[0]}", param_hint=OUT)
    try:
        if not suffixes:
            check_suffix(out)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=OUT) from None
    if suffixes and out.suffix not in suffixes:
        raise click.BadParameter(f"{out}: a name that ends in {' or '.join(suffixes)}", param_hint=OUT)
    _check_writable(out, OUT)


def check_folder(folder: Path | None, option: str) -> None:
    """The same of a folder; where there is none yet, it will be made."""
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise click.BadParameter(f"{folder}: a file; the name of a folder", param_hint=option)
    if not folder.parent.is_dir():
        raise click.BadParameter(f"{folder}: no folder {folder.parent} to make it in", param_hint=option)
    _check_writable(folder, option)


def _check_writable(path: Path, option: str) -> None:
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.BadParameter(f"{path}: may not be written: take another", param_hint=option)


def save(write: Callable[[Path], object], path: Path, job: str = "") -> None:
    """A disk that fails now costs nothing but another command: of a job the mesh keeps the picture."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have, say
        kept = f"; the mesh keeps it: ifmesh show {job} -o ELSEWHERE.png" if job else ""
        raise MeshError(f"{path}: {getattr(error, 'strerror', None) or error}{kept}") from None


@dataclass(frozen=True, slots=True)
class Output:
    """How pictures are written and told.

    stages_dir: of every stage's picture; None: they are not written.  parameters: with text chunks.  as_json: JSON instead of names.
    """

    stages_dir: Path | None = None
    parameters: bool = True
    as_json: bool = False

    def early(self, preview: Preview) -> Path | None:
        """Write an early picture; where it is."""
        if self.stages_dir is None:
            return None
        path = self._stage(preview.job, preview)
        save(preview.save, path, preview.job)
        return path

    def stages(self, image: Image) -> None:
        """Write every stage's picture."""
        if self.stages_dir is not None:
            for picture in image.stages.values():
                save(partial(_settled, picture), self._stage(image.job, picture), image.job)

    def finished(self, image: Image, order: Order, seconds: float, board: Board) -> None:
        """Write it, and say so.  MeshError: it cannot be written."""
        path = order.path(image.job)
        save(lambda where: image.save(where, parameters=self.parameters), path, image.job)
        self.stages(image)
        if self.as_json:
            board.document(_numbered(order, described(image, path, seconds)))
        else:
            board.tell(str(path))
        remark(image, path, board)

    def failed(self, order: Order, job: str, error: MeshError, board: Board) -> None:
        where = f"line {order.line}: " if order.line else f"candidate {order.candidate}: " if order.candidate else ""
        board.say(f"ifmesh: {where}{error}", "red")
        if self.as_json:
            board.document(_numbered(order, {"job": job or None, "seed": order.seed, "error": str(error)}))

    def accepted(self, order: Order, job: str, board: Board) -> None:
        if self.as_json:
            board.document(_numbered(order, {"job": job, "seed": order.seed}))
        else:
            board.tell(job)

    def _stage(self, job: str, picture: Picture) -> Path:
        assert self.stages_dir is not None
        return self.stages_dir / f"{job}-{PIXELS[picture.stage]}{SUFFIX[picture.format]}"


def _settled(picture: Picture, path: Path) -> None:
    """Write it in the place of its preview, which may have been of another format."""
    picture.save(path)
    for suffix in set(SUFFIX.values()) - {path.suffix}:
        path.with_suffix(suffix).unlink(missing_ok=True)


def remark(image: Image, path: Path, board: Board) -> None:
    """What somebody who looks at the picture should know."""
    for note in (*((BLANKED,) if image.flagged else ()), *image.notes):
        board.say(f"{path}: {note}", "yellow")


def described(image: Image, path: Path | None, seconds: float) -> dict[str, object]:
    """The JSON line of one picture.  size: [width, height]; seconds: since they were handed in; stages: what each of them did."""
    return {
        "job": image.job,
        "seed": image.seed,
        "path": str(path) if path else None,
        "size": list(image.size),
        "flagged": image.flagged,
        "reproducible": image.reproducible,
        "seconds": round(seconds, 3),
        "notes": list(image.notes),
        "stages": [ran(run) for run in image.timings],
    }


def ran(run: StageRun) -> dict[str, object]:
    """What one stage did, for JSON: seconds to the microsecond."""
    return asdict(run) | {"queued_s": round(run.queued_s, 6), "run_s": round(run.run_s, 6)}


def _numbered(order: Order, told: dict[str, object]) -> dict[str, object]:
    return {name: number for name, number in (("line", order.line), ("candidate", order.candidate)) if number} | told
