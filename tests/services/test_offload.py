"""Memory: what loading needs, weights that stay on disk or in RAM, slices and tiles; and compiling.  In stages: test_options.py."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnAddedKVProcessor, AttnProcessor
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from ifmesh_services import loading, offload, shelf
from ifmesh_services.nano import builder
from ifmesh_services.terms import OFFLOAD, OPTIONS, Terms
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextModel, T5EncoderModel

from ifmesh.errors import Misconfigured
from ifmesh.stage import Setup
from tests.services import peaks

PARTS: dict[str, tuple[str, str, Any]] = {
    "t5": ("IF-I-nano", "text_encoder", T5EncoderModel),
    "unet one": ("IF-I-nano", "unet", UNet2DConditionModel),
    "unet two": ("IF-II-nano", "unet", UNet2DConditionModel),
    "unet up": ("x4-nano", "unet", UNet2DConditionModel),
    "checker": ("IF-I-nano", "safety_checker", IFSafetyChecker),
    "clip": ("x4-nano", "text_encoder", CLIPTextModel),
    "vae": ("x4-nano", "vae", AutoencoderKL),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="moving weights to an accelerator needs one")


def asked(part: str, model: Any, device: str = "cpu") -> torch.Tensor:
    """What the model says to something; in the dtype of its own."""
    source = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source).to(device, model.dtype)

    ids = torch.arange(4, 81, device=device)[None]
    with torch.no_grad():
        match part.split()[0]:
            case "unet":
                said = model.config
                embeds = noise(2, 77, said.encoder_hid_dim or said.cross_attention_dim)
                labels = None if part == "unet one" else torch.tensor([20, 20], device=device)
                x = noise(2, said.in_channels, 16, 16)
                answer = model(x, torch.tensor(500), encoder_hidden_states=embeds, class_labels=labels, return_dict=False)[0]
            case "vae":
                answer = model.decode(noise(1, 4, 64, 64), return_dict=False)[0]
            case "checker":
                images = torch.zeros(1, 32, 32, 3).numpy()
                answer = torch.tensor([model(images=images, clip_input=noise(1, 3, 224, 224))[1:]])
            case "t5":
                answer = model(ids, attention_mask=torch.ones_like(ids))[0]
            case _:
                answer = model(ids)[0]
    made: torch.Tensor = answer
    return made


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_part_is_the_librarys_and_from_disk_the_same(nano16: Path, part: str, dtype: torch.dtype) -> None:
    """Weights, dtypes, answers and numeric class; also where a dtype is not the file's, which is read without the library."""
    repo, subfolder, kind = PARTS[part]
    folder = nano16 / repo
    loading.component(str(folder), subfolder, kind)  # diffusers' checker is mended
    theirs = kind.from_pretrained(folder / subfolder, dtype=dtype, variant="fp16" if dtype == torch.float16 else None, use_safetensors=True)
    theirs.eval()
    ours = loading.component(str(folder), subfolder, kind, dtype)
    shelved = loading.component(str(folder), subfolder, kind, dtype, terms=Terms(offload="disk"))
    for made in (ours, shelved):
        assert isinstance(made, kind)
        assert (made.device, made.dtype) == (theirs.device, theirs.dtype)
        weights = dict(shelf.tensors(made))
        assert weights.keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert weights[name].dtype == tensor.dtype, name
            assert torch.equal(weights[name], tensor), name
    assert {p.device.type for p in shelved.parameters()} == {"meta"}
    assert loading.numeric_class(Setup(), dtype, ours) == loading.numeric_class(Setup(), dtype, shelved)
    if (
        dtype == torch.float32 or (part == "t5") or (dtype == torch.bfloat16 and not part.startswith("unet"))
    ):  # the others are slow on a CPU
        assert torch.equal(asked(part, shelved), asked(part, theirs))
        assert {p.device.type for p in shelved.parameters()} == {"meta"}


