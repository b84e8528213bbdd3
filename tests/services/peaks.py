"""What a stage's models need of a process's memory: `python -m tests.services.peaks SMALL LARGE STAGE,DTYPE,OFFLOAD ...`.

SMALL and LARGE: cascades; all the code that LARGE needs has been run with SMALL before.  Prints a line for each: bytes of the weights; and
as parts of them the resident memory, mapped files included, that was needed to load, and to run one request.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from ifmesh_services.guard import Guard
from ifmesh_services.mending import no_bars
from ifmesh_services.nano import builder
from ifmesh_services.tensors import to_blob
from transformers import CLIPConfig, T5Config, T5EncoderModel

from ifmesh.cascade import DRAWN
from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Setup, Stage
from tests.services.chained import KINDS, run
from tests.services.test_loading import rewritten

LARGE: dict[str, tuple[str, Any]] = {  # what LARGE has more of, by where it lies
    "IF-I-nano/text_encoder": ("t5", {"d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 2816, "num_layers": 6}),
    "IF-I-nano/unet": (
        "unet",
        builder._I | {"block_out_channels": [128, 256, 384, 512], "cross_attention_dim": 512, "layers_per_block": 2},
    ),
    "IF-II-nano/unet": ("unet", builder._II | {"block_out_channels": [64, 128, 256, 320, 384], "cross_attention_dim": 384}),
    "x4-nano/unet": ("unet", builder._X4 | {"block_out_channels": [64, 128, 256, 512]}),
    "IF-I-nano/safety_checker": ("checker", {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8}),
}


def large(small: Path, to: Path) -> None:
    """A cascade like SMALL, but for some models of 170 to 430 MB in fp32; their weights are zeros."""
    rewritten(small, to)
    for place, (kind, config) in LARGE.items():
        repo = to / Path(place).parent
        if repo.is_symlink():
            source = repo.resolve()
            repo.unlink()
            repo.mkdir()
            for part in source.iterdir():
                (repo / part.name).symlink_to(part)
        (to / place).unlink()
        with init_empty_weights():
            model = _made(kind, config)
        model.to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.zero_()
        with no_bars():
            model.save_pretrained(to / place, max_shard_size="10GB")


def _made(kind: str, config: Any) -> Any:
    if kind == "t5":
        return T5EncoderModel(T5Config(vocab_size=4096, **(builder._T5 | config)))
    if kind == "checker":
        return IFSafetyChecker(CLIPConfig(text_config=builder._CLIP_TEXT, vision_config=builder._CLIP_VISION | config, projection_dim=32))
    made: Any = UNet2DConditionModel
    return made(**config, sample_size=16)


def measured(name: str, small: str, large: str, dtype: str, how: str) -> str:
    setups = [Setup(cascade=folder, dtype=dtype, options={"offload": how}) for folder in (small, large)]
    _ask(name, _loaded(name, setups[0]))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _status("VmRSS")
    stage = _loaded(name, setups[1])
    loaded = _status("VmHWM") - before
    if dtype == "fp32":  # others are slow on a CPU
        _ask(name, stage)
    models = [value for value in vars(stage).values() if isinstance(value, torch.nn.Module)]
    weights = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
    return f"{weights} {loaded / weights} {(_status('VmHWM') - before) / weights}"


def _loaded(name: str, setup: Setup) -> Stage:
    stage: Stage = ({"guard": Guard} | KINDS)[name]()
    stage.load(setup)
    return stage


def _ask(name: str, stage: Stage) -> None:
    noise = {key: to_blob(torch.randn(3, 8, 8)) for key in ("image64", "image256")}
    unet: Any = getattr(stage, "_unet", None)
    first = name if unet is not None else "encoder"  # of the encoder and the guard
    bag: Bag = noise | {"rng": to_blob(torch.Generator().get_state()), "tokens": to_blob(torch.zeros(2, 3, dtype=torch.int64))}
    if unet is not None:
        bag = {**bag, "embeds": to_blob(torch.zeros(2, 77, unet.config.encoder_hid_dim or unet.config.cross_attention_dim))}
    last = name if name in DRAWN else "stage_one"
    few = {stage: Settings(steps=1) for stage in DRAWN}
    run(stage, "a", Request("a fox", 1, first_stage=first, last_stage=last, settings=few), bag)


def _status(key: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, nano, heavy, *cases = sys.argv
    for case in cases:
        name, dtype, how = case.split(",")
        print(measured(name, nano, heavy, dtype, how), flush=True)
