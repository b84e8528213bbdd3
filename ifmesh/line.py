"""A connecting socket that comes back.

libzmq gives a link up for ever when its handshake is refused, or when it hears one malformed frame, and says so nowhere but in its
monitor (measured: 20 of 20 were still silent when their key had long been let in).  So the monitor is read, and the socket made anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Mapping
from struct import Struct

import zmq

from ifmesh import sockets
from ifmesh.sockets import Socket, Witness

_POLLIN = int(zmq.POLLIN)
_EVENT = Struct("=hi")  # the first part that a monitor sends: which event, and a value; by hand, for `zmq.utils.monitor` imports asyncio
IN_THE_CLEAR = "one side speaks in the clear (mesh.curve)"
_TROUBLE: Mapping[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "this key is not authorised there",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: f"no handshake: {IN_THE_CLEAR}",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: f"no handshake: it is not the one whose key was expected there, or {IN_THE_CLEAR}",
}


class Line:
    """make: a new socket; what it is given has to see it before it connects.  floor, ceiling: seconds between which the next try lies,
    at random: soon at first, then ever later.

    socket: to be sent on and read; it may be another after `tend`.  trouble: why the last handshake failed, in words; "": it did not.
    """

    def __init__(self, make: Callable[[Witness], Socket], floor: float, ceiling: float) -> None:
        self._make, self._floor, self._ceiling = make, floor, ceiling
        self._spread = 2 * floor
        self._monitor: Socket | None = None
        self._due: float | None = None
        self.socket: Socket | None = None
        self.trouble = ""

    def dial(self) -> None:
        """Connect, anew if need be.  ZMQError, LookupError: no such address, no descriptor left; then there is no socket."""
        self.close(0)
        try:
            self.socket = self._make(self._watch)
        except BaseException:
            if self._monitor is not None:
                self._monitor.close(0)
            self._monitor = None
            raise

    def register(self, poller: zmq.Poller, flags: int) -> None:
        """To be polled; then `tend`."""
        if self.socket is not None and self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
            if flags:
                poller.register(self.socket, flags)

    def wakeup(self) -> float | None:
        """When `tend` has something to do; None: when the monitor says so."""
        return self._due

    def tend(self, now: float, ready: Container[object] | None = None) -> bool:
        """Hear how the link fares, and connect anew if libzmq will not.  True: that was done.

        ready: the sockets that a poll has found to be, this one's among them; None: it is asked.
        """
        if ready is not None and self._due is None and self._monitor not in ready:
            return False
        while self._monitor is not None and _speaks(self._monitor):
            event, _ = _EVENT.unpack(self._monitor.recv_multipart(zmq.DONTWAIT)[0])
            self._told(now, event)
        if self._due is None or now < self._due:
            return False
        self._spread = min(self._ceiling, 2 * self._spread)
        self._due = now + self._ceiling  # if it cannot be made now
        self.dial()
        return True

    def close(self, linger: int | None = None) -> None:
        """linger: milliseconds for what is under way; None: as the socket has it."""
        if self.socket is not None:
            if self._monitor is not None:
                sockets.unmonitored(self.socket, self._monitor)
            self.socket.close(linger)
        self.socket = self._monitor = self._due = None

    def _watch(self, made: Socket) -> None:
        self._monitor = sockets.monitored(made)

    def _told(self, now: float, event: int) -> None:
        """1. It is up.  2. libzmq tries again by itself.  3. It is down; if the second does not follow, for ever."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.trouble, self._due, self._spread = "", None, 2 * self._floor
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self._due = None
        else:
            self.trouble = _TROUBLE.get(event, self.trouble)
            if self._due is None:
                self._due = now + random.uniform(self._floor, self._spread)  # all who lost the same peer come back one by one


def _speaks(monitor: Socket) -> bool:
    """Has it something to say?  `poll` would make a poller each time."""
    return bool(int(monitor.getsockopt(zmq.EVENTS)) & _POLLIN)