def test_a_vae_in_fp16_is_upcast_wherever_it_is(nano16: Path) -> None:
    """The upscaler does it after loading."""
    kind: Any = AutoencoderKL
    made = [loading.component(str(nano16 / "x4-nano"), "vae", kind, torch.float16, terms=Terms(offload=how)).float() for how in OFFLOAD]
    answers = [asked("vae", one) for one in made]
    classes = {loading.numeric_class(Setup(), torch.float16, one) for one in made}
    assert [torch.equal(answer, answers[0]) for answer in answers] == [True] * len(OFFLOAD)
    assert answers[0].dtype == torch.float32
    assert len(classes) == 1
    offload.leave()


def test_names_of_old_checkpoints_are_understood(nano16: Path, tmp_path: Path) -> None:
    """The hub's x4 upscaler stores its VAE's attention as query, key, value and proj_attn."""
    made: Any = AutoencoderKL
    torch.manual_seed(3)
    config = builder._VAE | {"mid_block_add_attention": True}
    made(**config, sample_size=64).save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    stored = load_file(path)
    for new, name in old.items():
        stored = {key.replace(new, name): tensor for key, tensor in stored.items()}
    assert sum(".query." in key for key in stored) == 4
    save_file(stored, path, metadata={"format": "pt"})
    kinds: list[Any] = [
        loading.component(str(tmp_path), "vae", AutoencoderKL, dtype, terms=Terms(offload=how))
        for dtype, how in ((torch.float32, "none"), (torch.float32, "disk"), (torch.bfloat16, "none"), (torch.bfloat16, "disk"))
    ]
    answers = [asked("vae", one) for one in kinds]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[2], answers[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["none", "disk"])
@pytest.mark.parametrize("part", ["t5", "unet one"])
def test_weights_that_are_missing_are_not_made_up(nano16: Path, tmp_path: Path, part: str, how: str, dtype: torch.dtype) -> None:
    repo, subfolder, kind = PARTS[part]
    shutil.copytree(nano16 / repo / subfolder, tmp_path / subfolder)
    [path] = [p for p in (tmp_path / subfolder).glob("*.safetensors") if "fp16" not in p.name]
    weights = load_file(path)
    del weights[sorted(name for name in weights if name.endswith(".weight"))[-1]]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(Misconfigured, match=rf"{subfolder}: cannot be loaded as {kind.__name__}: the files lack "):
        loading.component(str(tmp_path), subfolder, kind, dtype, terms=Terms(offload=how))


