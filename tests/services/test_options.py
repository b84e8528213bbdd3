"""The options of the stages about weights and memory: what each does to a stage that works.  Of the models alone: test_offload.py.

dtype: test_parity.py; quantize: test_encoder.py; download: test_hub.py; the guard's: test_guard.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ifmesh_services import offload, pooled
from ifmesh_services.guard import THRESHOLDS
from ifmesh_services.loading import DTYPES
from ifmesh_services.tensors import to_torch
from ifmesh_services.terms import OFFLOAD, OPTIONS, Terms
from safetensors.torch import load_file

from ifmesh import config
from ifmesh.errors import Misconfigured
from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Setup, Stage
from tests.services.chained import KINDS, passed, run
from tests.services.test_offload import Largest

ROOT = Path(__file__).parents[2]
MAKES = {"encoder": "embeds", "stage_one": "image64", "stage_two": "image256", "upscaler": "image1024"}
DRAWING = ("stage_one", "stage_two", "upscaler")
FOX = Request("a fox", 3, negative="blurry", settings={stage: Settings(steps=2) for stage in DRAWING}, seeding="per_stage")
Options = Mapping[str, str | int | float | bool]


def loaded(cascade: Path, name: str, options: Options | None = None, dtype: str = "fp32") -> tuple[Any, str]:
    """The stage and its numeric class."""
    made: Any = KINDS[name]()
    return made, made.load(Setup(cascade=str(cascade), dtype=dtype, options=options))


def models(stage: Any) -> list[Any]:
    return [value for value in vars(stage).values() if isinstance(value, torch.nn.Module)]


@pytest.fixture(scope="module")
def given(stages16: dict[str, Stage]) -> Bag:
    """All that FOX needs, and what the stages make of it without any option."""
    return passed(stages16, FOX)


def drawn(stage: Any, name: str, given: Bag, request: Request = FOX) -> torch.Tensor:
    return to_torch(run(stage, "a", request, given)[MAKES[name]])


@pytest.mark.parametrize("name", KINDS)
def test_wherever_the_weights_are_the_bits_are_the_same(nano16: Path, given: Bag, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the numeric class.  Without a card here: model and sequential move them from RAM to RAM, by the same hooks."""
    monkeypatch.setattr(Terms, "_check", lambda *args: None)
    expected, classes = to_torch(given[MAKES[name]]), set()
    for how in OFFLOAD:
        stage, numeric = loaded(nano16, name, {"offload": how})
        classes.add(numeric)
        assert torch.equal(drawn(stage, name, given), expected), how
        resting = {p.device.type for model in models(stage) for p in model.parameters()}
        assert resting == ({"meta"} if how in ("sequential", "disk") else {"cpu"})
        assert offload.Guest.here is None  # nothing is left on the card
    assert len(classes) == 1


