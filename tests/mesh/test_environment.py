"""A worker under somebody else's hands (Slurm, Kubernetes): `ifmesh worker STAGE`, and the rest in the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ifmesh import identity
from ifmesh.request import STAGES, Request
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, expected, published

FOX = Request("a fox", seed=7)


def test_a_worker_is_configured_by_the_environment_alone(mesh: Make, tmp_path: Path) -> None:
    one = mesh()
    one.all(tuple(stage for stage in STAGES if stage != "stage_one"))
    key, logs = tmp_path / "secret" / "gpu7.key", tmp_path / "gpu7.log"
    key.parent.mkdir()
    identity.write(key, one.invite("gpu7", "worker:stage_one"))  # what `ifmesh invite gpu7 --role worker:stage_one -o` writes
    environ = one.environ | {
        "IFMESH_COORDINATOR": one.config.control(),
        "IFMESH_IDENTITY": str(key),
        "IFMESH_STATE": str(tmp_path / "elsewhere"),
        "IFMESH_CASCADE_TOY": "true",
        "IFMESH_SERVICES_STAGE_ONE_DEVICE": "cpu",
    }
    with open(logs, "wb") as out:
        worker = subprocess.Popen([sys.executable, "-m", "ifmesh", "worker", "stage_one"], stdout=out, stderr=out, env=environ)
    try:
        with one.speaker() as fan:
            name = f"stage_one-{worker.pid}"
            one.ready(fan, name)
            fan.submit("fox", FOX)
            fan.finished("fox")
            assert published(fan.result("fox")) == expected(FOX)
            assert f"stage_one: begun on {name}" in [what for _, what in fan.books("fox").story]
        worker.terminate()  # as both do, before they kill
        assert worker.wait(LIMIT) == 0, logs.read_text()
    finally:
        worker.kill()
        worker.wait(LIMIT)
