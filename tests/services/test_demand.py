"""What stages are said to need, against the models themselves: their parameters, and every tensor alive while they compute.

They are built on torch's meta device, which has shapes and no numbers: the published sizes take no memory.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from ifmesh_services.bench import published
from ifmesh_services.nano import builder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5Config, T5EncoderModel

from ifmesh import demand, footprint
from ifmesh.demand import PUBLISHED
from ifmesh.published import PARTS

NEAR = 0.05


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch declares none of its own
    """peak: bytes of the tensors that were made within and were alive at once."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self._known:
                self._known.add(key)
                self.now += tensor.untyped_storage().nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor.untyped_storage(), self._gone, key, tensor.untyped_storage().nbytes())
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device torch would write the attention scores out, which no device that it is made for does."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda query, *more, **rest: torch.empty_like(query))


def made(kind: Callable[..., Any], *args: Any, **config: Any) -> Any:
    with torch.device("meta"):
        return kind(*args, **config).eval()


def counted(model: Any, *args: torch.Tensor, **more: torch.Tensor) -> int:
    with torch.no_grad(), Alive(model) as alive:
        model(*args, **more)
    return int(alive.peak)


def unet(config: Any, side: int) -> tuple[int, int]:
    """Parameters, and elements alive at the peak of a guided call."""
    model = made(UNet2DConditionModel, **config)
    labelled = {"class_labels": torch.zeros(2, device="meta")} if config.get("class_embed_type") or config.get("num_class_embeds") else {}
    x = torch.empty(2, config["in_channels"], side, side, device="meta")
    texts = torch.empty(2, 77, config.get("encoder_hid_dim") or config["cross_attention_dim"], device="meta")
    labels = {key: value.long() for key, value in labelled.items()}
    return sum(p.numel() for p in model.parameters()), counted(model, x, torch.zeros(2, device="meta"), texts, **labels) // 4


@pytest.mark.parametrize(("part", "side"), [("one", 64), ("two", 256), ("x4", 256)])
def test_the_formula_of_the_built_in_unets(part: str, side: int) -> None:
    config = builder.settled()[part]
    _, peak = unet(config, side)
    assert demand.unet(config, side) == pytest.approx(peak, rel=NEAR)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cascade", "stage", "side"),
    [
        ("if-m", "stage_one", 64),
        ("if-l", "stage_one", 64),
        ("if-xl", "stage_one", 64),
        ("if-xl", "stage_two", 256),
        ("if-xl", "upscaler", 256),
    ],
)
def test_the_published_unets(cascade: str, stage: str, side: int) -> None:
    config = published.CASCADES[cascade][stage, "unet"]
    parameters, peak = unet(config, side)
    said = PUBLISHED[cascade][stage]
    assert said.computed == pytest.approx(peak, rel=0.001)
    assert demand.unet(config, side) == pytest.approx(peak, rel=NEAR)
    if stage != "upscaler":
        assert said.parameters == parameters


@pytest.mark.slow
def test_the_published_vae_and_t5() -> None:
    of = published.CASCADES["if-xl"]
    vae = made(AutoencoderKL, **of["upscaler", "vae"])
    with torch.no_grad(), Alive(vae) as alive:
        vae.decode(torch.empty(1, 4, 256, 256, device="meta"))
    assert PUBLISHED["if-xl"]["upscaler"].decode == pytest.approx(alive.peak, rel=0.001)
    assert demand.decode(of["upscaler", "vae"], 1024) == pytest.approx(alive.peak, rel=NEAR)
    t5 = made(T5EncoderModel, T5Config(**of["encoder", "text_encoder"]))
    assert sum(p.numel() for p in t5.parameters()) == PUBLISHED["if-xl"]["encoder"].parameters
    peak = counted(t5, torch.zeros(1, 77, dtype=torch.long, device="meta")) // 4
    assert demand.t5(of["encoder", "text_encoder"]) == pytest.approx(peak, rel=NEAR)


def test_a_folder_is_read_without_its_weights(nano16: Path) -> None:
    found = footprint.of(nano16)
    for stage, repo in (("encoder", "IF-I-nano"), ("stage_one", "IF-I-nano"), ("stage_two", "IF-II-nano"), ("upscaler", "x4-nano")):
        sizes = [(nano16 / repo / part).glob("*.safetensors") for part in PARTS[stage]]
        plain = [file for files in sizes for file in files if ".fp16." not in file.name]
        assert found[stage].parameters * 4 == pytest.approx(sum(file.stat().st_size for file in plain), rel=0.06), "fp32, and their headers"
    config = json.loads((nano16 / "x4-nano/unet/config.json").read_text())
    assert found["upscaler"].computed == demand.unet(config, 64)
    assert found["upscaler"].narrow == 2.0, "its narrowest layers have 8 channels"
