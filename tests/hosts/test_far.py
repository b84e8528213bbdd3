"""`ifmesh up` once, on the first of three hosts, over real sshds: the pixels are those of one process."""

from __future__ import annotations

import json
import signal

import pytest

from tests.hosts.far import Far, ask, nothing_stays, why_no_ssh
from tests.hosts.kit import Hosts

PLACES = {"two": {"stage_one": 2}, "three": {"stage_two": 1, "upscaler": 1, "guard": 1}}


@pytest.fixture
def far(hosts: Hosts) -> Far:
    """Three hosts with sshd on two of them; nothing of ifmesh runs yet."""
    if why := why_no_ssh():
        pytest.skip(why)
    made = Far(hosts, PLACES)
    made.open()
    return made


def test_one_command_starts_three_hosts_and_any_of_them_may_ask(far: Far) -> None:
    up = far.start()
    with far.client("one") as client:
        far.works(client)
    for host in ("one", "two", "three"):
        with far.client(host) as client:
            for one in ask(client, f"from-{host}", 3):
                one.check()
    told = {row["service"]: row for row in json.loads(far.here("ps", "--json"))["services"]}
    assert {name: (row["host_name"], row["state"]) for name, row in told.items()} == {
        "supervisor": ("one", "up"),
        "coordinator": ("one", "ready"),
        "encoder-0": ("one", "ready"),
        "two": ("two", "up"),
        "three": ("three", "up"),
        **{name: (name.partition("@")[2], "ready") for name in far.names("two", "three")},
    }
    assert "three" in far.here("ps")
    log = up.log.read_text()
    assert "two/stage_one-1" in log
    assert "three/guard-0" in log
    # no secret is where others could read it: not in arguments, not in the logs; and what lies there is its owner's alone
    secret = (far.hosts["one"].files / "run/state/keys/worker-stage_one.key").read_text().strip()
    state = next((far.hosts["two"].files / "run/ifmesh/hosted").iterdir())
    assert state.stat().st_mode & 0o777 == 0o700
    assert [(p.name, p.stat().st_mode & 0o777) for p in (state / "keys").iterdir()] == [("worker-stage_one.key", 0o600)]
    assert (state / "keys/worker-stage_one.key").read_text().strip() == secret
    assert secret not in log
    assert all(secret not in far.hosts[name].run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '") for name in ("one", "two"))
    up.signal(signal.SIGTERM)
    assert up.code() == 0
    for name in ("two", "three"):
        nothing_stays(far.hosts[name])