@pytest.fixture(scope="module")
def large(nano16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("large") / "cascade"
    peaks.large(nano16, made)
    return made


def check_peaks(small: Path, large: Path, *cases: str) -> None:
    """In a process that does nothing else meanwhile, and whose malloc gives back what is freed.  Mapped pages of the files count."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    code = [sys.executable, "-m", "tests.services.peaks", str(small), str(large), *cases]
    ended = subprocess.run(code, env=environ, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    for case, line in zip(cases, ended.stdout.splitlines(), strict=True):
        weights, loaded, peak = map(float, line.split())
        assert weights > 80_000_000, case
        if case.endswith("none"):
            assert 0.9 < loaded <= 1.2, case  # less: it was not measured
        else:  # a layer, and what it computes
            assert loaded <= 0.2, case
            assert peak <= 0.45, case


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_loading_needs_little_more_than_the_weights(nano16: Path, large: Path) -> None:
    """Of every stage; the libraries alone need 3.0 times the weights where a dtype is not the file's.  From disk they need a fraction."""
    check_peaks(
        nano16,
        large,
        "encoder,fp16,none",
        "stage_one,bf16,none",
        "stage_one,fp32,disk",
        "stage_two,fp32,none",
        "upscaler,fp32,none",
        "guard,fp32,none",
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", OPTIONS)
def test_loading_each_stage_in_every_way(nano16: Path, large: Path, stage: str) -> None:
    check_peaks(nano16, large, *(f"{stage},{how}" for how in ("fp32,none", "bf16,none", "fp16,none", "fp32,disk")))


@CARD
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["model", "sequential", "disk"])
def test_on_a_card_the_bits_are_the_same_and_the_memory_is_free_again(nano16: Path, part: str, how: str) -> None:
    repo, subfolder, kind = PARTS[part]
    plain = loading.component(str(nano16 / repo), subfolder, kind, torch.float32, "cuda:0")
    said = asked(part, plain, "cuda:0").cpu()
    weights = sum(p.nbytes for p in plain.parameters())
    del plain
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    made = loading.component(str(nano16 / repo), subfolder, kind, torch.float32, "cuda:0", Terms(offload=how))
    assert torch.cuda.memory_allocated() - before < weights / 2
    assert made.device == torch.device("cuda:0")
    assert torch.equal(asked(part, made, "cuda:0").cpu(), said)
    offload.leave()
    assert torch.cuda.memory_allocated() - before < weights / 2


@CARD
@pytest.mark.parametrize(("how", "most"), [("model", 1.3), ("sequential", 0.3), ("disk", 0.3)])
def test_on_a_card_the_peak_is_a_fraction(large: Path, how: str, most: float) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    made = loading.component(str(large / "IF-I-nano"), "unet", UNet2DConditionModel, torch.float16, "cuda:0", Terms(offload=how))
    weights = sum(p.numel() * p.element_size() for p in made.parameters())  # type: ignore[attr-defined]
    assert torch.cuda.max_memory_allocated() - before < 0.05 * weights
    asked("unet one", made, "cuda:0")
    assert torch.cuda.max_memory_allocated() - before < most * weights


@pytest.mark.parametrize("how", ["model", "sequential"])
@pytest.mark.parametrize("stage", OPTIONS)
def test_without_an_accelerator_there_is_nothing_to_move_to(stage: str, how: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Terms.read(stage, {"offload": how}, "cpu")
    said = f"services.{stage}.options.offload: '{how}': moves weights between RAM and an accelerator, and this service computes on the CPU"
    assert said in str(caught.value)
    assert "'disk'" in str(caught.value)
    assert Terms.read(stage, {"offload": how}, "cuda:0").offload == how


@pytest.mark.parametrize(
    ("stage", "options", "said"),
    [
        ("stage_one", {"offload": "ram"}, "services.stage_one.options.offload: 'ram': one of none, model, sequential, disk"),
        ("guard", {"offload": True}, "services.guard.options.offload: True"),
        ("stage_two", {"attention_slicing": 0}, "options.attention_slicing: 0: none, auto, max, or a whole number of heads from 1 up"),
        ("stage_two", {"attention_slicing": True}, "options.attention_slicing: True"),
        ("stage_two", {"attention_slicing": "some"}, "options.attention_slicing: 'some'"),
        ("upscaler", {"vae_tiling": "on"}, "services.upscaler.options.vae_tiling: 'on': true or false"),
        ("upscaler", {"download": 1}, "options.download: 1: true or false"),
        ("stage_one", {"shapes": "64x64"}, "options.shapes: only with compile = true"),
        ("stage_one", {"compile": True, "shapes": "64"}, "options.shapes: '64': WIDTHxHEIGHT, as in '64x64, 96x64'"),
        ("stage_one", {"compile": True, "shapes": "64x65"}, "multiples of 8 from 8 to 4096"),
        ("stage_one", {"compile": True, "shapes": "64x64,"}, "options.shapes: '64x64,'"),
        ("stage_one", {"compile": True, "shapes": 64}, "options.shapes: 64"),
        ("stage_one", {"compile": True, "offload": "disk"}, "options.compile: not with offload = 'disk'; leave one of them out"),
        ("stage_one", {"compile": True, "mode": "pooled"}, "options.compile: only with mode = 'exact'"),
        ("stage_one", {"mode": "pooled", "offload": "disk"}, "options.offload: 'disk': on a CPU only with mode = 'exact'"),
        ("stage_one", {"quantize": "int8"}, "services.stage_one.options: unknown key 'quantize'"),
        ("stage_one", {"vae_tiling": True}, "unknown key 'vae_tiling'"),
        ("guard", {"ofload": "disk"}, "services.guard.options: unknown key 'ofload'; did you mean 'offload'?"),
    ],
)
def test_a_wrong_option_is_named_with_what_to_do(stage: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Terms.read(stage, options, "cpu", beside=("mode", "slots"))
    assert said in str(caught.value)


def test_what_changes_bits_is_in_the_numeric_class() -> None:
    given: list[dict[str, object]] = [
        {},
        {"compile": True},
        {"attention_slicing": "auto"},
        {"attention_slicing": 2},
        {"vae_tiling": True},
    ]
    assert len({Terms.read("upscaler", options).numeric for options in given}) == len(given)
    assert Terms.read("upscaler", {"offload": "disk", "variant": "fp16", "attention_slicing": "none"}).numeric == ""
    assert Terms.read("upscaler", {"compile": True}).shapes == ((256, 256),)
    assert Terms.read("stage_one", {"compile": True, "shapes": " 64x64,96x64 "}).shapes == ((64, 64), (96, 64))


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The number of values in the largest tensor that is made within; a view of another is none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor) and not func.is_view:
                self.seen = max(self.seen, one.numel())
        return made


@pytest.mark.parametrize("part", ["unet one", "unet up"])
def test_sliced_attention_makes_smaller_tensors(nano16: Path, part: str) -> None:
    """The largest is the attention's: [rows x heads, pixels, tokens]; the answer is the same but for the last bits."""
    repo, subfolder, kind = PARTS[part]
    plain, sliced = (loading.component(str(nano16 / repo), subfolder, kind, terms=Terms(attention_slicing=how)) for how in ("none", "max"))
    said = asked(part, plain)
    assert torch.equal(asked(part, plain), said)
    plain.set_attn_processor(AttnAddedKVProcessor() if part == "unet one" else AttnProcessor())  # SDPA keeps its scores to itself
    with Largest() as unsliced:
        asked(part, plain)
    with Largest() as largest:
        answer = asked(part, sliced)
    assert largest.seen < 0.7 * unsliced.seen
    assert (answer - said).abs().max() < 1e-4 * said.abs().max()
    with pytest.raises(Misconfigured, match=r"services\.stage_one\.options\.attention_slicing: 64: more heads than .* smaller or equal to"):
        loading.component(str(nano16 / repo), subfolder, kind, terms=Terms("stage_one", attention_slicing=64))


def test_a_tiled_decode_makes_smaller_tensors(nano16: Path) -> None:
    repo, subfolder, kind = PARTS["vae"]
    plain, tiled = (loading.component(str(nano16 / repo), subfolder, kind, terms=Terms(vae_tiling=how)) for how in (False, True))
    with Largest() as whole:
        said = asked("vae", plain)
    with Largest() as parts:
        answer = asked("vae", tiled)
    assert parts.seen * 2 <= whole.seen
    assert answer.shape == said.shape
    assert not torch.equal(answer, said)  # seams
    assert (answer - said).abs().mean() < 0.5 * said.std()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_without_a_compiler_it_is_said(nano16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While loading, not when the first job comes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config: Any = importlib.import_module("torch._inductor.config")
    with (
        config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}),
        pytest.raises(
            Misconfigured, match=r"services\.encoder\.options\.compile: T5EncoderModel: .*no-compiler.*; install a C\+\+ compiler \(g"
        ),
    ):
        loading.component(str(nano16 / "IF-I-nano"), "text_encoder", T5EncoderModel, terms=Terms("encoder", compile=True))
