"""`ifmesh doctor` on one machine: each fault is real, and is named with its remedy.  Those of a network are in tests/hosts."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ifmesh import cli, identity
from ifmesh.cli_doctor import findings
from ifmesh.config import Config
from ifmesh.doctor import door
from ifmesh.doctor.finding import Finding
from ifmesh.protocol import VERSION
from ifmesh.request import STAGES
from tests.mesh.conftest import Make
from tests.mesh.kit import Mesh

SOME = ("encoder", "stage_one", "guard")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("calm")) as mesh:
        mesh.all(SOME)
        yield mesh


def outside(mesh: Mesh, tmp_path: Path, invite: identity.Identity) -> Config:
    """Configured as somebody elsewhere is, with this invite."""
    identity.write(tmp_path / "me.key", invite)
    told = mesh.config
    return replace(told, mesh=replace(told.mesh, state=tmp_path / "mine", identity=tmp_path / "me.key", coordinator=told.control()))


def broken(told: Config) -> Finding:
    """The only one that is."""
    found = list(findings(told))
    (bad,) = [finding for finding in found if not finding.ok]
    assert bad is found[-1], "what is beyond it was tried"
    assert bad.remedy
    return bad


def test_every_hop_of_a_mesh_is_tried(calm: Mesh) -> None:
    found = {finding.hop: finding for finding in findings(calm.config)}
    bad = {hop: finding.said for hop, finding in found.items() if not finding.ok}
    assert bad == {f"stage {stage}": "no worker" for stage in STAGES if stage not in SOME}
    assert list(found)[:4] == [door.WHO, door.TCP, door.HANDSHAKE, door.SPEECH]
    links = {hop for hop in found if "-0" in hop and "->" in hop}
    assert links == {
        *(f"coordinator -> {stage}-0" for stage in SOME),
        *("encoder-0 -> stage_one-0", "stage_one-0 -> guard-0"),
        *(f"{stage}-0 -> coordinator" for stage in SOME),
    }
    assert all("ipc, there and back in" in found[hop].said for hop in links)
    assert f"version {VERSION}" in found[door.SPEECH].said


def test_it_is_shown_and_the_exit_code_tells(calm: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--state", str(calm.state), "--set", "cascade.toy=true"]
    assert cli.run(["doctor", *flags]) == 1  # two stages have no worker
    shown = capsys.readouterr()
    assert "ok     client -> coordinator, tcp: tcp://127.0.0.1:" in shown.out
    assert "BROKEN stage upscaler: no worker\n       -> `ifmesh worker upscaler`" in shown.out
    assert "2 of 18 are broken" in shown.err
    assert cli.run(["doctor", *flags, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [one["said"] for one in told["findings"] if one["hop"] == "stage upscaler" and one["remedy"]] == ["no worker"]
    assert cli.run(["doctor", "--set", "mesh.stat=x"]) == 3
    assert cli.run(["doctor", "--nonsense"]) == 2


def test_who_is_no_operator_is_told_what_was_not_tried(calm: Mesh, tmp_path: Path) -> None:
    found = list(findings(outside(calm, tmp_path, calm.invite("eve"))))
    assert found[-1].hop == "links"
    assert "not tried: for that, be an operator, not client" in found[-1].said


def test_a_closed_port(calm: Mesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    told = calm.config
    bad = broken(replace(told, mesh=replace(told.mesh, coordinator=f"tcp://127.0.0.1:{port}")))
    assert bad.hop == door.TCP
    assert f"tcp://127.0.0.1:{port}: the port is closed" in bad.said
    assert "ifmesh up" in bad.remedy


def test_a_key_that_is_not_known_there(calm: Mesh, tmp_path: Path) -> None:
    stranger = replace(calm.invite("ann"), keys=identity.generate())
    bad = broken(outside(calm, tmp_path, stranger))
    assert bad.hop == door.HANDSHAKE
    assert f"this key is not authorised there: {stranger.keys.public} (ann)" in bad.said
    assert bad.remedy.startswith("the wrong key")
    assert stranger.keys.secret not in f"{bad}"


def test_the_key_of_another_coordinator(calm: Mesh, tmp_path: Path) -> None:
    bad = broken(outside(calm, tmp_path, replace(calm.invite("bea"), server=identity.generate().public)))
    assert bad.hop == door.HANDSHAKE
    assert "it is not the one whose key was expected there" in bad.said
    assert "that of the coordinator is not the one that came with bea" in bad.remedy


def test_nobody_has_a_key_there(mesh: Make, calm: Mesh, tmp_path: Path) -> None:
    """And without keys on both sides it works."""
    clear = mesh(mesh__curve="false")
    clear.coordinator()
    mine = outside(clear, tmp_path, calm.invite("cid"))
    bad = broken(replace(mine, mesh=replace(mine.mesh, curve=True)))
    assert bad.hop == door.HANDSHAKE
    assert "mesh.curve" in bad.said
    found = {finding.hop: finding for finding in findings(clear.config)}
    assert found[door.SPEECH].ok
    assert "no keys" in found[door.WHO].said


def test_something_else_listens_there(calm: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "LIMIT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        invite = replace(calm.invite("dan"), coordinator=f"tcp://127.0.0.1:{other.getsockname()[1]}")
        mine = outside(calm, tmp_path, invite)
        bad = broken(replace(mine, mesh=replace(mine.mesh, coordinator=invite.coordinator)))
    assert bad.hop == door.HANDSHAKE
    assert "something else listens there" in bad.remedy


def test_another_version_of_the_protocol(mesh: Make) -> None:
    one = mesh()
    one.coordinator(program=("tests.mesh.newer",))
    bad = broken(one.config)
    assert bad.hop == door.SPEECH
    assert f"version {VERSION + 1}" in bad.said
    assert f"{VERSION}" in bad.said
    assert "the same ifmesh on both sides" in bad.remedy


def test_no_mesh_at_all(tmp_path: Path) -> None:
    with Mesh(tmp_path) as nothing:
        bad = broken(nothing.config)
    assert bad.hop == door.WHO
    assert "no mesh in" in bad.said
    assert "ifmesh up" in bad.remedy


# ---- checkpoints


@pytest.fixture
def cascade(tmp_path: Path) -> Path:
    """A folder in the layout that the workers read; the weights are only looked for."""
    made = tmp_path / "cascade"
    for repo, parts in {"one": ("text_encoder", "unet", "safety_checker"), "two": ("unet",), "three": ("unet",)}.items():
        for part in parts:
            (made / repo / part).mkdir(parents=True)
            (made / repo / part / "model.safetensors").write_bytes(b"x")
    told = {stage: {"repo": repo} for stage, repo in (("stage_one", "one"), ("stage_two", "two"), ("upscaler", "three"))}
    (made / "cascade.json").write_text(json.dumps(told))
    return made


def loads(tmp_path: Path, cascade: Path) -> dict[str, Finding]:
    with Mesh(tmp_path / "mesh", {"cascade.toy": "false", "cascade.path": str(cascade)}) as mesh:
        return {finding.hop: finding for finding in findings(mesh.config) if finding.hop.startswith("checkpoint")}


def test_checkpoints_that_are_there(tmp_path: Path, cascade: Path) -> None:
    found = loads(tmp_path, cascade)
    assert list(found) == [f"checkpoint of {stage}" for stage in STAGES]
    assert all(finding.ok for finding in found.values())


def test_a_missing_checkpoint(tmp_path: Path, cascade: Path) -> None:
    (cascade / "two" / "unet" / "model.safetensors").unlink()
    shutil.rmtree(cascade / "three")
    bad = {hop: finding for hop, finding in loads(tmp_path, cascade).items() if not finding.ok}
    assert list(bad) == ["checkpoint of stage_two", "checkpoint of upscaler"]
    assert bad["checkpoint of stage_two"].said == f"{cascade / 'two' / 'unet'}: no weights"
    assert bad["checkpoint of upscaler"].said == f"{cascade / 'three'}: no such folder"
    assert "cascade.path" in bad["checkpoint of upscaler"].remedy


def test_no_cascade_there(tmp_path: Path) -> None:
    (finding,) = loads(tmp_path, tmp_path / "nothing").values()
    assert not finding.ok
    assert "no folder with a cascade.json" in f"{finding}"
