"""What the coordinator keeps of unfinished stages, and what has to go."""

from __future__ import annotations

from ifmesh.checkpoints import Checkpoints
from ifmesh.protocol import Header


def header(job: str, step: int = 1, number: int = 1) -> Header:
    return Header("checkpoint", job, "stage_one", (1, number), f"digest of {job} {step}", step)


def test_the_newest_of_each_job_is_kept() -> None:
    kept = Checkpoints(100)
    assert kept.keep(header("a", 5), b"five") == []
    assert kept.keep(header("a", 10), b"ten") == []
    assert kept.keep(header("b"), b"other") == []
    assert len(kept) == 2
    assert kept.under("a", (1, 7)) == (header("a", 10, 7), b"ten"), "under the token of the grant that goes on"
    kept.drop("a")
    assert kept.under("a", (1, 7)) is None
    kept.drop("a")
    assert len(kept) == 1


def test_what_was_begun_first_goes_first() -> None:
    kept = Checkpoints(10)
    for job in "abc":
        assert kept.keep(header(job), b"123") == []
    assert kept.keep(header("a", 2), b"1234") == [], "ten, and not one more"
    assert kept.keep(header("d"), b"12345") == ["a", "b"], "the order is that of the jobs, not of their newest steps"
    assert [job for job in "abcd" if kept.under(job, (1, 1))] == ["c", "d"]


def test_a_larger_one_in_the_place_of_a_smaller_counts_once() -> None:
    kept = Checkpoints(10)
    for size in (4, 9, 10, 3):
        assert kept.keep(header("a", size), bytes(size)) == []
    assert kept.keep(header("b"), bytes(7)) == []


def test_one_that_is_too_large_alone_is_not_kept() -> None:
    kept = Checkpoints(10)
    kept.keep(header("a"), b"123")
    assert kept.keep(header("b"), bytes(11)) == ["a", "b"]
    assert len(kept) == 0
    assert Checkpoints(0).keep(header("a"), b"1") == ["a"]
