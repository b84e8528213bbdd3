"""`python -m ifmesh.bench.apart ARGUMENTS`: this ifmesh, as if on a host of its own.

In a mount namespace of its own a process tells another host id (`sockets.host_id`): the others reach it by TCP, and not by files, as they
would from elsewhere.  Needs Linux, and root or user namespaces.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from ifmesh import exits
from ifmesh.supervisor import python

NEWNS, NEWUSER = 0x20000, 0x10000000  # sched.h


def lacks() -> str:
    """Why this machine cannot do it; "": it can.  Tried by a process."""
    tried = subprocess.run(program("--version"), capture_output=True, text=True)
    return "" if tried.returncode == exits.OK else tried.stderr.strip()


def leave() -> None:
    """Out of the namespace of whoever started this process, which has one thread.  OSError: it may not."""
    uid, gid = os.getuid(), os.getgid()
    _unshare(NEWNS if uid == 0 else NEWNS | NEWUSER)
    if uid != 0:  # one's own user, and nobody else, in the new one
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def program(*words: str) -> list[str]:
    """For a Supervisor: what it starts is apart from all others."""
    plain = python(*words)
    at = plain.index("-m")
    return [*plain[: at + 1], "ifmesh.bench.apart", *words]


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    try:
        leave()
    except OSError as failure:
        print(f"no mount namespace of one's own here: {failure.strerror}", file=sys.stderr)
        sys.exit(exits.CONFIGURATION)
    command = python(*sys.argv[1:])
    os.execv(command[0], command)
