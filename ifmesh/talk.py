"""One story, two ways of waiting: a Talk says what it waits for; whoever leads it, a thread or a task, does the waiting.

A Talk is a generator.  It yields a Pause or a Work, is resumed when that is over, and returns its answer.  `lead` is the thread's way;
the task's way is in `ifmesh.aclient`.  An interruption (Ctrl-C, a cancelled task) is thrown into the Talk, at the place where it waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Signal:
    """Something that changes, and those who want to know.  `lock` guards whatever changes with it; `changes` only grows."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # the garbage collector may end a listener while its thread holds the lock
        self.changes = 0
        self._listeners: set[Callable[[], None]] = set()

    def listen(self, seen: int, callback: Callable[[], None]) -> None:
        """Call it once, from whatever thread, as soon as there are more changes than `seen`: at once, if there are."""
        with self.lock:
            if self.changes == seen:
                self._listeners.add(callback)
                return
        callback()

    def unlisten(self, callback: Callable[[], None]) -> None:
        with self.lock:
            self._listeners.discard(callback)

    def changed(self) -> None:
        with self.lock:
            self.changes += 1
            listeners, self._listeners = self._listeners, set()
        for callback in listeners:  # not under the lock: what they do is theirs
            callback()


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait until `signal` has changed since `seen`, at most so many seconds (None: for ever).  No signal: only the time."""

    signal: Signal | None
    seen: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Work:
    """Something slow that is no waiting: reading files, fetching a URL.  A task lets a thread do it.  Answered with what it returns."""

    call: Callable[[], object]


Talk = Generator[Pause | Work, Any, T]


def lead(talk: Talk[T]) -> T:
    """To its end, in this thread."""
    rung = threading.Event()
    step: Callable[[], Pause | Work] = partial(next, talk)
    try:
        while True:
            try:
                asked = step()
            except StopIteration as end:
                return cast(T, end.value)
            try:
                step = partial(talk.send, asked.call() if isinstance(asked, Work) else _waited(asked, rung))
            except BaseException as error:
                step = partial(talk.throw, error)
    finally:
        talk.close()  # interrupted between two steps


def _waited(pause: Pause, rung: threading.Event) -> object:
    rung.clear()
    if pause.signal is None:
        return rung.wait(pause.seconds)
    ring = rung.set
    pause.signal.listen(pause.seen, ring)
    try:
        return rung.wait(pause.seconds)
    finally:
        pause.signal.unlisten(ring)
