"""What `ifmesh doctor` and its probes tell of processes that are there and do nothing, or do not come up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ifmesh import Client, config
from ifmesh.cli_doctor import findings
from ifmesh.doctor.staff import last_error
from ifmesh.request import STAGES
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh

pytestmark = pytest.mark.matrix


def test_a_target_that_is_stopped_is_told_and_a_source_that_is(mesh: Make) -> None:
    """A stopped process has its sockets still; what its kernel takes is no answer."""
    one = mesh(mesh__silence=60.0)
    one.all(("encoder", "guard"))
    processes = {process.log.stem: process for process in one.processes}
    guard = [child.pid for child in processes["guard-0"].family]
    with Client(state=one.state) as client:
        for pid in guard:
            os.kill(pid, signal.SIGSTOP)
        try:
            there, back = client.probe("encoder-0", "guard-0"), client.probe("guard-0", "encoder-0")
        finally:
            for pid in guard:
                os.kill(pid, signal.SIGCONT)
        assert (there.arrived, there.error) == (False, "no answer within 3 s")
        assert (back.arrived, back.error) == (False, "guard-0 does not say how it went")
        assert client.probe("encoder-0", "guard-0").error == "", "it goes on, and is as well as before"


def test_the_last_words_of_a_worker_whose_checkpoint_is_missing(tmp_path: Path) -> None:
    """`ifmesh up` starts it again and again; the stage has no worker, and it is told why."""
    folder, state = tmp_path / "cascade", tmp_path / "state"
    for repo in ("one", "two", "three"):
        (folder / repo).mkdir(parents=True)
    repos = {"stage_one": "one", "stage_two": "two", "upscaler": "three"}
    (folder / "cascade.json").write_text(json.dumps({stage: {"repo": repo} for stage, repo in repos.items()}))
    flags = ["--state", str(state), "--set", f"cascade.path={folder}", "--set", "mesh.listen=tcp://127.0.0.1:0"]
    told = config.read(None, {}, {"mesh.state": str(state), "cascade.path": str(folder)})
    only = [part for stage in STAGES[:4] for part in ("--copies", f"{stage}=0")]
    _ifmesh("up", "--detach", *only, *flags)
    try:
        Mesh.wait_for(lambda: bool(last_error(told, "guard")))
        found = {finding.hop: finding for finding in findings(told)}
    finally:
        _ifmesh("down", *flags)
    finding = found.get("stage guard") or found["worker guard-0"]  # it is there for a moment, each time, and says that it loads
    assert not finding.ok
    assert f"guard-0: {folder / 'one' / 'safety_checker'}" in finding.said or f"guard-0: {folder / 'one'}" in finding.said
    assert "ifmesh logs guard-0" in finding.remedy
    assert found["checkpoint of guard"].said == f"{folder / 'one' / 'safety_checker'}: no weights"


def _ifmesh(*arguments: str) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("IFMESH")}
    subprocess.run([sys.executable, "-m", "ifmesh", *arguments], env=environ, check=True, timeout=LIMIT)
