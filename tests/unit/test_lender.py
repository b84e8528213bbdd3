"""The memory of a device is lent once: to the living, whoever else thinks it is free."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ifmesh import memory
from ifmesh.lender import Lender, budget

HOLDER = """
import sys
from pathlib import Path
from ifmesh.lender import Lender
lender = Lender(Path(sys.argv[1]), "cpu", "holder.1")
print(lender.take(60, 100), flush=True)
sys.stdin.read()
"""


def test_no_more_is_lent_than_there_is(tmp_path: Path) -> None:
    one, two, three = (Lender(tmp_path, "cuda:0", f"{name}.1") for name in ("one", "two", "three"))
    assert one.take(60, 100) == ""
    assert two.take(50, 100) == "one.1"
    assert three.take(40, 100) == ""
    one.give_back()
    one.give_back()
    assert two.take(50, 100) == ""
    assert set(one.take(60, 100).split(", ")) == {"two.1", "three.1"}


def test_devices_are_apart(tmp_path: Path) -> None:
    assert Lender(tmp_path, "cuda:0", "one.1").take(100, 100) == ""
    assert Lender(tmp_path, "cuda:1", "two.1").take(100, 100) == ""
    assert Lender(tmp_path, "cpu", "three.1").take(100, 100) == ""


def test_a_lease_dies_with_its_holder_and_not_before(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "\n"
        mine = Lender(tmp_path, "cpu", "mine.1")
        other.send_signal(signal.SIGSTOP)
        assert mine.take(60, 100) == "holder.1"
        other.kill()
        other.wait()
        assert mine.take(60, 100) == ""
        assert len(list(tmp_path.glob("memory-cpu-*"))) == 1, "what the dead have left is swept out"


@pytest.mark.parametrize(
    ("device", "total", "left"), [("cpu", 4 << 30, 2 << 30), ("cpu", 100 << 30, 80 << 30), ("cuda:0", 15 << 30, 13.5 * 2**30)]
)
def test_something_is_left_to_the_others(device: str, total: int, left: float) -> None:
    assert budget(device, total) == pytest.approx(left)


def test_a_device_too_small_has_no_budget() -> None:
    assert budget("cpu", 1 << 30) == 0


def test_the_memory_of_this_machine_is_known() -> None:
    assert memory.of_device("cpu") > 1 << 28
    assert memory.of_device("cuda:99") == 0
