"""[hosts.NAME]: read strictly, turned into commands, and into what the host itself is sent."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ifmesh import boarding, kept, shipped
from ifmesh.config import Config, check_hosts, read
from ifmesh.errors import Misconfigured
from ifmesh.hosted import Order
from ifmesh.hosts import Host
from ifmesh.request import STAGES

ROOT = Path(__file__).parents[2]
TWO = """
[mesh]
listen = "tcp://10.0.0.1:7640"
silence = 7
[services.stage_two]
copies = 1
options = { slots = 2, note = "a \\u0022quoted\\u0022 \\u007f fox 🦊" }
[hosts.two]
address = "10.0.0.2"
devices = ["cuda:0", "cuda:1"]
copies = { stage_one = 3, stage_two = 1, guard = 0 }
[hosts.three]
address = "localhost"
copies = { guard = 1 }
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def written(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return written


def plain(path: Path | None = None, **overrides: object) -> Config:
    return read(path, {"HOME": "/users/anna"}, {key.replace("__", "."): value for key, value in overrides.items()})


def test_every_key_is_shown_and_explained() -> None:
    text = (ROOT / "deploy" / "ifmesh.toml").read_text()
    shown = "\n".join(line.removeprefix("# ") for line in text[text.index("# [hosts.") :].splitlines())
    table = tomllib.loads(shown)["hosts"]["gpu1"]
    assert list(table) == [key.name for key in fields(Host)]
    assert plain(ROOT / "deploy" / "ifmesh.toml").hosts == {}


def test_what_runs_on_a_host_does_not_run_here_unless_it_was_said(write: Write) -> None:
    config = plain(write(TWO))
    assert {stage: config.copies(stage) for stage in STAGES} == {"encoder": 1, "stage_one": 0, "stage_two": 1, "upscaler": 1, "guard": 0}
    assert [config.copies(stage, "two") for stage in STAGES] == [0, 3, 1, 0, 0]
    assert plain(write(TWO), services__stage_one__copies="2").copies("stage_one") == 2


def test_flags_reach_a_host_too(write: Write) -> None:
    config = plain(
        write(TWO), hosts__two__copies__guard="2", hosts__two__environment__A="1", hosts__two__devices="cpu, cpu", hosts__two__port="9"
    )
    two = config.hosts["two"]
    assert (two.copies["guard"], two.environment, two.devices, two.port) == (2, {"A": "1"}, ("cpu", "cpu"), 9)
    assert plain(write(TWO), hosts="").hosts == {}
    assert plain(write(TWO), hosts="").copies("guard") == 1


WRONG = {
    "hosts = 3": ("hosts", "tables, [hosts.NAME]"),
    "hosts.two = 3": ("hosts.two", "a table"),
    "hosts.'10.0.0.2' = {}": ("hosts.10.0.0.2", "a name of letters"),
    "hosts.two = {copies = {guard = 1}}": ("hosts.two.address: missing",),
    "hosts.two = {address = 'a', copies = {guard = 1}}\nhosts.tow = {copies = {guard = 1}}": ("hosts.tow.address", "did you mean two?"),
    "hosts.two = {address = 'a'}": ("hosts.two.copies: missing", "copies = { stage_one = 2 }", "copies = {}"),
    "hosts.two = {address = 'a', copies = {stage_on = 1}}": ("hosts.two.copies.stage_on: no such stage", "did you mean stage_one?"),
    "hosts.two = {address = 'a', copies = {guard = 257}}": ("hosts.two.copies.guard: 257", "from 0 to 256"),
    "hosts.two = {address = 'a', devices = ['gpu'], copies = {guard = 1}}": ("hosts.two.devices: 'gpu'", "cuda:N"),
    "hosts.two = {address = 'anna@a', copies = {guard = 1}}": ("hosts.two.address: 'anna@a'", "keys of their own"),
    "hosts.two = {address = 'a', port = 0, copies = {guard = 1}}": ("hosts.two.port: 0", "from 1 to 65535"),
    "hosts.two = {address = 'a', key = 3, copies = {guard = 1}}": ("hosts.two.key: 3", "name of a file"),
    "hosts.two = {address = 'a', python = 'my python', copies = {guard = 1}}": ("hosts.two.python: 'my python'", "without spaces"),
    "hosts.two = {address = 'a', advertise = 'gpu', copies = {guard = 1}}": ("hosts.two.advertise: 'gpu'", "in numbers"),
    "hosts.two = {address = 'a', environment = {'A B' = '1'}, copies = {guard = 1}}": ("hosts.two.environment: 'A B'", "variable"),
    "hosts.two = {address = 'a', adress = 'b', copies = {guard = 1}}": ("hosts.two.adress", "address"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_host_is_an_error_that_says_what_to_do(write: Write, text: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        plain(write(text))
    assert [part for part in WRONG[text] if part not in str(caught.value)] == [], str(caught.value)


def test_a_wrong_flag_for_a_host_is_an_error(write: Write) -> None:
    with pytest.raises(Misconfigured, match=r"--set hosts.two.adress: no such key of a host; there are: address, user, port"):
        plain(write(TWO), hosts__two__adress="x")
    with pytest.raises(Misconfigured, match=r"--set hosts.two.copies.guard: 'many': a whole number"):
        plain(write(TWO), hosts__two__copies__guard="many")
    with pytest.raises(Misconfigured, match=r"hosts\.tow\.address: missing.*did you mean two\?"):
        plain(write(TWO), hosts__tow__copies__guard="1")


def test_a_coordinator_on_loopback_is_out_of_reach_of_other_machines(write: Write) -> None:
    check_hosts(plain(write(TWO)))
    with pytest.raises(Misconfigured, match=r"mesh\.listen: 'tcp://127\.0\.0\.1:7640': the hosts two cannot reach that: .*0\.0\.0\.0"):
        check_hosts(plain(write(TWO), mesh__listen="tcp://127.0.0.1:7640"))
    check_hosts(plain(write(TWO.replace('"10.0.0.2"', '"127.0.0.1"')), mesh__listen="tcp://127.0.0.1:7640"))


def test_one_command_for_each_host(write: Write) -> None:
    config = plain(write(TWO))
    assert [(s.name, s.host, s.command) for s in kept.hosts(config, ("--config", "c"))] == [
        (name, name, ("remote", name, "--tied", "--config", "c")) for name in ("two", "three")
    ]
    assert kept.hosts(plain(write("hosts.two = {address = 'a', copies = {}}")), ()) == []
    assert [s.name for s in kept.services(config, ())] == ["coordinator", "encoder-0", "stage_two-0", "upscaler-0"]


def test_a_host_reads_what_it_is_sent(write: Write) -> None:
    """Everything that decides what is computed is the same there; what is each machine's own is not sent."""
    ours = plain(write(TWO), mesh__state="/here", mesh__identity="", mesh__drain="5")
    theirs = plain(write(shipped.toml(ours, "two", "tcp://10.0.0.1:7640")))
    assert theirs.mesh == replace(ours.mesh, state=theirs.mesh.state, listen=plain().mesh.listen, coordinator="tcp://10.0.0.1:7640")
    assert theirs.cascade == ours.cascade
    assert {s: replace(service, copies=0) for s, service in ours.services.items()} == theirs.services
    typed = [" ".join(service.command) for service in kept.services(theirs, (), "two")]
    assert typed == [
        "worker stage_one --name stage_one-0@two --tied --device cuda:0",
        "worker stage_one --name stage_one-1@two --tied --device cuda:1",
        "worker stage_one --name stage_one-2@two --tied --device cuda:0",
        "worker stage_two --name stage_two-0@two --tied --device cuda:1",
    ]


def test_the_address_that_a_host_is_to_advertise_is_sent(write: Write) -> None:
    ours = plain(write(TWO), hosts__two__advertise="192.168.0.2", mesh__address="10.0.0.1")
    assert plain(write(shipped.toml(ours, "two", "tcp://10.0.0.1:1"))).mesh.address == "192.168.0.2"
    assert plain(write(shipped.toml(ours, "three", "tcp://10.0.0.1:1"))).mesh.address == ""


def test_nothing_that_a_host_is_told_is_an_argument(tmp_path: Path) -> None:
    """The command is the same for every host and mesh; it becomes a Python with the environment that it was told."""
    spoken = "import os, sys; print(os.environ['FOX'], os.environ['PYTHONSAFEPATH'], sys.argv, sys.orig_argv[1:])"
    first, _ = boarding.lines("two", {"FOX": 'it\'s "red" \\ 🦊'}).splitlines(keepends=True)
    told = first + ascii(spoken).encode() + b"\n" + Order("two", "mesh", "url", "toml", {"guard": "secret"}).line()
    done = subprocess.run(["sh", "-c", boarding.command(sys.executable)], input=told, capture_output=True, timeout=60, check=True)
    assert done.stdout.decode() == f"it's \"red\" \\ 🦊 1 ['-c'] {['-c', boarding.READ]}\n"
    assert b"secret" in told
