"""`ifmesh bench load --on`: clients on other hosts, over real sshds, that end however whoever measures ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ifmesh import authorized, exits
from ifmesh.request import STAGES
from tests.hosts.conftest import why_not
from tests.hosts.far import Far, far_pids, nothing_stays, why_no_ssh
from tests.hosts.kit import Hosts, Process, until
from tests.hosts.mesh import STATE, ready
from tests.hosts.test_far_mistakes import BASE

BOTH = ("two", "three")
LOAD = ("bench", "load", "--in-flight", "4", "--warm", "0", "--size", "64")
CLIENT = "ifmesh bench client"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """A mesh on the first of three hosts; on the others nothing of ifmesh runs."""
    if why := why_not() or why_no_ssh():
        pytest.skip(why)
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        far = Far(hosts, {name: {} for name in BOTH}, everywhere=True)
        far.open()
        far.start()
        with far.client("one") as client:
            ready(client, *(f"{stage}-0" for stage in STAGES))
        yield far


@pytest.fixture
def far(shared: Far) -> Iterator[Far]:
    yield shared
    shared.hosts.heal()
    shared.extra = {name: {} for name in BOTH}
    shared.configure()


def guests(far: Far) -> list[tuple[str, str]]:
    """Names and roles of the keys that are not the mesh's own, nor that of the test's own client."""
    table = authorized.read(far.hosts["one"].files / STATE[1:] / "keys" / authorized.FILE)
    return [(entry.name, entry.role) for entry in table.entries if entry.name not in (*authorized.OWN, "client")]


def alone(far: Far) -> None:
    """Wait until nothing of ifmesh runs on the other hosts."""
    for name in BOTH:
        nothing_stays(far.hosts[name])


def measuring(far: Far) -> Process:
    """A load without an end, whose first run is over."""
    words = (*LOAD, "--on", "two,three", "--clients", "2", "--seconds", "0.5", "--repeat", "1000", "--unloaded", "0")
    command = [sys.executable, "-m", "ifmesh", *words, "--out", "/run/report", "--config", "/run/mine/ifmesh.toml"]
    (far.hosts["one"].logs / "one-bench.log").unlink(missing_ok=True)
    process = far.hosts["one"].start("bench", *command)
    until(lambda: "run 2 of 1000" in process.log.read_text() or process.popen.poll() is not None, "it does not begin")
    assert process.popen.poll() is None, process.log.read_text()
    assert [len(far_pids(far.hosts[name], CLIENT)) for name in BOTH] == [2, 2]
    assert all(far_pids(far.hosts[name], "exec(eval(") for name in BOTH), "what started them has another name"
    return process


def test_clients_on_two_hosts_are_told_together_and_by_host(far: Far) -> None:
    report = json.loads(far.here(*LOAD, "--on", "two,three", "--clients", "2", "--seconds", "2", "--repeat", "2", "--json"))
    assert report["asked"]["hosts"] == list(BOTH)
    assert list(report["hosts"]) == list(BOTH)
    assert report["hosts"]["two"]["processors"] == os.cpu_count()
    for run in report["runs"]:
        assert [(row["host"], row["clients"]) for row in run["crews"]] == [("two", 2), ("three", 2)]
        assert all(row["requests"].keys() == {"finished"} and row["latency_ms"]["p50_ms"] > 0 for row in run["crews"])
        assert sum(row["requests"]["finished"] for row in run["crews"]) == run["requests"]["finished"] > 0
        assert sum(row["images_per_s"] for row in run["crews"]) == pytest.approx(run["images_per_s"])
    assert report["unloaded"]["requests"] == 2
    assert guests(far) == []
    alone(far)


def test_ctrl_c_ends_the_clients_there_and_keeps_what_was_measured(far: Far) -> None:
    process = measuring(far)
    ((name, role),) = guests(far)
    assert (name.partition("-")[0], role) == ("bench", "gateway")
    for host in BOTH:  # the key is in memory alone
        assert far.hosts[host].run("sh", "-c", "grep -l 'ifmesh1[.]' /proc/[0-9]*/cmdline /proc/[0-9]*/environ || true") == ""
        assert far.hosts[host].run("sh", "-c", "grep -rl 'ifmesh1[.]' /run /tmp /dev/shm || true") == ""
    process.signal(signal.SIGINT)
    assert process.code() == exits.OK
    report = json.loads((far.hosts["one"].files / "run/report/report.json").read_text())
    assert report["interrupted"] is True
    assert [row["host"] for row in report["runs"][0]["crews"]] == list(BOTH)
    assert guests(far) == []
    alone(far)


@pytest.mark.matrix
def test_nothing_stays_behind_when_whoever_measures_is_killed(far: Far) -> None:
    process = measuring(far)
    process.signal(signal.SIGKILL)
    process.code()
    alone(far)
    authorized.remove(far.hosts["one"].files / STATE[1:] / "keys" / authorized.FILE, guests(far)[0][0])


@pytest.mark.matrix
def test_nothing_stays_behind_when_the_connection_dies_without_a_word(far: Far) -> None:
    process = measuring(far)
    far.hosts.isolate("two")
    assert process.code() == exits.UNREACHABLE
    assert process.log.read_text().splitlines()[-1].startswith("ifmesh: hosts.two: the connection to 10.77.0.2 is lost")
    alone(far)
    assert guests(far) == []


ELSEWHERE = ["--coordinator", "tcp://127.0.0.1:7640"]
MISTAKES: dict[str, tuple[dict[str, object], list[str], int, str]] = {
    "no such host": ({}, ["--on", "tow"], 3, "hosts.tow: no such host in the configuration; did you mean two?"),
    "no ifmesh": ({"environment": {}, "python": BASE}, [], 3, "hosts.two.python: ifmesh is not installed"),
    "nobody listens": ({"port": 23}, [], 4, "hosts.two.port: nobody listens at [10.77.0.2]:23: start sshd there, or say its port"),
    "loopback": ({}, ELSEWHERE, 4, "hosts.two: from there the coordinator at tcp://127.0.0.1:7640 cannot be reached (Connection refused)"),
}
"""More keys of [hosts.two], more flags, the exit code, and what the line says."""


@pytest.mark.parametrize("case", ["loopback", *(pytest.param(case, marks=pytest.mark.matrix) for case in MISTAKES if case != "loopback")])
def test_one_line_says_what_to_mend(far: Far, case: str) -> None:
    more, flags, code, said = MISTAKES[case]
    far.extra["two"] = more
    far.configure()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        far.here(*LOAD, "--on", "two", *flags)
    assert caught.value.returncode == code, caught.value.stderr
    told = caught.value.stderr.splitlines()
    (line,) = [line for line in told if not line.startswith(("  0%", "two | "))]  # how far it is, and what the shell there says
    assert line.startswith(f"ifmesh: {said}")
    assert guests(far) == []
