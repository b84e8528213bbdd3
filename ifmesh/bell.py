"""Waking a poll loop: from other threads, and from signals."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterable


class Bell:
    """A socket pair whose one end is polled.  Any thread may ring; rings run together."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def fileno(self) -> int:
        return self._near.fileno()

    def ring(self) -> None:
        try:
            self._far.send(b"\0")
        except OSError:  # full: it rings already; closed: nobody listens any more
            return

    def hear(self) -> list[signal.Signals]:
        """Silence it.  The signals that came since, in order."""
        heard = b""
        try:
            while part := self._near.recv(4096):
                heard += part
        except BlockingIOError:
            pass
        return [signal.Signals(number) for number in heard if number]

    def answer(self, signals: Iterable[signal.Signals]) -> None:
        """From now on these signals do nothing but ring: at once, even while native code runs.  Main thread only."""
        for number in signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        self._near.close()
        self._far.close()
