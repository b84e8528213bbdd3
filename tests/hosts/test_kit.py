"""Test hosts are what they claim: apart, connected, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.hosts.kit import LIMIT, ROOT, Host, Hosts, environment, until
from tests.hosts.wire import Link

HOST_ID = "from ifmesh import sockets; print(sockets.host_id())"


def udp(host: Host) -> socket.socket:
    """A socket on that host, bound to port 99."""
    with host.network():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((host.address, 99))
    made.settimeout(LIMIT)
    return made


@pytest.fixture
def pair(hosts: Hosts) -> Iterator[tuple[Hosts, socket.socket, socket.socket]]:
    """Two hosts a and b, with a datagram socket on each, that have spoken already."""
    a, b = hosts.add("a", "b")
    with udp(a) as one, udp(b) as two:
        assert round_trip(one, two) < LIMIT
        yield hosts, one, two


def round_trip(one: socket.socket, two: socket.socket) -> float:
    began = time.monotonic()
    one.sendto(b"ping", two.getsockname())
    assert two.recv(9) == b"ping"
    two.sendto(b"pong", one.getsockname())
    assert one.recv(9) == b"pong"
    return time.monotonic() - began


def dropped(hosts: Hosts, way: str, count: int) -> None:
    """Wait until so many frames are lost on this way."""
    until(lambda: hosts.counts()[way][1] >= count, f"nothing is dropped on {way}: {hosts.counts()}")


def transferred(hosts: Hosts, size: int) -> float:
    """Seconds that so many bytes take from a to b over TCP."""
    with hosts["b"].network():
        door = socket.create_server((hosts["b"].address, 98))
    got: list[int] = []

    def read() -> None:
        with door, door.accept()[0] as heard:
            while data := heard.recv(1 << 20):
                got.append(len(data))

    reading = threading.Thread(target=read)
    reading.start()
    began = time.monotonic()
    with hosts["a"].network():
        out = socket.create_connection((hosts["b"].address, 98), LIMIT)
    with out:
        out.sendall(bytes(size))
    reading.join(LIMIT)
    assert sum(got) == size
    return time.monotonic() - began


def test_a_host_has_its_own_name_files_and_identity(hosts: Hosts) -> None:
    a, b = hosts.add("a", "b")
    assert [host.run("hostname").strip() for host in (a, b)] == ["a", "b"]
    ids = {host.python(HOST_ID) for host in (a, b)}
    here = subprocess.run([sys.executable, "-c", HOST_ID], env=environment(), capture_output=True, text=True, check=True).stdout
    assert len(ids | {here}) == 3
    note = f"note-{os.getpid()}"
    for path in ("/tmp", "/run", "/var/tmp", "/dev/shm"):
        a.run("touch", f"{path}/{note}")
        assert (a.files / path[1:] / note).exists()
        assert not (b.files / path[1:] / note).exists()
        assert not Path(path, note).exists()
    for folder in ("/", str(ROOT)):
        with pytest.raises(subprocess.CalledProcessError, match=r"touch|exit status"):
            a.run("touch", f"{folder}/note")
    kernel = ["cat", "/proc/sys/kernel/random/boot_id"]
    assert a.run(*kernel) != b.run(*kernel)
    assert "eth0" in a.run("ip", "link")
    assert a.run("ps", "-e", "-o", "pid=").split()[0] == "1"


def test_hosts_see_each_other(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    hosts, one, two = pair
    times = sorted(round_trip(one, two) for _ in range(50))
    seconds = transferred(hosts, 20_000_000)
    print(f"round trip {times[25] * 1000:.2f} ms, {20 / seconds:.0f} MB/s")
    assert times[0] < 1


def test_a_blackhole_swallows_and_heals(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    hosts, one, two = pair
    hosts.blackhole("a", "b")
    one.sendto(b"lost", two.getsockname())
    two.sendto(b"lost", one.getsockname())
    dropped(hosts, "a>b", 1)
    dropped(hosts, "b>a", 1)
    hosts.heal()
    round_trip(one, two)


def test_a_one_way_drop_lets_the_other_way_through(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    hosts, one, two = pair
    hosts.blackhole("a", "b", both=False)
    one.sendto(b"lost", two.getsockname())
    dropped(hosts, "a>b", 1)
    two.sendto(b"through", one.getsockname())
    assert one.recv(9) == b"through"
    hosts.heal()
    round_trip(one, two)


def test_an_isolated_host_is_alone_and_the_others_are_not(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    hosts, one, two = pair
    (c,) = hosts.add("c")
    with udp(c) as three:
        round_trip(one, three)
        hosts.isolate("c")
        three.sendto(b"lost", one.getsockname())
        dropped(hosts, "c>a", 1)
        round_trip(one, two)
        hosts.heal()
        round_trip(one, three)


def test_a_pulled_cable_is_noticed_at_its_end(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    hosts, one, two = pair

    def carrier(name: str) -> bool:
        return "NO-CARRIER" not in json.loads(hosts[name].run("ip", "-json", "link", "show", "eth0"))[0]["flags"]

    hosts.cut("b")
    until(lambda: not carrier("b"))
    assert carrier("a")
    hosts.plug("b")
    until(lambda: carrier("b"))
    round_trip(one, two)


def test_a_late_link_takes_its_time(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    hosts, one, two = pair
    hosts.link("a", "b", Link(delay=0.02, jitter=0.01))
    times = [round_trip(one, two) for _ in range(10)]
    print(f"round trip {min(times) * 1000:.1f} to {max(times) * 1000:.1f} ms")
    assert min(times) >= 0.04


def test_a_slow_link_is_slow(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    """10 Mbit/s: 1 MB takes 0.8 s."""
    hosts, _, _ = pair
    hosts.link("a", "b", Link(rate=10e6))
    seconds = transferred(hosts, 1_000_000)
    print(f"{8 / seconds:.1f} Mbit/s")
    assert seconds >= 0.75


def test_a_bad_link_loses_frames_and_tcp_none(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    hosts, _, _ = pair
    hosts.link("a", "b", Link(delay=0.001, loss=0.05, twice=0.02, early=0.05))
    seconds = transferred(hosts, 1_000_000)
    print(f"{1 / seconds:.2f} MB/s, {hosts.counts()['a>b']}")
    dropped(hosts, "a>b", 1)


def test_frames_may_come_twice(pair: tuple[Hosts, socket.socket, socket.socket]) -> None:
    hosts, one, two = pair
    hosts.link("a", "b", Link(twice=1.0), both=False)
    one.sendto(b"hello", two.getsockname())
    assert [two.recv(9), two.recv(9)] == [b"hello", b"hello"]


def test_a_lost_host_is_silent_and_gone_with_all_it_ran(hosts: Hosts) -> None:
    """No FIN leaves it: the others' connections just hear nothing more."""
    a, b = hosts.add("a", "b")
    with b.network():
        door = socket.create_server((b.address, 98))
    code = f"import socket,time\ns = socket.create_connection(({b.address!r}, 98))\ns.send(b'here')\ntime.sleep(999)"
    process = a.start("speaker", sys.executable, "-c", code)
    stray = a.start("stray", "setsid", "sleep", "999")
    with door:
        heard, _ = door.accept()
    with heard:
        assert heard.recv(9) == b"here"
        inside = [psutil.Process(process.pid), psutil.Process(stray.pid)]
        hosts.remove("a")
        assert not any(one.is_running() for one in inside)
        heard.setblocking(False)
        with pytest.raises(BlockingIOError):
            heard.recv(9)
    (again,) = hosts.add("a")
    with udp(again) as one, udp(b) as two:
        round_trip(one, two)


