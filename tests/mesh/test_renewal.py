"""A key of the mesh's own is rotated while `ifmesh up` runs: its workers take the new one, and no job is begun twice for it."""

from __future__ import annotations

import time

import pytest

from ifmesh import authorized, identity
from ifmesh.request import STAGES, Request
from tests.mesh.conftest import Make
from tests.mesh.kit import Speaker, expected, published
from tests.mesh.people import known, table

COPIES = ("stage_one-0", "stage_one-1")
REQUESTS = {f"job-{n}": Request("a fox", seed=n, last_stage="stage_one") for n in range(12)}


def pids(fan: Speaker) -> dict[str, int]:
    """Of the copies of Stage I that have their place."""
    return {row.service: row.pid for row in fan.books().services if row.service in COPIES and row.state in ("ready", "busy")}


def test_workers_take_a_new_key_one_after_another_and_no_job_is_begun_twice(mesh: Make) -> None:
    one = mesh(services__stage_one__copies=2, services__stage_one__options__step_ms=50)
    up = one.start("up", "up")
    one.wait_for(lambda: bool(one.config.announced()), up)
    with one.speaker() as fan:
        one.ready(fan, *(f"{stage}-0" for stage in STAGES), *COPIES)
        old, before = known(one, "worker-stage_one"), pids(fan)
        for job, request in REQUESTS.items():
            fan.submit(job, request)
        fan.when(lambda books: sum(row.state == "running" and row.stage == "stage_one" for row in books.jobs) >= 2)
        authorized.renew(one.state, "worker-stage_one", time.time() + 3600)
        fewest = 2

        def renewed() -> bool:
            nonlocal fewest
            now = pids(fan)
            fewest = min(fewest, len(now))
            return len(now) == 2 and not set(before.values()) & set(now.values())

        one.wait_for(renewed, up)
        assert fewest == 1, "both had left"
        lines = table(one).read_text().splitlines()
        identity.put(table(one), "".join(f"{line}\n" for line in lines if old.keys.public not in line))  # as when its time is over
        fan.submit("after", Request("a fox", seed=99, last_stage="stage_one"))
        for job, request in {**REQUESTS, "after": Request("a fox", seed=99, last_stage="stage_one")}.items():
            fan.when(lambda books: books.ending == "finished", job)
            assert published(fan.result(job)) == expected(request)
            assert {run.stage: run.runs for run in fan.books(job).runs} == dict.fromkeys(("encoder", "stage_one", "guard"), 1)
        assert len(pids(fan)) == 2
    said = up.log.read_text()
    assert said.count("its key has changed") == 2
    assert "its key was revoked" not in said


@pytest.mark.slow
def test_after_a_key_was_revoked_a_new_one_has_its_workers_start_again_at_once(mesh: Make) -> None:
    """Nobody hears them any more, so that what they do is in vain: it is not waited for."""
    one = mesh(services__stage_one__options__step_ms=20_000, services__stage_one__patience=60)
    up = one.start("up", "up")
    one.wait_for(lambda: bool(one.config.announced()), up)
    with one.speaker() as fan:
        before = one.ready(fan, *(f"{stage}-0" for stage in STAGES))["stage_one-0"].pid
        fan.submit("a", REQUESTS["job-0"])
        fan.when(lambda books: any(row.state == "running" and row.stage == "stage_one" for row in books.jobs))
        authorized.remove(table(one), "worker-stage_one")
        authorized.renew(one.state, "worker-stage_one", time.time() + 3600)
        fan.when(lambda books: any(row.service == "stage_one-0" and row.pid != before and row.state == "busy" for row in books.services))
    said = up.log.read_text()
    assert "stage_one-0: its key counts no more, and there is a new one: killed" in said
