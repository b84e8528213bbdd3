"""Best of N on the command line: who is asked what, what is drawn, and what the files are called."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ifmesh import cli_candidates
from ifmesh.cli import run
from ifmesh.protocol import ClientMessage, Failed, Submit, ToClient
from ifmesh.request import Request, Settings
from tests.unit.stand_in import Rule, StandIn, heard, kept


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.chdir(tmp_path)
    made = StandIn()
    monkeypatch.setenv("IFMESH_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("IFMESH_COORDINATOR", made.url)
    yield made
    made.close()


def asked(mesh: StandIn) -> dict[str, Request]:
    """By job, in the order in which they were asked for."""
    return {message.job: message.request for message in heard(mesh, Submit) if isinstance(message, Submit)}


def failing(*seeds: int) -> Rule:
    def rule(message: ClientMessage) -> list[ToClient] | None:
        if isinstance(message, Submit) and message.request.seed in seeds:
            return [Failed(message.job, "error", "stage_one", "stage_one-0", "boom")]
        return None

    return rule


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2,5", (2, 5)), ("5, 2\n", (5, 2)), (" 3 ", (3,)), ("3 3,3", (3,)), ("none", ()), ("1 2 3 5", (1, 2, 3, 5))],
)
def test_an_answer(text: str, numbers: tuple[int, ...]) -> None:
    assert cli_candidates.chosen(text, (1, 2, 3, 5)) == numbers


@pytest.mark.parametrize("text", ["", "\n", "0", "4", "6", "-1", "2.5", "two", "2,none", "²", "1\x00"])
def test_no_answer(text: str) -> None:
    with pytest.raises(ValueError, match="one of 1, 2, 3, 5, as in 2,5; or none"):
        cli_candidates.chosen(text, (1, 2, 3, 5))


def test_those_that_are_kept_go_on(mesh: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--seed", "7", "--negative", "blur", "--steps", "I=9,II=4", "--priority", "3", "--keep", "2,4")
    assert run(["submit", "a fox", "--candidates", "4", "-o", "fox.webp", *flags]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["fox-2.webp", "fox-4.webp"]
    assert files(tmp_path) == ["fox-2.webp", "fox-4.webp", "fox-candidates.png"]
    jobs = asked(mesh)
    drawn, rest = list(jobs.items())[:4], list(jobs.values())[4:]
    assert [request.seed for _, request in drawn] == [7, 8, 9, 10]
    settings = {"stage_one": Settings(steps=9), "stage_two": Settings(steps=4)}
    for number, (job, request) in enumerate(drawn, 1):
        assert (request.last_stage, request.keep, request.settings, request.format) == ("stage_one", 3600.0, settings, "png")
        assert f"{number:>3}  seed {request.seed}  job {job}" in err
    assert "fox-candidates.png shows them" in err
    assert "ifmesh proceed" not in err
    for request, (job, _) in zip(rest, (drawn[1], drawn[3]), strict=True):
        assert (request.first_stage, request.last_stage, request.upload) == ("stage_two", "upscaler", kept(job))
        assert (request.prompt, request.negative, request.priority, request.format) == ("a fox", "blur", 3, "webp")
        assert request.settings == {"stage_two": Settings(steps=4)}
        assert not request.keep


def test_one_alone_has_the_whole_name(mesh: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--size", "256", "--stages-dir", "stages", "--keep-for", "60")
    assert run(["submit", "a fox", "--candidates", "2", "-o", "fox.png", "--keep", "2", *flags]) == 0
    assert capsys.readouterr().out == "fox.png\n"
    assert files(tmp_path) == ["fox-candidates.png", "fox.png"]
    first, second, last = asked(mesh)
    assert files(tmp_path / "stages") == sorted([f"{first}-64.png", f"{second}-64.png", f"{last}-64.png", f"{last}-256.png"])
    assert [request.keep for request in asked(mesh).values()] == [60.0, 60.0, 0.0]
    assert asked(mesh)[last].last_stage == "stage_two"


@pytest.mark.parametrize("flags", [(), ("--keep", "none")])
def test_without_an_answer_it_is_said_how_to_go_on(
    flags: tuple[str, ...], mesh: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", "a fox", "--candidates", "3", "-o", "a fox.png", *flags]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == list(asked(mesh))
    assert len(asked(mesh)) == 3
    assert err.splitlines()[-2:] == [
        "a fox-candidates.png shows them",
        "to go on later, within 3600 s: ifmesh proceed JOB -o 'a fox.png'",
    ]
    assert files(tmp_path) == ["a fox-candidates.png"]


def test_without_a_name_the_jobs_give_theirs(mesh: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "a fox", "--candidates", "2", "--keep", "1,2", "--format", "jpeg"]) == 0
    first, _, third, fourth = asked(mesh)
    assert capsys.readouterr().out.splitlines() == [f"{third}.jpg", f"{fourth}.jpg"]
    assert files(tmp_path) == sorted([f"{first}-candidates.png", f"{third}.jpg", f"{fourth}.jpg"])


def test_the_sheet_shows_all(mesh: StandIn, tmp_path: Path) -> None:
    assert run(["submit", "a fox", "--candidates", "9", "-o", "fox.png", "--keep", "none"]) == 0
    with Image.open(tmp_path / "fox-candidates.png") as sheet:
        assert sheet.size == (1352, 1208)  # four in a row, three rows


def test_json_tells_of_the_candidates_and_of_the_pictures(mesh: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    mesh.rules.append(failing(8))
    assert run(["submit", "a fox", "--candidates", "3", "--seed", "7", "-o", "fox.png", "--keep", "3", "--json"]) == 6
    failed, candidates, picture = map(json.loads, capsys.readouterr().out.splitlines())
    jobs = list(asked(mesh))
    assert (failed["candidate"], failed["job"], failed["seed"], "boom" in failed["error"]) == (2, jobs[1], 8, True)
    told = [{"candidate": n, "job": jobs[n - 1], "seed": 6 + n, "flagged": False} for n in (1, 3)]
    assert candidates == {"sheet": "fox-candidates.png", "candidates": told, "keep": [3]}
    assert (picture["candidate"], picture["job"], picture["seed"], picture["path"]) == (3, jobs[3], 9, "fox.png")


@pytest.mark.parametrize(("seeds", "keep", "code", "out"), [((7, 8, 9), "1", 5, ""), ((8,), "2", 5, ""), ((8,), "2,3", 6, "fox-3.png\n")])
def test_a_candidate_that_fails(
    seeds: tuple[int, ...], keep: str, code: int, out: str, mesh: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh.rules.append(failing(*seeds))
    assert run(["submit", "a fox", "--candidates", "3", "--seed", "7", "-o", "fox.png", "--keep", keep]) == code
    told = capsys.readouterr()
    assert told.out == out
    assert "ifmesh: candidate 2: job " in told.err
    assert "failed in stage_one" in told.err


def test_candidates_that_nobody_waits_for(mesh: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "a fox", "--candidates", "3", "--no-wait"]) == 0
    assert capsys.readouterr().out.splitlines() == list(asked(mesh))
    assert [(request.last_stage, request.keep) for request in asked(mesh).values()] == [("stage_one", 3600.0)] * 3
    assert files(tmp_path) == []


def typed(*answers: bytes, silent: bool = False) -> tuple[int, bytes, list[str]]:
    """What a terminal shows when these keys are typed at its questions: exit code, text, and stdout, which is no terminal.

    silent: no keys can be typed.
    """
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ifmesh", "submit", "a fox", "--candidates", "3", "--seed", "7", "-o", "fox.png"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL if silent else theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
    ) as process:
        os.close(theirs)
        left, said = list(answers), b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # EIO: the process has closed it
                break
            if left and said.count(b"continue with which?") > len(answers) - len(left):
                os.write(ours, left.pop(0))
        os.close(ours)
        assert process.stdout
        return process.wait(30), said, process.stdout.read().splitlines()


def test_a_wrong_answer_is_asked_again(mesh: StandIn) -> None:
    code, said, out = typed(b"4\n", b"\n", b"3, 1\n")
    assert (code, out) == (0, ["fox-3.png", "fox-1.png"])
    assert b"'4': from 1 to 3, as in 2,5; or none" in said
    assert said.count(b"continue with which? (e.g. 2,5; none) ") == 3
    assert [request.seed for request in asked(mesh).values()] == [7, 8, 9, 9, 7]


@pytest.mark.parametrize("answer", [b"none\n", b"\x04"])
def test_none_is_an_answer(answer: bytes, mesh: StandIn) -> None:
    """So is the end of the input, Ctrl-D."""
    code, said, out = typed(answer)
    assert (code, out, len(asked(mesh))) == (0, [], 3)
    assert b"to go on later, within 3600 s: ifmesh proceed JOB -o fox.png" in said
    assert said.endswith(b"\r\n")


def test_who_cannot_answer_is_not_asked(mesh: StandIn) -> None:
    code, said, out = typed(silent=True)
    assert (code, out) == (0, list(asked(mesh)))
    assert b"continue with which?" not in said


def test_who_goes_on_from_nothing_is_told(mesh: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["proceed", "gone"]) == 2
    assert capsys.readouterr().err == "ifmesh: job: 'gone': no such job\n"
    assert run(["submit", "a fox", "--size", "64", "--no-wait"]) == 0
    job = capsys.readouterr().out.strip()
    assert run(["proceed", job]) == 2
    remedy = "ask for it with --candidates, or with --size 64 --keep-for 3600 (seconds)"
    assert capsys.readouterr().err.splitlines()[-1] == f"ifmesh: JOB: '{job}': was not kept: {remedy}"
