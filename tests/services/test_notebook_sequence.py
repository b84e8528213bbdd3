"""The published sequence, part by part, gives what diffusers' pipelines give that are all in memory; and it loads each part each time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from ifmesh_services import recipes
from ifmesh_services.bench.notebook import Notebook, asked
from ifmesh_services.nano import builder

from ifmesh import Request, Settings
from ifmesh.bench.cases import CASES, SIDE, eyes, face
from ifmesh.stage import Setup
from tests.services import oracle

FEW = {"stage_one": Settings(steps=4), "stage_two": Settings(steps=3, noise_level=40), "upscaler": Settings(steps=2)}
NAMES = {"encoder": "embeds", "stage_one": "image64", "stage_two": "image256", "upscaler": "image1024"}
TASKS: dict[str, dict[str, Any]] = {
    "generate": {},
    "vary": {"source": face()},
    "inpaint": {"source": face(), "mask": eyes()},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cascade") / "nano16"
    builder.build(made, base=16)
    return made


@pytest.mark.parametrize("task", TASKS)
def test_it_is_the_pipelines_chain(folder: Path, task: str) -> None:
    files = TASKS[task]
    notebook = Notebook(recipes.read(str(folder)), {stage: Setup(str(folder)) for stage in NAMES})
    request = Request("a red fox", 7, task, "blurry", FEW)
    theirs = oracle.chain(folder, request.prompt, request.negative, request.seed, FEW, task=task, **files)
    for turn in (1, 2):
        ours = notebook.draw(request, files.get("source"), files.get("mask"))
        assert notebook.loads == dict.fromkeys(NAMES, turn)
        for stage, name in NAMES.items():
            assert torch.equal(ours[stage], theirs[name]), f"{stage}, time {turn}"


def test_half_precision_is_read_from_its_own_files(folder: Path) -> None:
    notebook = Notebook(recipes.read(str(folder)), {stage: Setup(str(folder), dtype="fp16") for stage in NAMES})
    few = {"stage_one": Settings(steps=2)}
    request = Request("a red fox", 7, settings=few, last_stage="stage_one")
    theirs = oracle.chain(folder, request.prompt, "", 7, few, last_stage="stage_one", dtype=torch.float16)
    ours = notebook.draw(request, None, None)
    assert ours["stage_one"].dtype == torch.float16
    assert torch.equal(ours["encoder"], theirs["embeds"])
    assert torch.equal(ours["stage_one"], theirs["image64"])


def test_a_request_survives_its_way_as_json() -> None:
    request = Request(
        "a fox", 1, "inpaint", settings={"stage_one": Settings(timesteps=(999, 0))}, brings=("source", "mask"), upload="0" * 64
    )
    said = asdict(request)
    said["settings"]["stage_one"]["timesteps"] = [999, 0]
    said["brings"] = ["source", "mask"]
    assert asked(said) == request


def test_what_the_cases_begin_from_is_drawn() -> None:
    for case in CASES.values():
        assert case.mask is None or case.source is not None
        for draw, mode in ((case.source, "RGB"), (case.mask, "L")):
            if draw is not None:
                assert (draw().size, draw().mode) == ((SIDE, SIDE), mode)
    assert eyes().getextrema() == (0, 255)
