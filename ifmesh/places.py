"""Where the processes of one mesh find each other in its state folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from hashlib import blake2b
from pathlib import Path

from ifmesh import sockets


def socket_file(state: Path, name: str) -> Path:
    """The ipc socket of this life, or of the coordinator.  Hashed, because such paths are limited to about 100 bytes."""
    return sockets.run_dir(state) / blake2b(name.encode(), digest_size=8).hexdigest()


def sweep(state: Path) -> None:
    """Remove the ipc sockets that processes killed together with their parents have left."""
    for path in sockets.run_dir(state).iterdir():
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def announce(state: Path, url: str) -> None:
    """The coordinator is bound: say where, at once or not at all.  The port is remembered beyond its end."""
    _write(state / "endpoint.json", json.dumps({"control": url, "pid": os.getpid()}))
    _write(state / "port", url.rpartition(":")[2])


def withdraw(state: Path) -> None:
    """The coordinator has ended as it should: nobody is to dial it any more."""
    (state / "endpoint.json").unlink(missing_ok=True)


def remembered(state: Path, listen: str) -> str | None:
    """For a listen on any port: the address that was bound the last time, so that those who dial it find it again."""
    try:
        port = int((state / "port").read_text())
    except (OSError, ValueError):
        return None
    return f"{listen.removesuffix(':0')}:{port}" if listen.endswith(":0") and 0 < port < 65536 else None


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)
