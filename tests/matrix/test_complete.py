"""Every row of the failure matrix is a test at each layer it names, or it says here what it waits for.

test_sim_*     S: the real minds under a virtual clock (`scene.py`); the row's bound is asserted in virtual seconds
test_unit_*    U: one function or one mind
test_process_* P: real processes, struck at a moment that an event tells of; marked `matrix`, but for a sample
test_host_*    N: hosts in network namespaces
A test of another file says its layer here, in LAYERS.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.matrix.conftest import ROW

ROWS = {
    1: "SN", 2: "S", 3: "SP", 4: "U", 5: "SU", 6: "SP", 7: "SP", 8: "SP", 9: "SP", 10: "SP",
    11: "SP", 12: "S", 13: "P", 14: "SU", 15: "U", 16: "SP", 17: "P", 18: "SP", 19: "SP", 20: "SP",
    21: "SP", 22: "SP", 23: "N", 24: "SPN", 25: "SU", 26: "S", 27: "SU", 28: "P", 29: "SP", 30: "SP",
    31: "SP", 32: "SP", 33: "S", 34: "SN", 35: "S", 36: "SP", 37: "SP", 38: "SP", 39: "U", 40: "SP",
    41: "SP", 42: "SN", 43: "SN", 44: "SN", 45: "N", 46: "N", 47: "N", 48: "SN", 49: "SP", 50: "P",
    51: "SP", 52: "P", 53: "P", 54: "P", 55: "P", 56: "P", 57: "P", 58: "P", 59: "SU", 60: "U",
    61: "P", 62: "P", 63: "P",
}  # fmt: skip
"""By number, the layers that the study of failures names for it: S simulated, P processes, N namespaces, U unit."""

WAITING: dict[tuple[int, str], str] = {(62, "P"): "waits for the HTTP gateway: its death with 50 long polls"}
"""Besides, parts of rows that have tests: 39 (413 and 400) and 63 (/healthz, /readyz) wait for the HTTP gateway."""

LAYERS = {"test_sim_": "S", "test_unit_": "U", "test_process_": "P", "test_host_": "N", "test_disk_": "PU"}
"""By the beginning of a file's name.  A test in a file of two layers counts for those of them that its row names."""

HERE = Path(__file__).parent


def written() -> dict[tuple[int, str], list[str]]:
    """The tests by row and layer."""
    found = defaultdict(list)
    for path in sorted([*HERE.glob("test_*.py"), *(HERE.parent / "hosts").glob("test_*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (row := ROW.match(node.name)):
                layers = next((layers for name, layers in LAYERS.items() if path.name.startswith(name)), "N" if path.parent != HERE else "")
                assert layers, f"{path.name} has {node.name}: say its layer in LAYERS"
                for layer in layers if len(layers) == 1 else set(layers) & set(ROWS[int(row[1])]):
                    found[int(row[1]), layer].append(node.name)
    return found


def test_every_row_has_its_tests() -> None:
    found = written()
    wanted = {(row, layer) for row, layers in ROWS.items() for layer in layers}
    assert not wanted - found.keys() - WAITING.keys(), "these have no test, and no reason"
    assert not WAITING.keys() & found.keys(), "these wait no more: take them out"
    assert WAITING.keys() <= wanted


def test_no_test_claims_a_row_that_is_none() -> None:
    assert {row for row, _ in written()} <= ROWS.keys()
    names = [name for path in HERE.glob("test_*.py") for name in re.findall(r"def (test_row_\S+?)\(", path.read_text())]
    assert all(ROW.match(name) for name in names), "two digits"


def test_all_rows_are_here() -> None:
    assert list(ROWS) == list(range(1, 64))
