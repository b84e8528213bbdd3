"""A real disk of a few megabytes for one test, in a mount namespace of its own: nobody else sees it, and nothing of it stays."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ifmesh.config import Config
from tests.mesh.kit import Mesh

SIZE = 48 << 20
COMMAND = "mount -t tmpfs -o size={size} none {folder} && echo ready && exec sleep infinity"


class SmallDisk:
    """inside: its folder, for processes started behind `enter`; outside: the same, for this one."""

    def __init__(self, folder: Path, holder: subprocess.Popen[str]) -> None:
        self.inside, self.outside = folder, Path(f"/proc/{holder.pid}/root{folder}")
        self.enter = ("nsenter", "--mount", "--target", str(holder.pid), "--")

    def fill(self, leave: int = 0) -> None:
        """But for so many bytes there is no room left."""
        with open(self.outside / "ballast", "ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
            free = os.statvfs(self.outside)
            assert free.f_bavail == 0, "full, not failing"
            file.truncate(file.tell() - leave)

    def free(self) -> None:
        (self.outside / "ballast").unlink()

    def read_only(self, folder: str) -> None:
        """This folder of it cannot be written, until `writable`."""
        self._run("mount", "--bind", str(self.inside / folder), str(self.inside / folder))
        self._run("mount", "-o", "remount,bind,ro", str(self.inside / folder))

    def writable(self, folder: str) -> None:
        self._run("umount", str(self.inside / folder))

    def _run(self, *command: str) -> None:
        subprocess.run([*self.enter, *command], check=True, timeout=30)


def missing() -> str:
    """Why there can be no such disk here; "": there can."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"):
        return "needs root, unshare and nsenter, for a small disk of its own"
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, timeout=30, check=False)
    return "" if tried.returncode == 0 else "may not mount"


@contextmanager
def small_disk(folder: Path, size: int = SIZE) -> Iterator[SmallDisk]:
    folder.mkdir(parents=True, exist_ok=True)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", COMMAND.format(size=size, folder=folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield SmallDisk(folder, holder)
    finally:
        holder.kill()
        holder.communicate()


class MeshOnDisk(Mesh):
    """A mesh whose state folder is that disk."""

    def __init__(self, folder: Path, disk: SmallDisk, settings: Mapping[str, str | int | float] | None = None) -> None:
        super().__init__(folder, {"mesh.state": str(disk.inside), **(settings or {})})
        self.state, self.prefix = disk.outside, disk.enter

    @property
    def config(self) -> Config:
        inside = super().config
        return replace(inside, mesh=replace(inside.mesh, state=self.state))
