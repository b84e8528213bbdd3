"""What people ask for by mistake: each time a readable line, an exit code, and nothing drawn or started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest
import zmq

from ifmesh import BadRequest, Client, Request, Settings, authorized
from ifmesh.protocol import VERSION, Hello, Refused, Submit
from ifmesh.request import STAGES
from ifmesh.wire import TO_WORKER
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh

Done = subprocess.CompletedProcess[str]
FOX = Request("a fox", seed=7)
NOBODY = "tcp://127.0.0.1:1"


def ifmesh(folder: Path, *arguments: str, **variables: str) -> Done:
    """`ifmesh ARGUMENTS` in this folder, with a state folder there."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("IFMESH")} | {"IFMESH_STATE": str(folder / "state")} | variables
    command = [sys.executable, "-m", "ifmesh", *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False)


def refused(done: Done, code: int, *said: str) -> str:
    """What it said, on one line (behind click's usage, where the use was wrong); no data, no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 or lines[0].startswith("Usage: "), done.stderr
    for words in said:
        assert words in lines[-1]
    return lines[-1]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One whole mesh for all that must not disturb it."""
    with Mesh(tmp_path_factory.mktemp("calm")) as mesh:
        mesh.all()
        yield mesh


# ---- the request


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["", "--json"], ["prompt: '': say what to draw"]),
        (["x" * 2001], ["prompt: 'xxx", "2001 characters; at most 2000"]),
        (["a fox", "--size", "512"], ["'--size'", "'64', '256', '1024'"]),
        (["a fox", "--seed", "-1"], ["'--seed'", "-1", "0<=x<="]),
        (["a fox", "--seed", str(2**63)], ["'--seed'", "0<=x<="]),
        (["a fox", "--seed", "seven"], ["'--seed'", "'seven' is not a valid integer"]),
        (["a fox", "--steps", "encoder=5"], ["--steps", "'encoder'", "I, II or x4"]),
    ],
)
def test_a_wrong_submit_is_said_in_one_line(calm: Mesh, tmp_path: Path, flags: list[str], said: list[str]) -> None:
    refused(ifmesh(tmp_path, "submit", *flags, *calm.where), 2, *said)
    assert not list(tmp_path.glob("*.png"))


