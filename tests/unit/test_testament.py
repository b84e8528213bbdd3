"""What a worker leaves to its parent, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys

from ifmesh import testament

DIES = """
import os, signal, sys
from ifmesh.testament import Testament
left = Testament(int(sys.argv[1]))
left.leave(("a longer name than the next", "b"))
left.leave(("c",))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_last_word_counts_however_it_ended() -> None:
    left = testament.Testament.empty()
    done = subprocess.run([sys.executable, "-c", DIES, str(left.file)], pass_fds=[left.file], check=False)
    assert done.returncode == -9
    assert left.read() == ("c",)
    os.close(left.file)


def test_who_never_ran_anything_leaves_nothing() -> None:
    left = testament.Testament.empty()
    assert left.read() == ()
    os.pwrite(left.file, b"no JSON\n", 0)
    assert left.read() is None
    os.close(left.file)


def test_without_a_parent_nothing_is_written() -> None:
    testament.Testament().leave(("a",))
