"""The first process of a test host: it gives the host what is its own, and while it lives the host does.

Run by `unshare` as process 1 of new network, mount, UTS, IPC and process namespaces: `python host.py NAME KEEP...`.  It says "up" when all
is there.  When its standard input ends it ends, and the kernel kills whatever runs on the host and removes its network and files.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from uuid import uuid4

OWN = ("/tmp", "/run", "/var/tmp", "/dev/shm", "/mnt")  # empty, in memory, and seen by this host alone
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def own(name: str, keep: list[str]) -> None:
    """keep: folders that the host has to see, to read only: where the programs are."""
    socket.sethostname(name)
    held = {folder: os.open(folder, os.O_PATH) for folder in keep if any(Path(folder).is_relative_to(o) for o in OWN)}
    for folder in OWN:
        if Path(folder).is_dir():
            mount("host", folder, "tmpfs", options="mode=1777")
    for folder, fd in held.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", folder, flags=MS_BIND)
        mount("none", folder, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
        os.close(fd)
    mount("proc", "/proc", "proc")
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        if Path(path).exists():
            file = Path("/run", Path(path).name)
            file.write_text(f"{uuid4()}\n" if "boot" in path else f"{uuid4().hex}\n")
            mount(str(file), path, flags=MS_BIND)
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")  # it would chatter
    mount("none", "/", flags=MS_REMOUNT | MS_BIND | MS_RDONLY)  # no shared file says anything to another host


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans come here, and leave no zombies
    own(sys.argv[1], sys.argv[2:])
    os.write(1, b"up\n")
    while os.read(0, 4096):
        pass
