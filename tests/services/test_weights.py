"""What a stage says of its weights before it is loaded is what they take when it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ifmesh_services.encoder import Encoder
from ifmesh_services.guard import Guard
from ifmesh_services.stage_one import StageOne
from ifmesh_services.stage_two import StageTwo
from ifmesh_services.upscaler import Upscaler

from ifmesh.request import STAGES
from ifmesh.stage import Setup

KINDS: dict[str, type[Any]] = dict(zip(STAGES, (Encoder, StageOne, StageTwo, Upscaler, Guard), strict=True))


def models(stage: object) -> Iterator[torch.nn.Module]:
    yield from (part for name, part in vars(stage).items() if isinstance(part, torch.nn.Module) and name != "_watermarker")


@pytest.mark.parametrize("dtype", ["", "bf16", "fp16"])
@pytest.mark.parametrize("name", STAGES)
def test_it_weighs_what_it_says(nano16: Path, name: str, dtype: str) -> None:
    setup = Setup(str(nano16), dtype=dtype)
    stage = KINDS[name]()
    said = stage.weighs(setup)
    stage.load(setup)
    held = sum(tensor.nbytes for model in models(stage) for tensor in {t.data_ptr(): t for t in model.parameters()}.values())
    assert held <= said * 1.01
    assert said <= held * 1.1 + 4096


def test_what_is_read_layer_by_layer_weighs_nothing(nano16: Path) -> None:
    assert StageOne().weighs(Setup(str(nano16), options={"offload": "disk"})) == 0


def test_a_foreign_folder_is_told(tmp_path: Path) -> None:
    from ifmesh.errors import Misconfigured

    with pytest.raises(Misconfigured):
        StageOne().weighs(Setup(str(tmp_path)))
