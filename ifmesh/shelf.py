"""Results and uploads as files, or in memory: whole or not at all.  Touches nothing else, so any thread may call it."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from ifmesh import bags

SUFFIX = ".safetensors"

_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Shelf:
    """synced: on disk before a call returns; else at the next `sync`."""

    def __init__(self, folder: Path, synced: bool = True) -> None:
        self.results, self.uploads = folder / "results", folder / "uploads"
        self._synced = synced
        self._unsynced: set[Path] = set()
        self._lock = Lock()  # over what it knows

    def make(self) -> None:
        """Its folders are there, without what a death has left half written.  OSError."""
        for folder in (self.results, self.uploads):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in folder.glob(".*.part"):
                left.unlink(missing_ok=True)

    # ---- results

    def store(self, job: str, frame: bytes | memoryview) -> tuple[str, int]:
        """Put the published frame on disk; its xxh3-128 (hex) and size.  Again is harmless: the same job, the same bytes.

        ValueError: a job id that is none.  OSError: the disk.
        """
        if not _JOB.fullmatch(job):
            raise ValueError("a job id has 1 to 64 letters, digits, - or _")
        self._put(self.result(job), frame)
        return bags.digest(frame), memoryview(frame).nbytes

    def load(self, job: str) -> bytes | memoryview | None:
        """The published frame; None: there is none."""
        return self._read(self.result(job)) if _JOB.fullmatch(job) else None

    def discard(self, job: str) -> None:
        """Remove its result, if it is there."""
        if _JOB.fullmatch(job):
            self._remove(self.result(job))

    def stored(self) -> Iterator[tuple[str, int]]:
        """Job and bytes of each result that lies here, whoever it belongs to."""
        return ((job, size) for job, size in self._files(self.results) if _JOB.fullmatch(job))

    def result(self, job: str) -> Path:
        return self.results / f"{job}{SUFFIX}"

    # ---- uploads

    def store_upload(self, digest: str, frame: bytes | memoryview) -> None:
        """Put what a client brought on disk, under its SHA-256 (hex), which the caller has checked.

        ValueError: a digest that is none.  OSError: the disk.
        """
        if not _SHA256.fullmatch(digest):
            raise ValueError("an upload's digest has 64 hex digits")
        self._put(self._upload(digest), frame)

    def load_upload(self, digest: str) -> bytes | memoryview | None:
        """The uploaded frame; None: there is none."""
        return self._read(self._upload(digest)) if _SHA256.fullmatch(digest) else None

    def discard_upload(self, digest: str) -> None:
        """Remove it, if it is there."""
        if _SHA256.fullmatch(digest):
            self._remove(self._upload(digest))

    def stored_uploads(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of each upload that lies here."""
        return ((digest, size) for digest, size in self._files(self.uploads) if _SHA256.fullmatch(digest))

    def _upload(self, digest: str) -> Path:
        return self.uploads / f"{digest}{SUFFIX}"

    # ---- the disk

    def sync(self) -> None:
        """What was put here is on disk when this returns.  OSError: it may not be."""
        with self._lock:
            paths, self._unsynced = self._unsynced, set()
        try:
            for path in sorted(paths):
                with suppress(FileNotFoundError):  # removed meanwhile
                    fsync(path)
            for folder in {path.parent for path in paths}:
                fsync(folder)
        except OSError:
            with self._lock:
                self._unsynced |= paths
            raise

    def _put(self, path: Path, frame: bytes | memoryview) -> None:
        part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(frame)
                file.flush()
                if self._synced:
                    os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):  # on a disk that became read-only it stays, for the next start
                part.unlink(missing_ok=True)
            raise
        if self._synced:
            fsync(path.parent)  # else the name may be lost although the bytes are there
            return
        with self._lock:
            self._unsynced.add(path)

    def _read(self, path: Path) -> bytes | memoryview | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _files(self, folder: Path) -> Iterator[tuple[str, int]]:
        """Name and bytes of each."""
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.endswith(SUFFIX):
                    with suppress(FileNotFoundError):
                        yield entry.name.removesuffix(SUFFIX), entry.stat(follow_symlinks=False).st_size


class Volatile(Shelf):
    """The same in memory: nothing is copied, and all is gone with the process."""

    def __init__(self) -> None:
        super().__init__(Path())
        self._kept: dict[Path, bytes | memoryview] = {}

    def make(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def _put(self, path: Path, frame: bytes | memoryview) -> None:
        with self._lock:
            self._kept[path] = frame

    def _read(self, path: Path) -> bytes | memoryview | None:
        with self._lock:
            return self._kept.get(path)

    def _remove(self, path: Path) -> None:
        with self._lock:
            self._kept.pop(path, None)

    def _files(self, folder: Path) -> Iterator[tuple[str, int]]:
        with self._lock:
            kept = [(path.stem, memoryview(frame).nbytes) for path, frame in self._kept.items() if path.parent == folder]
        return iter(sorted(kept))


def fsync(path: Path) -> None:
    """This file or folder is on disk when this returns.  OSError."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
