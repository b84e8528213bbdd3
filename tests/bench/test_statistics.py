"""Known numbers: those of numpy.percentile and of the tables of Student's t, written down."""

from __future__ import annotations

import math

import pytest

from ifmesh.bench.statistics import Interval, interval, mean, percentile, quantiles, rate, student, variance


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (25, 3.25), (50, 5.5), (90, 9.1), (95, 9.55), (99, 9.91), (100, 10.0)]
)  # numpy.percentile(range(1, 11), ...)
def test_percentiles_interpolate_as_numpy_does(percent: float, value: float) -> None:
    assert percentile([7, 1, 10, 3, 5, 4, 6, 2, 9, 8], percent) == pytest.approx(value)


def test_one_value_is_every_percentile_and_nothing_has_none() -> None:
    assert {percentile([3.0], percent) for percent in (0, 50, 99, 100)} == {3.0}
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="no values"):
        mean([])


def test_quantiles_are_told_in_milliseconds() -> None:
    assert quantiles([0.001, 0.002, 0.003], (50, 95)) == {"p50_ms": 2.0, "p95_ms": 2.9}
    assert quantiles([]) == {}


def test_an_interval_is_students() -> None:
    # by hand: the variance is 1.7, and 2.776 (t, 4 degrees) * sqrt(1.7 / 5) = 1.6187
    found = interval([9.0, 11.0, 10.0, 12.0, 9.0])
    assert variance([9.0, 11.0, 10.0, 12.0, 9.0]) == pytest.approx(1.7)
    assert found.mean == pytest.approx(10.2)
    assert found.half == pytest.approx(1.6187, abs=1e-3)
    assert found.low == pytest.approx(8.5813, abs=1e-3)
    assert found.high == pytest.approx(11.8187, abs=1e-3)


def test_one_run_tells_no_interval() -> None:
    assert interval([5.0]) == Interval(5.0, math.inf)


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (4, 2.776), (4.9, 2.776), (30, 2.042), (40, 2.021), (60, 2.000), (120, 1.980)])
def test_students_t(freedom: float, t: float) -> None:
    assert student(freedom) == pytest.approx(t, abs=0.002)


def test_a_rate_is_of_what_ended_after_the_pipe_was_full() -> None:
    ends = [0.0, 5.0, 5.5, 6.0, 6.5, 7.0]  # the first was quick, then there was a pause, then two a second
    assert rate(ends, skip=1) == pytest.approx(2.0)
    assert rate(ends) == pytest.approx(5 / 7)
    assert rate([1.0]) == rate([]) == rate([1.0, 1.0]) == 0.0
