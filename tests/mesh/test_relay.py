"""Two workers that cannot reach each other: what one has for the other goes by way of the coordinator.

Row 43 of the failure matrix, on real processes.
"""

from __future__ import annotations

from ifmesh import Request
from ifmesh.places import socket_file
from tests.mesh.conftest import Make
from tests.mesh.kit import expected, published
from tests.mesh.severed import CUT


def test_what_does_not_arrive_goes_by_way_of_the_coordinator(mesh: Make) -> None:
    """Once the straight way has been tried for long enough; the next job takes the detour at once, and nothing runs twice."""
    made = mesh(mesh__transfer=0.5)
    made.coordinator()
    settings = {
        "services.encoder.run": "tests.mesh.severed:Encoder",
        "services.encoder.options.coordinator": f"ipc://{socket_file(made.state, 'coordinator')}",
    }
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    log = made.start("encoder-0", "worker", "encoder", "--name", "encoder-0", *flags).log
    for stage in ("stage_one", "guard"):
        made.worker(stage)
    tried = []
    with made.speaker() as fan:
        made.ready(fan, "encoder-0", "stage_one-0", "guard-0")
        for seed in (7, 8):
            request = Request("a fox", seed, last_stage="stage_one")
            fan.submit(f"fox-{seed}", request)
            finished = fan.finished(f"fox-{seed}")
            assert published(fan.result(f"fox-{seed}")) == expected(request)
            assert [run.runs for run in finished.runs] == [1, 1, 1]
            tried.append({line.rpartition(" ")[2].partition(":")[0] for line in log.read_text().splitlines() if CUT in line})
            log.write_text("")
    assert tried == [{"ipc", "tcp"}, set()]
