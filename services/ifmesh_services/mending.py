"""What must be mended in the libraries, or kept quiet, before a checkpoint is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def mend_safety_checker() -> None:
    """Let IFSafetyChecker be loaded: diffusers 0.42 forgets the post_init() without which transformers 5 loads nothing."""
    made: Any = IFSafetyChecker
    construct = made.__init__
    if getattr(construct, "mended", False):
        return

    def mended(self: Any, config: Any) -> None:
        construct(self, config)
        if not hasattr(self, "all_tied_weights_keys"):  # what post_init leaves behind, should diffusers call it one day
            self.post_init()

    mended.mended = True  # type: ignore[attr-defined]
    made.__init__ = mended


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """No progress bars of the libraries: a worker's log is no terminal."""
    ours = [log for log in (transformers_logging, diffusers_logging) if log.is_progress_bar_enabled()]
    for log in ours:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in ours:
            log.enable_progress_bar()
