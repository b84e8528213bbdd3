"""The hub client's progress bars, which have no place in a log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """No progress bars of the hub's client: a worker's log is no terminal."""
    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
