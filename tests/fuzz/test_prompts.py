"""Hostile prompts: a clear BadRequest, or a job like any other; in no time, and without memory that stays."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from ifmesh_services import loading, recipes
from ifmesh_services.encoder import Encoder
from ifmesh_services.nano import builder
from transformers import CLIPTokenizer

from ifmesh import parameters, wire
from ifmesh.cascade import IF
from ifmesh.errors import BadRequest
from ifmesh.protocol import Submit
from ifmesh.request import Request
from ifmesh.stage import Setup
from ifmesh.wire import TO_COORDINATOR
from tests.fuzz.prompts import prompts

PROMPTS = prompts()
MOST_CPU = 5.0  # seconds for one of them; a ten-thousandth is usual
MOST_GROWTH = 100 << 20  # bytes


@dataclass(slots=True)
class Watch:
    """CPU seconds of each, and memory in all."""

    spent: dict[str, float] = field(default_factory=dict)
    before: int = field(default_factory=lambda: psutil.Process().memory_info().rss)

    def begin(self, name: str) -> None:
        self.spent[name] = -time.process_time()

    def end(self, name: str) -> None:
        self.spent[name] += time.process_time()

    def check(self) -> None:
        gc.collect()
        slowest = max(self.spent, key=lambda name: self.spent[name])
        assert self.spent[slowest] < MOST_CPU, f"{slowest}: {self.spent[slowest]:.1f} s of CPU"
        assert psutil.Process().memory_info().rss - self.before < MOST_GROWTH


def is_taken(request: Request, name: str) -> bool:
    try:
        IF.check(request)
    except BadRequest as error:
        said = str(error)
    else:
        return True
    assert len(said) < 400, name
    assert said.isprintable(), name  # whoever reads it in a log or a terminal is not harmed
    return False


@pytest.mark.parametrize("field", ["prompt", "negative", "style"])
def test_every_prompt_is_a_request_or_refused(field: str) -> None:
    assert len(PROMPTS) >= 200
    watch, taken = Watch(), []
    for name, text in PROMPTS.items():
        request = {
            "prompt": Request(text, 7),
            "negative": Request("a fox", 7, negative=text),
            "style": Request("a fox", 7, style=text),
        }[field]
        watch.begin(name)
        if is_taken(request, name):
            taken.append(name)
            message = Submit("job-1", request)
            assert TO_COORDINATOR.decode(TO_COORDINATOR.encode(message)) == message, name
            assert wire.unpack(Request, wire.pack(request)) == request, name
            readable = parameters.readable(request, 7, "upscaler", (1024, 1024), {"stage_one": 3})
            assert parameters.told(b"\0" * 100, readable, parameters.whole(request, 7, "upscaler", True))
        watch.end(name)
    watch.check()
    assert 50 < len(taken) < len(PROMPTS) - 50
    assert not [name for name in taken if any(c not in "\t\n\r" and (ord(c) < 32 or 127 <= ord(c) < 160) for c in PROMPTS[name])]
    assert not [name for name in taken if len(PROMPTS[name]) > 2000]


def test_what_is_taken_can_be_read_by_the_encoder_and_the_upscaler(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    cascade = tmp_path / "nano16"
    builder.build(cascade, base=16)
    encoder, watch = Encoder(), Watch()
    encoder.load(Setup(cascade=str(cascade)))
    clip = loading.tokenizer(recipes.read(str(cascade)).repos["upscaler"], CLIPTokenizer)
    for name, text in PROMPTS.items():
        request = Request(text, 7, negative=text)
        if not is_taken(request, name):
            continue
        watch.begin(name)
        encoder.admit("job-1", request, {})
        [advance] = encoder.step()
        assert advance.output is not None
        assert tuple(advance.output["embeds"].shape[:2]) == (2, 77), name
        ids = clip(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        assert tuple(ids.shape) == (1, 77), name
        watch.end(name)
    assert len(watch.spent) > 50
    watch.check()
