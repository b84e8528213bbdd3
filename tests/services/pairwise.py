"""A few cases of a matrix in which every two values meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Case = tuple[object, ...]
"""One value for each factor, in their order."""
SHARE = 3
"""One case of so many is in make test; the others are in make parity."""


def whole(factors: Mapping[str, Sequence[object]]) -> list[Case]:
    return list(product(*factors.values()))


def pairs(case: Case) -> set[tuple[int, object, int, object]]:
    return {(i, case[i], j, case[j]) for i, j in combinations(range(len(case)), 2)}


def pairwise(factors: Mapping[str, Sequence[object]]) -> list[Case]:
    """Greedy: always the case that brings most pairs which are still missing, of equals the first."""
    every = whole(factors)
    missing = set().union(*map(pairs, every))
    chosen: list[Case] = []
    while missing:
        chosen.append(max(every, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def shared(cases: Sequence[Case]) -> list[Any]:
    """The cases as parameters, most of them for make parity."""
    return [pytest.param(case, marks=() if i % SHARE == 0 else pytest.mark.parity) for i, case in enumerate(cases)]
