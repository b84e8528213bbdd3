"""A switch in user space, in a process of its own: a TAP device in each host, and between every two of them a wire that may be bad.

It stands for bridge, `tc netem` (which many kernels lack) and packet filter in one.  Run as `python -m tests.hosts.switch SEED`; orders
are lines of JSON on its standard input, each answered by a line when it holds.  It ends with its standard input, and its devices with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from tests.hosts.wire import PLAIN, Link, Wire

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETCARRIER = 0x400454CA, 0x400454E2
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
TURN = 32  # frames of one host before the next has its turn
LARGEST = 65536
GROUP = 1  # the bit in a MAC's first byte: to more than one


@dataclass(slots=True)
class Port:
    """A host's socket in the switch.  fd: of the TAP device; plugged: the cable is in."""

    name: str
    fd: int
    mac: bytes
    plugged: bool = True


@dataclass(slots=True)
class Switch:
    seed: str
    ports: dict[str, Port] = field(default_factory=dict)
    wires: dict[tuple[str, str], Wire] = field(default_factory=dict)  # by (from, to)
    _late: list[tuple[float, int, str, bytes]] = field(default_factory=list)  # a heap: when, a number, to whom, what
    _numbers: int = 0

    def serve(self) -> None:
        """Until the end of standard input."""
        orders = b""
        while True:
            pause = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            readable, _, _ = select.select([0, *(port.fd for port in self.ports.values())], [], [], pause)
            self._deliver(time.monotonic())
            for port in [p for p in self.ports.values() if p.fd in readable]:
                self._take(port)
            if 0 in readable:
                said = os.read(0, LARGEST)
                if not said:
                    return
                *lines, orders = (orders + said).split(b"\n")
                for line in lines:
                    os.write(1, json.dumps(self._obey(json.loads(line))).encode() + b"\n")

    def _obey(self, order: dict[str, Any]) -> object:
        """One branch for each kind of order; the answer."""
        match order.pop("order"):
            case "plug":
                self._plug(**order)
            case "unplug":
                if (gone := self.ports.pop(order["name"], None)) is not None:
                    os.close(gone.fd)
            case "link":
                wire = self.wires[order.pop("source"), order.pop("target")]
                wire.link = Link(**order) if order else PLAIN
            case "cable":
                port = self.ports[order["name"]]
                port.plugged = order["plugged"]
                fcntl.ioctl(port.fd, TUNSETCARRIER, struct.pack("i", port.plugged))
            case "count":
                return {f"{a}>{b}": (wire.carried, wire.dropped) for (a, b), wire in self.wires.items()}
        return None

    def _plug(self, name: str, pid: int, address: str, mac: str, mtu: int) -> None:
        """A device in the network of that process, up and with an address.  pid: of any process of the host."""
        outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        inside = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        enter(inside)
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI))
            up = f"link set lo up\nlink set eth0 address {mac} mtu {mtu} up\naddress add {address} dev eth0\n"
            subprocess.run(["ip", "-batch", "-"], input=up.encode(), stdout=subprocess.DEVNULL, check=True)
        finally:
            enter(outside)
            os.close(inside)
            os.close(outside)
        for other in self.ports:
            for pair in ((name, other), (other, name)):
                self.wires[pair] = Wire(f"{self.seed}/{'>'.join(pair)}")
        self.ports[name] = Port(name, fd, bytes.fromhex(mac.replace(":", "")))

    def _take(self, port: Port) -> None:
        """Some of what this host has sent."""
        for _ in range(TURN):
            try:
                frame = os.read(port.fd, LARGEST)
            except BlockingIOError:
                return
            except OSError:  # its host is gone
                os.close(self.ports.pop(port.name).fd)
                return
            if not port.plugged:
                continue
            now = time.monotonic()
            for other in self.ports.values():
                if other is not port and (other.mac == frame[:6] or frame[0] & GROUP):
                    for when in self.wires[port.name, other.name].fate(now, len(frame)):
                        if when <= now:
                            self._put(other.name, frame)
                        else:
                            self._numbers += 1
                            heapq.heappush(self._late, (when, self._numbers, other.name, frame))

    def _deliver(self, now: float) -> None:
        while self._late and self._late[0][0] <= now:
            _, _, name, frame = heapq.heappop(self._late)
            self._put(name, frame)

    def _put(self, name: str, frame: bytes) -> None:
        port = self.ports.get(name)
        if port is not None and port.plugged:
            try:
                os.write(port.fd, frame)
            except OSError:  # its queue is full, or its host is gone: what a real one does, too
                return


def enter(network: int) -> None:
    """The calling thread is in this network namespace from now on.  network: an open /proc/PID/ns/net.  OSError: not root."""
    if _libc.setns(network, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns: entering a network namespace needs root")


_libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    Switch(sys.argv[1]).serve()
