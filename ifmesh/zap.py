"""Who may come in: libzmq asks a ZAP handler about every newcomer at a bound socket (https://rfc.zeromq.org/spec/27/).

One thread for each context.  While there is none nobody new comes in, and who is in stays (see `sockets.DOMAIN`); so its death costs
nothing but a moment: `tend` starts another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import zmq
from zmq.utils import z85

from ifmesh.log import Garbage, logger
from ifmesh.sockets import DOMAIN, Context

ADDRESS = "inproc://zeromq.zap.01"
VERSION = b"1.0"
OFTEN = 0.5
"""Seconds between two looks at the thread."""


class Zap:
    """allowed: may who has this public key (Z85) come in?  Called in a thread of ours.  The thread ends with the context."""

    def __init__(self, ctx: Context, allowed: Callable[[str], bool]) -> None:
        self._ctx, self._allowed = ctx, allowed
        self._strangers = Garbage()
        self._thread: threading.Thread | None = None
        self._looked = float("-inf")

    def start(self) -> None:
        """Before the first socket is bound.  ZMQError: there is one already."""
        socket: zmq.Socket[bytes] = self._ctx.socket(zmq.REP)
        try:
            socket.bind(ADDRESS)
            self._thread = threading.Thread(target=self._serve, args=(socket,), name="ifmesh-zap", daemon=True)
            self._thread.start()
        except BaseException:
            socket.close(0)
            raise

    def tend(self, now: float) -> None:
        """If it has died, start it again."""
        if now < self._looked + OFTEN:
            return
        self._looked = now
        if self._thread is not None and not self._thread.is_alive():
            logger.error("the thread that lets others in has died: starting it again; until now nobody new came in")
            try:
                self.start()
            except (zmq.ZMQError, RuntimeError) as error:  # no descriptor, no thread left
                logger.error("it cannot be started: %s", error)

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        try:
            while True:
                socket.send_multipart(self.answer(socket.recv_multipart()))
        except zmq.ContextTerminated:
            pass
        finally:
            socket.close(0)

    def answer(self, asked: list[bytes]) -> list[bytes]:
        """The reply to any request whatever.  User-Id is the key that the newcomer has proved to hold."""
        request = asked[1] if len(asked) > 1 else b""
        try:
            public, why = self._judged(asked)
        except Exception as error:
            logger.exception("cannot tell who may come in")
            public, why = "", type(error).__name__
        if not why:
            return [VERSION, request, b"200", b"", public.encode(), b""]
        self._strangers.dropped(f"{_text(asked[3]) if len(asked) > 3 else 'somebody'} (a newcomer)", why)
        return [VERSION, request, b"400", b"", b"", b""]

    def _judged(self, asked: list[bytes]) -> tuple[str, str]:
        """Its key, and why it may not come in; "": it may."""
        if len(asked) != 7 or asked[0] != VERSION or asked[2] != DOMAIN or asked[5] != b"CURVE" or len(asked[6]) != 32:
            return "", "no proof of a key"
        public = z85.encode(asked[6]).decode()
        return public, "" if self._allowed(public) else f"a key that is not authorised: {public}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")[:100]
