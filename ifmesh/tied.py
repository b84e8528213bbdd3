"""Ending with one's parent, however it ended (`kill -9` included).  Nothing of a mesh outlives what started it."""

from __future__ import annotations

import ctypes
import os
import signal
from threading import Thread

ORPHANED = 74
PR_SET_PDEATHSIG = 1


def to_stdin(gently: bool = False) -> None:
    """End this process when its standard input reaches its end: the other end of that pipe is the parent's.

    gently: by SIGTERM, so that it may finish.

    os.read, not sys.stdin.read: the latter takes a lock that makes the interpreter abort at exit.
    """

    def wait() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        if gently:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os._exit(ORPHANED)

    Thread(target=wait, name="tied", daemon=True).start()


def to_parent() -> None:
    """Have the kernel SIGKILL this process when its parent dies: holds even while native code keeps every thread waiting.

    Only for a process that its parent's main thread has started: the kernel means the thread.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    except (OSError, AttributeError):  # not Linux: the pipe has to do
        return
