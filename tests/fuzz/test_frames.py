"""A sample of the mutants that `python -m tests.fuzz.frames` makes by the million."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import msgpack  # type: ignore[import-untyped]

from tests.fuzz.frames import Report, Target, peak, run, targets

MOST_GROWTH = 64 << 20  # bytes of peak memory


def test_20000_mutants_are_read_or_refused_in_the_one_way() -> None:
    every = targets()
    run(2000, 0, every)
    before = peak()
    report = run(20_000, 7, every)
    assert not report.wrong, report.wrong[:5]
    assert report.count == 20_000
    assert peak() - before < MOST_GROWTH
    assert report.slowest[0] < 5, report.slowest  # CPU seconds of one; a thousandth of it is usual
    for target in every:  # the mutants are neither all nonsense nor all harmless
        taken = report.outcomes[target.name, "taken"]
        refused = sum(n for (name, outcome), n in report.outcomes.items() if name == target.name and outcome.startswith("refused"))
        assert refused, target.name
        assert taken or target.name in ("bag, expected", "bag, bent header"), target.name


def test_a_decoder_that_lets_something_else_out_is_noticed() -> None:
    good = next(target for target in targets() if target.name == "message to the coordinator")
    careless = replace(good, read=lambda frame: msgpack.unpackb(frame)["is"])
    report = run(200, 1, [careless])
    assert len(report.wrong) > 100
    assert all(line.startswith("message to the coordinator: ") for line in report.wrong)


def test_one_seed_is_one_run() -> None:
    def mutants(seed: int) -> list[str]:
        dice = random.Random(seed)
        return [
            repr(target.make(dice)) for target in targets() for _ in range(3) if "invite" not in target.name and "keys" not in target.name
        ]

    assert mutants(3) == mutants(3) != mutants(4)


def test_the_command_prints_what_came_out() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.frames", "--count", "2000", "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2000 mutants" in done.stdout
    assert "peak memory: " in done.stdout
    assert "WRONG" not in done.stdout


def test_what_is_wrong_is_told_short() -> None:
    def broken(mutant: object) -> None:
        raise KeyError("x")

    report = run(3, 1, [Target("it", broken, ValueError, lambda dice: b"x" * 10_000)], Report())
    assert [len(line) < 600 for line in report.wrong] == [True] * 3
