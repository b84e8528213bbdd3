"""The parent of a worker process: it sees how the child ends, in milliseconds, and says so until it is heard.

Until then it says that the child is there: of one that is stopped nobody else might know.  It stays small (no torch, no stage), so that
nothing a stage does can end it.  On the word of the coordinator it kills a child that is stalled.  When it is killed itself, the child
ends too (`tied`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Literal

import zmq

from ifmesh import credentials, exits, log, sockets, tied
from ifmesh.bell import Bell
from ifmesh.commands import parent_of
from ifmesh.config import Config
from ifmesh.errors import Misconfigured
from ifmesh.identity import Identity
from ifmesh.log import Garbage, logger
from ifmesh.places import socket_file
from ifmesh.protocol import Exited, Kill, Lives, Noted, Refused
from ifmesh.testament import Testament
from ifmesh.uplink import Uplink
from ifmesh.wire import TO_COORDINATOR, TO_PARENT, Garbled

Cause = Literal["ended", "killed", "crashed", "stalled"]

OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
CALM = frozenset({exits.OK, exits.CONFIGURATION, exits.AT_ONCE})  # as asked, or unable to work as it is configured
SAYS = 10.0
"""Seconds between two Lives."""
AGAIN = 0.5
"""Seconds between two Exited."""
PATIENCE = {"ended": 1.0, "killed": 10.0, "crashed": 10.0, "stalled": 10.0}
"""Seconds in which somebody has to note an Exited.  Who ended as asked has mostly said Bye."""


def run(stage: str, name: str, config: Config, tied_: bool, argv: Sequence[str] = ()) -> int:
    """Start the worker and watch it; its exit code, 128 + number for a signal.  argv: flags that are passed on to it."""
    log.start()
    if tied_:
        tied.to_stdin()
    try:
        return Parent(stage, name, config, credentials.of_worker(config, stage), argv).watch()
    except Misconfigured as error:
        logger.error("%s", error)
        return exits.CONFIGURATION


def classify(code: int, asked: bool, stalled: bool) -> tuple[Cause, str]:
    """How it ended, and in words.  code: of Popen; asked: it was told to end; stalled: we killed it for the coordinator."""
    number = max(0, -code)
    known = number in {s.value for s in signal.Signals}
    words = signal.Signals(number).name if known else f"signal {number}" if number else f"exit code {code}"
    if stalled and code == -signal.SIGKILL:
        return "stalled", "killed: it had not advanced for too long"
    if code in CALM or asked:
        return "ended", words
    return ("killed" if number in OUTSIDE else "crashed"), words


class Parent:
    def __init__(self, stage: str, name: str, config: Config, me: Identity | None, argv: Sequence[str]) -> None:
        self.life = credentials.called(me, f"{name}.{token_hex(6)}")
        safe = ("-P",) if sys.flags.safe_path else ()  # as this process: not the modules that lie in the current folder
        self._command = [sys.executable, *safe, "-m", "ifmesh", "worker", stage, "--name", name, "--life", self.life, "--tied", *argv]
        self._name, self._config, self._me = name, config, me
        self._garbage = Garbage()
        self._testament = Testament.empty()
        self._command += ["--testament", str(self._testament.file)]
        self._asked = self._stalled = self._noted = self._impatient = False

    def watch(self) -> int:
        ctx = sockets.context()
        self._bell = Bell()
        self._bell.answer((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        # A process group of its own: a terminal's Ctrl-C reaches the parent, which passes it on, once.
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, process_group=0, pass_fds=[self._testament.file])
        self._uplink = Uplink(ctx, self._config, self._me, lambda _: parent_of(self.life))
        self._uplink.dial()
        watched = os.pidfd_open(self._child.pid)
        lives, due = TO_COORDINATOR.encode(Lives(self.life)), time.monotonic() + SAYS
        while self._child.poll() is None:
            self._turn(1.0, watched)
            if time.monotonic() >= due:
                due = time.monotonic() + SAYS
                self._uplink.send(lives)
        os.close(watched)
        code = self._child.returncode
        cause, detail = classify(code, self._asked, self._stalled)
        if cause != "ended":
            logger.warning("%s %s: %s (%s)", self._name, cause, detail, self.life)
        with suppress(OSError):
            socket_file(self._config.mesh.state, self.life).unlink()
        exited = Exited(self.life, cause, detail, self._name, self._testament.read())
        self._report(TO_COORDINATOR.encode(exited), PATIENCE[cause])
        self._uplink.hang_up()
        ctx.term()
        self._bell.close()
        if cause == "stalled":
            return exits.STALLED
        return 128 - code if code < 0 else code

    def _report(self, exited: bytes, patience: float) -> None:
        """Say it until it is noted.  Being told to end once more ends this too."""
        end = time.monotonic() + patience
        while not self._noted and not self._impatient and time.monotonic() < end:
            self._uplink.send(exited)
            again = time.monotonic() + AGAIN
            while not self._noted and not self._impatient and (left := again - time.monotonic()) > 0:
                self._turn(left)

    def _turn(self, most: float, watched: int = -1) -> None:
        """Wait for something, at most so many seconds, and attend to it."""
        poller = zmq.Poller()
        poller.register(self._bell.fileno(), zmq.POLLIN)
        if watched >= 0:
            poller.register(watched, zmq.POLLIN)
        self._uplink.register(poller)
        pause = min(most, max(0.0, self._uplink.wakeup() - time.monotonic()))
        poller.poll(int(pause * 1000) + 1)
        self._uplink.tend()
        for number in self._bell.hear():
            self._signalled(number)
        for parts in self._uplink.received():
            self._heard(parts)

    def _signalled(self, number: signal.Signals) -> None:
        if self._child.poll() is None:
            self._asked = True
            self._child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
        else:
            self._impatient = True

    def _heard(self, parts: list[bytes]) -> None:
        try:
            message = TO_PARENT.decode(b"" if len(parts) != 1 else parts[0])
        except Garbled as error:
            self._garbage.dropped("the coordinator", error)
            return
        match message:
            case Kill(life) if life == self.life and self._child.poll() is None:
                logger.warning("%s is stalled: killing it", self._name)
                self._stalled = True
                self._child.kill()
            case Noted(life) if life == self.life:
                self._noted = True
            case Refused(detail=detail):
                logger.error("the coordinator refuses: %s", detail)
            case _:
                pass
