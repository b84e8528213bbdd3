"""`ifmesh.local()` and the notebook under deploy/: run in a real kernel, from top to bottom; and what is left when the kernel dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import psutil
import pytest

import ifmesh
from ifmesh import MeshError
from tests.mesh.real import cascade

NOTEBOOK = Path(__file__).parents[2] / "deploy" / "ifmesh.ipynb"
LIMIT = 60.0
pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of Jupyter's own packages


def shown(cell: Any, kind: str) -> list[str]:
    """What the cell gave of this MIME type."""
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


@pytest.mark.parametrize("stages", ["toy", pytest.param("torch", marks=pytest.mark.slow)])
def test_the_notebook_runs_from_top_to_bottom(
    stages: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture is there, and what was to be seen of its making."""
    folder = tmp_path_factory.mktemp("notebook")
    if stages == "toy":
        monkeypatch.setenv("IFMESH_CASCADE_TOY", "true")
    else:
        monkeypatch.setenv("IFMESH_CASCADE_PATH", str(cascade(tmp_path_factory.getbasetemp(), 16)))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    code = {cell.source.splitlines()[-1]: cell for cell in notebook.cells if cell.cell_type == "code"}
    drawn = [line for line, cell in code.items() if shown(cell, "image/png")]
    assert len(drawn) == 7, drawn
    said = " ".join(text for cell in code.values() for text in shown(cell, "text/html"))
    assert "the mesh is ready" in said
    assert said.count("guard ") == 4, "what each stage took, of every picture that was waited for"


def test_it_ends_with_what_holds_it() -> None:
    mesh = ifmesh.local(toy=True)
    folder = mesh.state
    family = processes(folder)
    assert len(family) > 10
    assert mesh.generate("a fox", size=64).size == (64, 64)
    mesh.close()
    assert (processes(folder), folder.exists()) == ([], False)


def test_a_kernel_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """kill -9: nobody can clean up any more."""
    notebook = nbformat.v4.new_notebook(  # type: ignore[no-untyped-call]
        cells=[nbformat.v4.new_code_cell("import ifmesh, os\nmesh = ifmesh.local(toy=True)\nprint(os.getpid(), mesh.state)")]  # type: ignore[no-untyped-call]
    )
    client = nbclient.NotebookClient(notebook, timeout=120)
    with client.setup_kernel():
        client.execute_cell(notebook.cells[0], 0)
        said = "".join(output["text"] for output in notebook.cells[0].outputs if output["output_type"] == "stream")
        pid, folder = said.split()[-2:]
        assert processes(Path(folder))
        os.kill(int(pid), signal.SIGKILL)
        until = time.monotonic() + LIMIT
        while processes(Path(folder)):
            assert time.monotonic() < until, "the mesh outlives its kernel"
            time.sleep(0.05)


def test_what_cannot_become_ready_says_why() -> None:
    with pytest.raises(MeshError, match=r"(?s)stage_one-0 does not start: .*No module named 'no'") as caught:
        ifmesh.local(toy=True, settings={"services.stage_one.run": "no.such:Stage"})
    assert "Traceback" not in str(caught.value)


def processes(folder: Path) -> list[int]:
    """Those of the mesh of this state folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(folder) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found