BAD: dict[str, tuple[Request, str]] = {
    "an empty prompt": (replace(FOX, prompt=" \n"), "prompt"),
    "a long prompt": (replace(FOX, prompt="x" * 2001), "prompt"),
    "a prompt of control characters": (replace(FOX, prompt="\0fox"), "prompt"),
    "a long negative prompt": (replace(FOX, negative="x" * 2001), "negative"),
    "an unknown task": (replace(FOX, task="paint"), "task"),
    "no source to vary": (replace(FOX, task="vary"), "source"),
    "a strength for what has no source": (replace(FOX, settings={"stage_one": Settings(strength=0.5)}), "settings.stage_one.strength"),
    "an unknown last stage": (replace(FOX, last_stage="stage_three"), "last_stage"),
    "an unknown first stage": (replace(FOX, first_stage="nonsense"), "first_stage"),
    "settings for an unknown stage": (replace(FOX, settings={"stage_three": Settings(steps=3)}), "settings"),
    "settings for a stage that has none": (replace(FOX, settings={"guard": Settings(steps=3)}), "settings"),
    "no steps": (replace(FOX, settings={"stage_one": Settings(steps=0)}), "settings.stage_one.steps"),
    "a negative seed": (replace(FOX, seed=-1), "seed"),
    "an odd width": (replace(FOX, width=63), "width"),
    "a deadline in the past": (replace(FOX, deadline=-1.0), "deadline"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_request_is_refused_on_both_sides(calm: Mesh, what: str) -> None:
    """The client says so at once; and a client that does not check is refused by the coordinator, with the same words."""
    request, field = BAD[what]
    with Client(state=calm.state) as client, pytest.raises(BadRequest) as caught:
        client.ask(request)
    assert caught.value.field == field
    with calm.speaker() as rude:
        rude.submit("rude", request)
        answer = rude.until(Refused)
        assert (answer.job, answer.reason, answer.field) == ("rude", "invalid", field)
        assert answer.detail == str(caught.value)
        assert rude.books().jobs == ()


@pytest.mark.parametrize("job", ["", "a b", "../../etc/passwd", "ä", "x" * 65])
def test_a_wrong_job_id_is_refused_on_both_sides(calm: Mesh, job: str) -> None:
    with Client(state=calm.state) as client:
        with pytest.raises(BadRequest, match="1 to 64 letters"):
            client.ask(FOX, job)
        with pytest.raises(BadRequest, match="1 to 64 letters"):
            client.job(job)
    with calm.speaker() as rude:
        rude.send(Submit(job, FOX))
        assert rude.until(Refused).reason == "invalid"


def test_an_unknown_job_is_said(calm: Mesh, tmp_path: Path) -> None:
    where = calm.where
    for command in (["show"], ["cancel"], ["show", "-o", "out.png"], ["show", "--json"]):
        refused(ifmesh(tmp_path, *command, "nope", *where), 2, "job: 'nope': no such job")
    refused(ifmesh(tmp_path, "show", "no such id", *where), 2, "job: 'no such id': no such job")


# ---- where to write


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("gone/out.png", "gone/out.png: no folder gone"),
        (".", "the name of a file, as in out.png"),
        ("out", "the name of a file, as in out.png"),
        ("out.xyz", "no picture format to write has the suffix '.xyz'"),
        ("out.psd", "no picture format to write has the suffix '.psd'"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_drawing(calm: Mesh, tmp_path: Path, target: str, said: str) -> None:
    for command in ("submit", "show"):
        refused(ifmesh(tmp_path, command, "fox", "-o", target, *calm.where), 2, "--out", said)


def test_a_folder_that_is_read_only_is_said_before_drawing(calm: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("root may write anywhere")
    refused(ifmesh(tmp_path, "submit", "fox", "-o", "kept/out.png", *calm.where), 2, "--out", "kept/out.png")


def test_a_full_disk_is_said_with_the_way_back(calm: Mesh, tmp_path: Path) -> None:
    (tmp_path / "out.png").symlink_to("/dev/full")
    where = calm.where
    done = ifmesh(tmp_path, "submit", "a fox", "--size", "64", "-o", "out.png", *where)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "out.png" in last
    assert "No space left on device" in last
    job = last.partition("ifmesh show ")[2].split()[0]
    again = ifmesh(tmp_path, "show", job, "-o", "other.png", *where)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "other.png").exists()


# ---- configuration


@pytest.mark.parametrize("command", [["ps"], ["submit", "a fox"], ["up", "--toy"], ["worker", "guard"], ["coordinator"]])
def test_an_unknown_key_names_the_nearest(tmp_path: Path, command: list[str]) -> None:
    """In the file, in a variable, in a flag."""
    refused(ifmesh(tmp_path, *command, "--set", "mesh.max_job=3"), 3, "--set mesh.max_job: no such key; did you mean mesh.max_jobs?")
    variable = ifmesh(tmp_path, *command, IFMESH_SERVICES_STAGE_ON_COPIES="2")
    refused(variable, 3, "IFMESH_SERVICES_STAGE_ON_COPIES: no such setting; did you mean IFMESH_SERVICES_STAGE_ONE_COPIES?")
    (tmp_path / "ifmesh.toml").write_text("[services.stage_three]\ncopies = 2\n")
    refused(ifmesh(tmp_path, *command), 3, "services.stage_three: no such section; did you mean services.stage_")


def test_an_unknown_stage_is_said(tmp_path: Path) -> None:
    refused(ifmesh(tmp_path, "worker", "nonsense"), 2, "'nonsense' is not one of", *STAGES)
    refused(ifmesh(tmp_path, "up", "--toy", "--copies", "nonsense=2"), 2, "'nonsense=2'", *STAGES)


def test_a_missing_cascade_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        for command in (["up", "--detach", "--wait"], ["up"], ["worker", "stage_one"]):
            said = refused(ifmesh(tmp_path, *command, "--cascade", name), 3, "cascade.path:", str(tmp_path / name), "cascade.json")
            assert "if-xl" in said
    assert not (tmp_path / "state" / "up.json").exists()


# ---- who is there


def test_where_no_mesh_ever_was_it_is_said_at_once(tmp_path: Path) -> None:
    refused(ifmesh(tmp_path, "ps", "--ready"), 4, str(tmp_path / "state"), "ifmesh up", "ifmesh join")
    refused(ifmesh(tmp_path, "submit", "fox", "--coordinator", NOBODY), 3, "operator.key: no such file", "--identity FILE")


def test_nobody_there_names_the_address_and_the_remedy(tmp_path: Path) -> None:
    authorized.prepare(tmp_path / "state")
    environ = os.environ | {"IFMESH_STATE": str(tmp_path / "state")}
    every = [["ps"], ["ps", "--ready"], ["submit", "a fox"], ["show", "j"], ["cancel", "j"]]
    all_at_once = [
        subprocess.Popen(
            [sys.executable, "-m", "ifmesh", *arguments, "--coordinator", NOBODY],
            cwd=tmp_path,
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for arguments in every
    ]
    for process in all_at_once:
        out, err = process.communicate(timeout=LIMIT)
        refused(subprocess.CompletedProcess(process.args, process.returncode, out, err), 4, NOBODY, "ifmesh up")


def test_no_worker_for_a_stage(mesh: Make, tmp_path: Path) -> None:
    """The job is taken; what is missing is said by submit and by ps; and when it comes, the job is drawn."""
    one = mesh()
    one.all(("encoder", "guard"))
    where = one.where
    done = ifmesh(tmp_path, "submit", "a fox", "--size", "256", "--no-wait", *where)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "no worker for stage_one, stage_two: the job will wait; start `ifmesh worker stage_one` and `ifmesh worker stage_two` "
        "(or all with `ifmesh up`)\n"
    )
    ready = ifmesh(tmp_path, "ps", "--ready", *where)
    assert ready.returncode == 4
    assert ready.stderr == "no ready worker for stage_one, stage_two, upscaler\n"
    assert ifmesh(tmp_path, "ps", *where).returncode == 0
    one.worker("stage_one")
    one.worker("stage_two")
    with one.speaker() as speaker:
        one.ready(speaker, "stage_one-0", "stage_two-0")
    shown = ifmesh(tmp_path, "show", done.stdout.strip(), "-o", "out.png", *where)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "out.png").exists()


def test_what_runs_already_is_said(calm: Mesh, tmp_path: Path) -> None:
    """A second coordinator on the same journal, and on the same port."""
    state, url = str(calm.state), calm.config.control()
    second = ifmesh(tmp_path, "coordinator", "--listen", "tcp://127.0.0.1:0", IFMESH_STATE=state)
    refused(second, 3, "a coordinator runs here already", f"pid {calm.processes[0].pid}", "mesh.state")
    refused(ifmesh(tmp_path, "coordinator", "--listen", url), 3, url, "this address is taken", "mesh.listen")
    with calm.speaker() as speaker:
        speaker.submit("still-here", replace(FOX, last_stage="stage_one"))
        speaker.finished("still-here")


# ---- another version


def strange_coordinator(folder: Path, answer: bytes, *arguments: str) -> Done:
    """The command, against a coordinator that answers everything with this."""
    with zmq.Context() as ctx, ctx.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        environ = os.environ | {"IFMESH_STATE": str(folder / "state"), "IFMESH_MESH_CURVE": "false"}
        command = [sys.executable, "-m", "ifmesh", *arguments, "--coordinator", f"tcp://127.0.0.1:{port}"]
        with subprocess.Popen(command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            watched = os.pidfd_open(process.pid)
            poller = zmq.Poller()
            poller.register(router, zmq.POLLIN)
            poller.register(watched, zmq.POLLIN)
            while router in (ready := dict(poller.poll(int(LIMIT * 1000)))) and watched not in ready:
                peer, *_ = router.recv_multipart()
                router.send_multipart([peer, answer])
            os.close(watched)
            out, err = process.communicate(timeout=LIMIT)
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)


OLDER = msgpack.packb({"v": 99, "is": "Welcome", "stages": ["all in one"]})


def test_a_coordinator_of_another_version_is_said(tmp_path: Path) -> None:
    for command in (["ps"], ["submit", "a fox"]):
        done = strange_coordinator(tmp_path, OLDER, *command)
        refused(done, 1, "version 99", f"version {VERSION}", "the same ifmesh on both sides")
    worker = strange_coordinator(tmp_path, OLDER, "worker", "encoder", "--toy", "--name", "encoder-0")
    assert worker.returncode == 3
    assert f"protocol version 99, this worker {VERSION}" in worker.stderr
    assert "Traceback" not in worker.stderr


@pytest.mark.parametrize("kind", ["Hi", "Hello", "Submit", "Beat"])
def test_a_peer_of_another_version_is_answered_with_both(calm: Mesh, kind: str) -> None:
    with calm.speaker() as other:
        other.say(msgpack.packb({"v": VERSION + 1, "is": kind, "more": [1, 2, 3]}))
        answer = other.until(Refused)
        assert answer.reason == "version"
        assert f"version {VERSION + 1}" in answer.detail
        assert f"version {VERSION}" in answer.detail


def test_a_worker_of_an_unknown_stage_is_refused(mesh: Make) -> None:
    """Where there are keys, there is none for such a one."""
    one = mesh(mesh__curve="false")
    one.coordinator()
    with one.speaker(name="stage_three-0.1") as other:
        other.send(Hello("stage_three", "stage_three-0.1", "stage_three-0", 1, "", "cpu", (), 1, ""))
        assert other.socket.poll(int(LIMIT * 1000))
        answer = TO_WORKER.decode(other.socket.recv())
        assert isinstance(answer, Refused)
        assert "'stage_three'" in answer.detail
        assert all(stage in answer.detail for stage in STAGES)