def test_a_process_is_started_signalled_and_killed(hosts: Hosts) -> None:
    (a,) = hosts.add("a")
    process = a.start("sleeper", "sh", "-c", "echo begun; sleep 999 & wait")
    until(lambda: process.log.read_text() == "begun\n" and len(process.family()) == 2)
    process.signal(signal.SIGTERM)
    assert process.code() == -signal.SIGTERM
    process = a.start("ender", "sh", "-c", "exit 7")
    assert process.code() == 7
    process = a.start("killed", "sleep", "999")
    until(lambda: bool(process.family()))
    process.kill()
    assert process.code() == -signal.SIGKILL


def test_two_sets_of_hosts_do_not_know_each_other(tmp_path: Path, hosts: Hosts) -> None:
    (a,) = hosts.add("a")
    with Hosts(tmp_path / "others") as others:
        (b,) = others.add("a")
        assert a.address == b.address
        with udp(a), udp(b):
            pass
    assert a.run("hostname") == "a\n"


@pytest.mark.parametrize("how", ["as it should", "killed"])
def test_nothing_stays(hosts: Hosts, tmp_path: Path, how: str) -> None:
    """Not even of a test that is killed in the middle."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.hosts.kit import Hosts\n"
        f"with Hosts(Path({str(tmp_path / 'inner')!r})) as hosts:\n"
        "    a, b = hosts.add('a', 'b')\n"
        "    a.start('stray', 'setsid', 'sleep', '999')\n    print('up', flush=True)\n    sys.stdin.read()\n"
    )
    links, names = (subprocess.run(["ip", *args], capture_output=True, check=True).stdout for args in (["link"], ["netns"]))
    test = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert test.stdout is not None
    assert test.stdout.readline() == "up\n"
    until(lambda: len(psutil.Process(test.pid).children(recursive=True)) >= 7)  # switch, 2 unshare, 2 hosts, nsenter, sleep
    made = psutil.Process(test.pid).children(recursive=True)
    if how == "killed":
        test.kill()
    test.communicate(timeout=LIMIT)
    gone, alive = psutil.wait_procs(made, LIMIT)
    assert not alive, alive
    assert len(gone) >= 7
    assert subprocess.run(["ip", "link"], capture_output=True, check=True).stdout == links
    assert subprocess.run(["ip", "netns"], capture_output=True, check=True).stdout == names
