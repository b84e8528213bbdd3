"""A child process that is asked by lines of JSON, and answers by lines of JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from ifmesh import kept
from ifmesh.errors import MeshError

Message = dict[str, Any]
LOOK = 0.2
"""Seconds between two looks whether all is over."""


class Lines:
    """name: for errors.  Its stderr is ours, unless quiet."""

    def __init__(self, command: Sequence[str], name: str, quiet: bool = False) -> None:
        # a group of its own: a terminal's Ctrl-C reaches the command that measures, which then ends it in order
        errors = subprocess.DEVNULL if quiet else None
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, process_group=0)
        self._name = name
        self._selector = DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, EVENT_READ)

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def say(self, message: Message) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then its last word, or none, is heard
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def heard(self, key: str, limit: float = LOOK) -> Any | None:
        """What it says under this key; None: nothing within so many seconds.  MeshError: it says why it cannot, or it has ended."""
        assert self._process.stdout is not None
        if not self._selector.select(limit):
            return None
        line = self._process.stdout.readline()
        if not line:
            raise MeshError(f"{self._name} ended: {kept.ending(self._process.wait())}")
        try:
            told: Message = json.loads(line)
        except ValueError:
            raise MeshError(f"{self._name} says what is no JSON: {line[:200]!r}") from None
        if "error" in told:
            raise self.failure(told)
        return told[key]

    def failure(self, told: Message) -> MeshError:
        """What it says under "error"."""
        return MeshError(f"{self._name}: {told['error']}")

    def ask(self, message: Message, key: str, limit: float, over: Callable[[], bool] = lambda: False) -> Any:
        """Said, and its answer.  MeshError: there is none within so many seconds, or it is not waited for any longer."""
        self.say(message)
        return self.wait(key, limit, over)

    def wait(self, key: str, limit: float, over: Callable[[], bool] = lambda: False) -> Any:
        """What it says next under this key.  MeshError, as `ask`."""
        waited = 0.0
        while (told := self.heard(key)) is None:
            waited += LOOK
            if waited >= limit or over():
                raise MeshError(f"{self._name} has not answered after {waited:.0f} s")
        return told

    def end(self) -> None:
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
            return
        self._process.kill()
        self._process.wait()
