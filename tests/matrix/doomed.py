"""A coordinator that kills itself where no signal could be timed for: right before, or right after, it commits what it is about to tell.

    python -m tests.matrix.doomed before Book coordinator ...

KIND: a command for the journal (Book, Close ...), or a message that is to be sent (Run ...).  Everything else is `ifmesh ...`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

from ifmesh.cli import main
from ifmesh.commands import Command, Send
from ifmesh.journal import Journal


def doom(moment: str, kind: str) -> None:
    commit = Journal.commit

    def doomed(journal: Journal, commands: Iterable[Command]) -> None:
        batch = list(commands)
        fits = any(kind in (type(c).__name__, type(c.message).__name__ if isinstance(c, Send) else "") for c in batch)
        if fits and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        commit(journal, batch)
        if fits:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.commit = doomed  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    doom(*sys.argv[1:3])
    del sys.argv[1:3]
    main()
