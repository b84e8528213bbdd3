"""The built-in cascade, built afresh once per session."""

from pathlib import Path

import pytest
import torch
from ifmesh_services.nano import builder

from ifmesh.stage import Stage
from tests.services.chained import loaded


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Thread count changes bits, and two processes with two threads on two cores run at a third of the speed."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nano64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cascade 64 -> 256 -> 1024."""
    folder = tmp_path_factory.mktemp("cascades") / "nano64"
    builder.build(folder)
    return folder


@pytest.fixture(scope="session")
def nano16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cascade 16 -> 64 -> 256, for fast tests."""
    folder = tmp_path_factory.mktemp("cascades") / "nano16"
    builder.build(folder, base=16)
    return folder


@pytest.fixture(scope="session")
def stages16(nano16: Path) -> dict[str, Stage]:
    return loaded(nano16)


@pytest.fixture(scope="session")
def flagging64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As nano64, with a safety checker that flags every picture."""
    folder = tmp_path_factory.mktemp("cascades") / "flagging64"
    builder.build(folder, flagging=True)
    return folder
