"""Real processes for each test that asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mesh.kit import Mesh

Make = Callable[..., Mesh]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Make]:
    """A mesh with these settings (dotted keys); everything of it is gone after the test, and on failure its logs are shown."""
    made: list[Mesh] = []
    with ExitStack() as stack:

        def make(**settings: str | int | float) -> Mesh:
            keys = {key.replace("__", "."): value for key, value in settings.items()}
            made.append(stack.enter_context(Mesh(tmp_path / f"mesh{len(made)}", keys)))
            return made[-1]

        yield make
        for one in made:
            for path in sorted(one.logs.iterdir()):
                print(f"---- {path.name}\n{path.read_text(errors='replace')[-4000:]}")