def test_while_there_is_work_the_weights_stay(nano16: Path, given: Bag, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the card: until the last job is done, or dropped."""
    monkeypatch.setattr(Terms, "_check", lambda *args: None)
    stage, _ = loaded(nano16, "stage_one", {"offload": "model", "slots": 2})

    def here() -> bool:
        return offload.Guest.here is not None and offload.Guest.here[1] is stage._unet

    stage.admit("a", FOX, given)
    assert not here()
    list(stage.step())
    stage.admit("b", FOX, given)
    assert here()
    [last, other] = list(stage.step())
    assert (last.output is not None, other.output is not None, here()) == (True, False, True)
    stage.drop("b")
    assert not here()


@pytest.mark.parametrize("how", ["disk", "sequential"])
def test_a_vae_that_is_upcast_decodes_wherever_it_is(nano16: Path, given: Bag, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16, of which a CPU is slow: one step."""
    monkeypatch.setattr(Terms, "_check", lambda *args: None)
    request = Request("a fox", 3, settings={"upscaler": Settings(steps=1, guidance=1.0)}, seeding="per_stage")
    small = {**given, "image256": given["image64"]}
    stages = [loaded(nano16, "upscaler", {"offload": where}, "fp16") for where in ("none", how)]
    one, other = [drawn(stage, "upscaler", small, request) for stage, _ in stages]
    assert torch.equal(one, other)
    assert len({numeric for _, numeric in stages}) == 1
    assert [{p.dtype for p in stage._vae.parameters()} for stage, _ in stages] == [{torch.float32}] * 2
    assert [{p.dtype for p in stage._unet.parameters()} for stage, _ in stages] == [{torch.float16}] * 2


@pytest.mark.parametrize("name", DRAWING)
def test_sliced_attention_draws_almost_the_same_with_less(nano16: Path, given: Bag, name: str) -> None:
    """And says so: the last bits may differ."""
    plain, numeric = loaded(nano16, name)
    stage, sliced = loaded(nano16, name, {"attention_slicing": "max"})
    assert sliced == numeric + ", attention slices max"
    processors = [{type(p).__name__ for p in one._unet.attn_processors.values()} for one in (plain, stage)]
    assert all("Sliced" in kind for kind in processors[1])
    assert not processors[0] & processors[1]
    picture, expected = drawn(stage, name, given).float(), to_torch(given[MAKES[name]]).float()
    assert (picture - expected).abs().max() <= 1e-3 * expected.abs().max() + (name == "upscaler")  # whose pixels are whole


def test_a_tiled_decode_draws_with_less(nano16: Path, given: Bag) -> None:
    """Seams may show, and it says so."""
    pictures, seen = [], []
    for options in ({}, {"vae_tiling": True}):
        stage, numeric = loaded(nano16, "upscaler", options)
        assert numeric.endswith(", VAE tiles") == bool(options)
        stage.admit("a", FOX, given)
        for _ in range(2):
            list(stage.step())
        with Largest() as largest:
            [decoded] = stage.step()
        seen.append(largest.seen)
        pictures.append(to_torch(decoded.output["image1024"]).float())
    assert torch.equal(pictures[0], to_torch(given["image1024"]).float())
    assert seen[1] * 2 <= seen[0]
    assert 0 < (pictures[0] - pictures[1]).abs().mean() < pictures[0].std() / 2


@pytest.mark.parametrize("name", KINDS)
def test_the_variant_is_the_files(nano16: Path, given: Bag, name: str) -> None:
    """fp16 is what fp16 reads anyway; here it is read for fp32."""
    stage, numeric = loaded(nano16, name, {"variant": "fp16"})
    assert numeric != loaded(nano16, name)[1]
    repo = {"stage_two": "IF-II-nano", "upscaler": "x4-nano"}.get(name, "IF-I-nano")
    [file] = (nano16 / repo / ("text_encoder" if name == "encoder" else "unet")).glob("*.fp16.safetensors")
    model: Any = stage._model if name == "encoder" else stage._unet
    weights = model.state_dict()
    assert all(torch.equal(weights[key], tensor.float()) for key, tensor in load_file(file).items())
    assert not torch.equal(drawn(stage, name, given), to_torch(given[MAKES[name]]))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", DRAWING)
def test_half_precision_is_half_the_memory_and_another_class(nano16: Path, name: str, dtype: str) -> None:
    """The bits are the pipelines' in that dtype: test_parity.py."""
    sizes, classes = [], set()
    for kind in ("fp32", dtype):
        stage, numeric = loaded(nano16, name, dtype=kind)
        assert stage._unet.dtype == DTYPES[kind]
        sizes.append(sum(p.nbytes for p in stage._unet.parameters()))
        classes.add(numeric)
    assert sizes[1] * 2 == sizes[0]
    assert len(classes) == 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        *(
            (name, {"offload": "model"}, f"services.{name}.options.offload: 'model': moves weights between RAM and an acc")
            for name in KINDS
        ),
        *((name, {"variant": "fp61"}, "no safetensors of variant 'fp61'; there are: the one without a name, 'fp16'") for name in KINDS),
        *((name, {"ofload": "disk"}, f"services.{name}.options: unknown key 'ofload'; did you mean 'offload'?") for name in KINDS),
        *((name, {"quantize": "int8"}, f"services.{name}.options: unknown key 'quantize'") for name in DRAWING),
        *((name, {"attention_slicing": 64}, f"services.{name}.options.attention_slicing: 64: more heads than") for name in DRAWING),
        ("stage_two", {"vae_tiling": True}, "services.stage_two.options: unknown key 'vae_tiling'"),
        ("upscaler", {"vae_tiling": "yes"}, "services.upscaler.options.vae_tiling: 'yes': true or false"),
        ("stage_one", {"shapes": "64x64"}, "services.stage_one.options.shapes: only with compile = true"),
        ("stage_two", {"mode": "pooled", "offload": "disk"}, "on a CPU only with mode = 'exact'; leave one of them out"),
    ],
)
def test_a_wrong_option_is_named_with_what_to_do(nano16: Path, name: str, options: Options, said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        loaded(nano16, name, options)
    assert said in str(caught.value)


def test_every_option_is_explained(tmp_path: Path) -> None:
    """In ifmesh.toml: no more, no fewer.  And what the README shows can be read."""
    shown = set(re.findall(r"^#   (\w+) = ", (ROOT / "deploy/ifmesh.toml").read_text(), re.MULTILINE))
    assert shown == {name for names in OPTIONS.values() for name in names} | {*pooled.OPTIONS, "cache", *THRESHOLDS}
    texts = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    quantised = []
    for text in texts:
        (tmp_path / "ifmesh.toml").write_text(text)
        services = config.read(tmp_path / "ifmesh.toml", {"HOME": str(tmp_path)}, {}).services
        quantised.append(Terms.read("encoder", services["encoder"].options, "cuda").quantize)
        assert all(Terms.read(name, services[name].options, "cuda", beside=()) for name in KINDS)
    assert "int8" in quantised


COMPILED = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from ifmesh_services.nano import builder
from tests.services.test_options import FOX, KINDS, MAKES, Settings, drawn, loaded, passed, to_torch
torch.set_num_threads(1)
small = {"block_out_channels": [16], "down_block_types": ["ResnetDownsampleBlock2D"], "up_block_types": ["ResnetUpsampleBlock2D"],
         "cross_attention_dim": 16, "mid_block_type": None, "layers_per_block": 1}
x4 = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "only_cross_attention": [False]}
folder = Path(sys.argv[1])
builder.build(folder, base=16, other={"one": small, "two": small, "x4": x4})
given = passed({name: loaded(folder, name)[0] for name in KINDS}, FOX)
name, shapes = sys.argv[2:]
stage, numeric = loaded(folder, name, {"compile": True, "shapes": shapes})
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
with torch.compiler.set_stance("fail_on_recompile"):
    picture, expected = drawn(stage, name, given).float(), to_torch(given[MAKES[name]]).float()
off = (picture - expected).abs().max()
print("compiled" in numeric, 0 < graphs, bool(off <= 1e-3 * expected.abs().max() + (name == "upscaler")))
other = drawn(stage, name, given, replace(FOX, settings={name: Settings(steps=1, guidance=1.0)}))
print(graphs == torch._dynamo.utils.counters["stats"]["unique_graphs"], bool(other.float().isfinite().all()))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "shapes"), [("stage_one", "16x16, 24x16"), ("stage_two", "64x64"), ("upscaler", "64x64")])
def test_a_compiled_stage_compiles_nothing_while_it_draws(tmp_path: Path, name: str, shapes: str) -> None:
    """Small ones, for the compiler takes long.  What was not declared is drawn too, uncompiled: here without guidance."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no g++ here")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    code = [sys.executable, "-c", COMPILED, str(tmp_path / "small"), name, shapes]
    ended = subprocess.run(code, env=environ, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["True True True", "True True"]
