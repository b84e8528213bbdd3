"""Every Python example of the README runs, against a real mesh of toy stages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_examples_name_every_method_of_both_clients() -> None:
    from ifmesh import AsyncClient, Client

    for client in (Client, AsyncClient):
        [text] = [text for text in EXAMPLES if f"import {client.__name__}" in text and "inpaint" in text]
        methods = {name for name, value in vars(client).items() if not name.startswith("_") and callable(value)} - {"ask", "close"}
        assert {name for name in methods if f"mesh.{name}(" not in text} == set()


@pytest.mark.timeout(180)
def test_the_examples_run(mesh: Make, tmp_path: Path) -> None:
    one = mesh()
    one.all()
    folder = tmp_path / "reader"
    folder.mkdir()
    Image.effect_mandelbrot((768, 512), (-2.0, -1.5, 1.0, 1.5), 40).convert("RGB").save(folder / "fox.png")
    for text in EXAMPLES:  # in order: one draws the mask that the next ones use
        environ = one.environ | {"IFMESH_STATE": str(one.state)}
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=folder, env=environ, capture_output=True, text=True, timeout=2 * LIMIT, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stderr[-4000:]}"
    assert {"64.png", "sheet.png", "plain.png", "stage_one.png"} <= {path.name for path in folder.iterdir()}
