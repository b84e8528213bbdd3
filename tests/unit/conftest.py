"""For all unit tests: a client has a key, as everybody who speaks with a mesh."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ifmesh.authorized import prepare


@pytest.fixture(scope="session", autouse=True)
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Those of a mesh in a folder of its own; processes that a test starts have them, too."""
    state = tmp_path_factory.mktemp("keys")
    prepare(state)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("IFMESH_MESH_IDENTITY", str(state / "keys" / "operator.key"))
        yield
