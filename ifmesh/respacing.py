"""Lists of timesteps by name, and the respacing strings of the original DeepFloyd IF.  Pure.

Formula: `space_timesteps` of deepfloyd_if/model/respace.py, names: `respacing_modes` of deepfloyd_if/modules/base.py, both in
https://github.com/deep-floyd/IF; diffusers ships what comes of the names as lists (pipelines/deepfloyd_if/timesteps.py).
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from itertools import accumulate, repeat
from typing import Final

TRAINED: Final = 1000  # timesteps that IF was trained on: 999 is noise, 0 the picture
NAMED: Final = {  # steps in each section, from the picture to the noise
    "fast27": "10,10,3,2,2",
    "smart27": "7,4,2,1,2,4,7",
    "smart50": "10,6,4,3,2,2,3,4,6,10",
    "smart100": "1,1,1,1,2,2,2,2,2,2,3,3,4,4,5,5,6,7,7,8,9,10,13",
    "smart185": "1,1,2,2,2,3,3,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,20",
    "super27": "1,1,1,1,1,1,1,2,5,13",
    "super40": "2,2,2,2,2,2,3,4,6,15",
    "super100": "4,4,6,6,8,8,10,10,14,30",
}
FORMS: Final = f"{', '.join(NAMED)}, a number of steps, steps per section as in 10,10,3,2,2, or ddimN"
LONGEST: Final = 4000  # characters: a thousand sections


@lru_cache(maxsize=64)
def timesteps(schedule: str) -> tuple[int, ...]:
    """The falling list within 999..0 that a schedule names.  ValueError, which says what would work.

    "fast27" and the other names.  "10,10,3,2,2": the timesteps are cut into so many sections of equal size (the first ones a timestep
    longer where that does not come out), the first around the picture, and each gives so many steps, evenly, both ends included; 0:
    none.  "50": one section.  "ddim50": from 0 in equal whole strides, as many as asked for.
    """
    text = NAMED.get(schedule, schedule)
    if found := re.fullmatch(r"ddim([0-9]{1,4})", text):
        return _strided(int(found[1]))
    counts = [part.strip() for part in text[: LONGEST + 1].split(",")]
    if len(text) > LONGEST or not all(re.fullmatch(r"[0-9]{1,4}", count) for count in counts):
        near = get_close_matches(schedule.lower(), NAMED, n=1) if len(schedule) <= 64 else []  # difflib is quadratic
        raise ValueError(f"one of {FORMS}" + (f"; did you mean {near[0]}?" if near else ""))
    made = _sections([int(count) for count in counts])
    if not made:
        raise ValueError("leaves no timestep: at least one step in one section")
    return made


def _strided(count: int) -> tuple[int, ...]:
    possible = {len(range(0, TRAINED, stride)): stride for stride in range(TRAINED - 1, 0, -1)}
    if count not in possible:
        near = sorted({max((n for n in possible if n < count), default=2), min((n for n in possible if n > count), default=TRAINED)})
        raise ValueError(f"no whole stride takes so many of {TRAINED}: {' or '.join(f'ddim{n}' for n in near)}")
    return tuple(reversed(range(0, TRAINED, possible[count])))


def _sections(counts: list[int]) -> tuple[int, ...]:
    size, longer = divmod(TRAINED, len(counts))
    taken: set[int] = set()
    first = 0
    for number, count in enumerate(counts):
        own = size + (number < longer)
        if count > own:
            raise ValueError(f"section {number + 1} of {len(counts)} holds {own} timesteps: at most so many steps, not {count}")
        if count:
            stride = (own - 1) / (count - 1) if count > 1 else 1.0
            # Added up, not multiplied: the original's rounding is that of the sums.
            taken.update(first + round(at) for at in accumulate(repeat(stride, count - 1), initial=0.0))
        first += own
    return tuple(sorted(taken, reverse=True))
