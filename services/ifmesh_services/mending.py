"""What must be mended in the libraries, or kept quiet, before a checkpoint is read."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

from diffusers.models.unets.unet_2d_blocks import ResnetUpsampleBlock2D, SimpleCrossAttnUpBlock2D
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from . import bars


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


def mend_upsampling() -> None:
    """Let IF's UNets draw sides that they cannot halve evenly, such as Stage II's 392, of a source of 500 x 768.

    Their blocks are told which size to go back to, but diffusers 0.42 does not heed it in these two, and the skip connections no longer
    fit.  Mended as its other blocks do it; sizes that can be halved are drawn as before, bit by bit.
    """
    for kind in (ResnetUpsampleBlock2D, SimpleCrossAttnUpBlock2D):
        _heed_size(kind)


def _heed_size(kind: Any) -> None:
    plain = kind.forward
    if getattr(plain, "mended", False):
        return

    @functools.wraps(plain)
    def mended(self: Any, *args: Any, upsample_size: Any = None, **named: Any) -> Any:
        def sized(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return given[0], upsample_size

        with contextlib.ExitStack() as hooks:
            for upsampler in self.upsamplers or () if upsample_size is not None else ():
                hooks.callback(upsampler.upsample.register_forward_pre_hook(sized).remove)
            return plain(self, *args, **named)

    mended.mended = True  # type: ignore[attr-defined]
    kind.forward = mended


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """No progress bars of the libraries, as bars.no_bars."""
    ours = [log for log in (transformers_logging, diffusers_logging) if log.is_progress_bar_enabled()]
    with bars.no_bars():
        for log in ours:
            log.disable_progress_bar()
        try:
            yield
        finally:
            for log in ours:
                log.enable_progress_bar()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither bars nor accelerate's remark that parameters are on the meta device, where they were sent."""
    log = logging.getLogger("accelerate.big_modeling")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with no_bars():
            yield
    finally:
        log.setLevel(before)
