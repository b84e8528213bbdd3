"""For all unit tests: a client has a key, as everybody who speaks with a mesh."""

from __future__ import annotations

import pytest

from ifmesh.authorized import prepare


@pytest.fixture(scope="session")
def operator(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The identity file of one, of a mesh in a folder of its own."""
    state = tmp_path_factory.mktemp("keys")
    prepare(state)
    return str(state / "keys" / "operator.key")


@pytest.fixture(autouse=True)
def keys(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For this process and those that a test starts, and no longer than a test: the mesh of another folder has keys of its own."""
    monkeypatch.setenv("IFMESH_MESH_IDENTITY", operator)
