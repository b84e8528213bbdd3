"""The state of a CPU torch.Generator that came from outside: is it one?"""

from __future__ import annotations

import math
import struct

from torch import Tensor

WORDS = 624  # of the Mersenne Twister's state


def sound(state: Tensor) -> bool:
    """state: [5056] uint8.  torch checks less: it takes a position behind its last word, and then draws from memory that is not its own.

    Layout: CPUGeneratorImplState in ATen/CPUGeneratorImpl.cpp; positions: MT19937RNGEngine.h, where left counts down to the next refill
    and next up from the last one, so that fresh is (1, 0) and used is a sum of 625.
    """
    data = state.numpy().tobytes()
    left, seeded, following = struct.unpack_from("<iiQ", data, 8)
    x, y, rho = struct.unpack_from("<ddd", data, 24 + 8 * WORDS)
    (cached,) = struct.unpack_from("<f", data, 48 + 8 * WORDS + 8)
    placed = (left, following) == (1, 0) or (left >= 1 and left + following == WORDS + 1)
    return placed and seeded == 1 and all(math.isfinite(number) for number in (x, y, rho, cached))
