"""A key of the mesh's own is rotated on the coordinator's host: it comes to the workers of the others over the connection that is open."""

from __future__ import annotations

import json

import pytest

from ifmesh import authorized, identity
from tests.hosts.far import Far, ask, far_pids, why_no_ssh
from tests.hosts.kit import Hosts, until
from tests.hosts.mesh import STATE, starts

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(240)]
FILE = "worker-stage_one.key"


def test_a_rotated_key_reaches_a_host_and_its_workers_start_again_one_after_another(hosts: Hosts) -> None:
    if why := why_no_ssh():
        pytest.skip(why)
    far = Far(hosts, {"two": {"stage_one": 2}}, step_ms=20)
    far.open()
    up = far.start()
    keys = far.hosts["one"].files / STATE[1:] / "keys"
    with far.client("one") as client:
        far.works(client)
        before, old = far_pids(far.hosts["two"], "ifmesh worker"), identity.read(keys / FILE)
        assert len(before) == 4  # two workers, and the parent of each
        asked = ask(client, "under", 6)
        far.here("keys", "rotate", "worker-stage_one", "--overlap", "1h")
        until(lambda: up.log.read_text().count("@two is loaded") == 4, "the workers there do not start again")
        far.works(client)
        there = next((far.hosts["two"].files / "run/ifmesh/hosted").iterdir()) / "keys" / FILE
        assert identity.read(there) == identity.read(keys / FILE) != old
        assert not set(before) & set(far_pids(far.hosts["two"], "ifmesh worker"))
        table = keys / authorized.FILE
        lines = [line for line in table.read_text().splitlines(keepends=True) if old.keys.public not in line]
        identity.put(table, "".join(lines))  # as when its time is over
        asked += ask(client, "after", 3)
        for one in asked:
            one.check()
            assert set(starts(client, one.job.id).values()) == {1}, one.job.id
        told = {row["service"]: row["state"] for row in json.loads(far.here("ps", "--json"))["services"]}
        assert {told[name] for name in far.names("two")} <= {"ready", "busy"}
    said = up.log.read_text()
    assert "brought the new key of worker-stage_one" in said
    assert said.count("connected to 10.77.0.2") == 1
    assert "its key was revoked" not in said
    words = ("its key has changed", "@two is loaded")
    order = [word for line in said.splitlines() for word in words if word in line]
    assert order == [words[1]] * 2 + [*words] * 2, "not one after another"
