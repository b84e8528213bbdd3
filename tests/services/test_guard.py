"""The guard, against diffusers' own output_type="pil" with the safety checker and the watermark on."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline, StableDiffusionUpscalePipeline
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from ifmesh_services import mending
from ifmesh_services.guard import SIDES, Guard, encoded, pixels
from ifmesh_services.tensors import to_blob, to_torch
from ifmesh_services.upscaler import Upscaler
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from ifmesh.cascade import IF
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.request import Request, Settings
from ifmesh.stage import Advance, Bag, Setup, Tensor
from tests.services.chained import run
from tests.services.test_loading import rewritten

STEPS = 3
TOKENS = to_blob(torch.tensor([[1, 1, 0], [80, 77, 3]]))


def guard(cascade: Path | str, options: Mapping[str, str | float | bool] | None = None, dtype: str = "") -> Guard:
    made = Guard()
    assert made.load(Setup(cascade=str(cascade), dtype=dtype, options=options))
    return made


def bag(side: int = 64, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The pictures of one job, seeded: noise that reaches beyond -1..1, as a stage's output may."""
    source = torch.Generator().manual_seed(side)
    small, middle = (torch.randn(3, n, n, generator=source).to(dtype) for n in (side, 4 * side))
    large = torch.randint(0, 256, (3, 16 * side, 16 * side), generator=source, dtype=torch.uint8)
    return {"image64": to_blob(small), "image256": to_blob(middle), "image1024": to_blob(large), "tokens": TOKENS}


def through(stage: Guard, request: Request, given: Bag) -> list[Advance]:
    """All the steps of one job; the last has the output."""
    steps = stage.admit("a", request, given)
    seen: list[Advance] = []
    while not seen or seen[-1].output is None:
        assert len(seen) < steps
        seen += stage.step()
    assert [a.step for a in seen] == list(range(1, steps + 1))
    assert not list(stage.step())
    return seen


def image(tensor: Tensor) -> np.ndarray[Any, Any]:
    assert tensor.dtype == "U8"
    assert tensor.shape == (len(tensor.data),)
    return np.asarray(PIL.Image.open(io.BytesIO(tensor.data)))


@pytest.fixture(scope="module")
def guard64(nano64: Path) -> Guard:
    return guard(nano64)


def drawn_by(pipeline: Any, **inputs: Any) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """The same draw twice: what the stage would hand on, and what the pipeline publishes."""
    pipeline.set_progress_bar_config(disable=True)
    kinds = [pipeline(**inputs, generator=torch.Generator().manual_seed(5), output_type=kind).images for kind in ("pt", "pil")]
    return kinds[0][0], np.asarray(kinds[1][0])


FORMATS: dict[Literal["png", "webp", "jpeg"], bool] = {"png": True, "webp": True, "jpeg": False}  # does it keep every bit?


@pytest.mark.parametrize("cascade", ["nano64", "flagging64"])
def test_stage_one_as_the_pipeline_publishes_it(cascade: str, request: pytest.FixtureRequest) -> None:
    """In every format; a JPEG is what Pillow makes of the pipeline's picture."""
    folder: Path = request.getfixturevalue(cascade)
    mending.mend_safety_checker()
    kind: Any = IFPipeline
    pipeline = kind.from_pretrained(folder / "IF-I-nano")
    drawn, published = drawn_by(pipeline, prompt="a red fox", num_inference_steps=STEPS, clean_caption=False)
    stage = guard(folder)
    for name, lossless in FORMATS.items():
        asked = Request("a red fox", 5, last_stage="stage_one", format=name)
        [done] = through(stage, asked, {"image64": to_blob(drawn), "tokens": TOKENS})
        assert done.output is not None
        file = done.output["picture_stage_one"]
        assert PIL.Image.open(io.BytesIO(file.data)).format == name.upper()
        if lossless:
            assert np.array_equal(image(file), published)
        else:
            expected = io.BytesIO()
            PIL.Image.fromarray(published).save(expected, "JPEG", quality=95)
            assert file.data == expected.getvalue()
        assert done.output["flagged"].data == bytes([cascade == "flagging64"])
    assert len(np.unique(published)) > (1 if cascade == "flagging64" else 100)  # a picture, and on black at least the watermark


def test_stage_two_as_the_pipeline_publishes_it(nano64: Path, guard64: Guard) -> None:
    mending.mend_safety_checker()
    kind: Any = IFSuperResolutionPipeline
    pipeline = kind.from_pretrained(nano64 / "IF-II-nano")
    low = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    drawn, published = drawn_by(pipeline, prompt="a red fox", image=low, num_inference_steps=STEPS, clean_caption=False)
    [done] = through(guard64, Request("a red fox", 5, last_stage="stage_two", stages=False), {"image256": to_blob(drawn), "tokens": TOKENS})
    assert done.output is not None
    assert set(done.output) == {"picture_stage_two", "flagged", "tokens"}
    assert np.array_equal(image(done.output["picture_stage_two"]), published)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_in_its_own_dtype(guard64: Guard, dtype: torch.dtype) -> None:
    given = bag(dtype=dtype)
    drawn = to_torch(given["image64"])
    expected = ((drawn / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().numpy() * 255).round().astype("uint8")
    [done] = through(guard64, Request("a fox", 1, last_stage="stage_one"), given)
    assert done.output is not None
    differ = (image(done.output["picture_stage_one"]) != expected).any(-1)
    assert 0 < differ.sum() < 20  # the watermark alone


def test_a_whole_job_is_checked_picture_by_picture(guard64: Guard) -> None:
    seen = through(guard64, Request("a fox", 1), bag())
    assert [(a.step, a.steps, a.output is None) for a in seen] == [(1, 3, True), (2, 3, True), (3, 3, False)]
    output = seen[-1].output
    assert output is not None
    assert set(output) == {"picture_stage_one", "picture_stage_two", "picture_upscaler", "flagged", "tokens"}
    assert [image(output[f"picture_{stage}"]).shape[:2] for stage in ("stage_one", "stage_two", "upscaler")] == [
        (64, 64),
        (256, 256),
        (1024, 1024),
    ]
    assert bytes(output["flagged"].data) == b"\0"


def test_the_upscalers_pixels_are_left_as_they_are_but_for_the_mark(guard64: Guard) -> None:
    given = bag()
    [done] = through(guard64, Request("a fox", 1, stages=False), given)
    assert done.output is not None
    large = np.frombuffer(given["image1024"].data, np.uint8).reshape(3, 1024, 1024).transpose(1, 2, 0)
    differ = (image(done.output["picture_upscaler"]) != large).any(-1)
    assert 0 < differ.sum() <= 62 * 62
    rows, columns = differ.nonzero()
    assert min(rows.min(), columns.min()) >= 1024 - 14 - 62  # the lower right corner


def test_all_256_values_survive_the_checkers_floats() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1, 1)
    assert np.array_equal((pixels(every) * 255).round().astype("uint8")[0, 0, :, 0], np.arange(256))


def test_flagged_pictures_are_black(flagging64: Path) -> None:
    output = through(guard(flagging64), Request("a fox", 1), bag())[-1].output
    assert output is not None
    assert bytes(output["flagged"].data) == b"\1"
    for name in ("picture_stage_one", "picture_stage_two", "picture_upscaler"):
        picture = image(output[name])
        side = len(picture)
        assert not picture[: side * 9 // 10].any()  # above the watermark, which blanked pictures have too


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (24, 16), (17, 17)])
def test_the_mark_lies_in_the_corner_of_any_shape(guard64: Guard, height: int, width: int) -> None:
    grey = torch.zeros(3, height, width)
    [done] = through(guard64, Request("a fox", 1, last_stage="stage_one"), {"image64": to_blob(grey), "tokens": TOKENS})
    assert done.output is not None
    differ = (image(done.output["picture_stage_one"]) != 128).any(-1)
    rows, columns = differ.nonzero()
    assert len(rows)
    assert rows.min() > height * 0.75
    assert columns.min() > width * 0.75


def test_a_picture_too_small_for_a_mark_has_none(guard64: Guard) -> None:
    grey = torch.zeros(3, 16, 16)
    [done] = through(guard64, Request("a fox", 1, last_stage="stage_one"), {"image64": to_blob(grey), "tokens": TOKENS})
    assert done.output is not None
    assert (image(done.output["picture_stage_one"]) == 128).all()


def test_the_same_pixels_are_the_same_file(nano16: Path) -> None:
    """Also after other work, and from another guard."""
    first, second = guard(nano16), guard(nano16)
    through(second, Request("another", 2, last_stage="stage_one"), bag(24))
    request = Request("a fox", 1)
    assert through(first, request, bag(16))[-1] == through(second, request, bag(16))[-1]


def chunks(file: bytes) -> list[str]:
    """What a PNG, a WebP or a JPEG is made of, up to its pixels."""
    made: list[str] = []
    if file[:2] == b"\xff\xd8":
        at = 2
        while (marker := file[at + 1]) != 0xDA:
            made.append(f"{marker:X}")
            at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    elif file[:4] == b"RIFF":
        at = 12
        while at < len(file):
            made.append(file[at : at + 4].decode())
            at += 8 + -(-int.from_bytes(file[at + 4 : at + 8], "little") // 2) * 2
    else:
        at = 8
        while at < len(file):
            made.append(file[at + 4 : at + 8].decode())
            at += 12 + int.from_bytes(file[at : at + 4], "big")
    return made


def test_a_file_holds_pixels_only() -> None:
    """A JPEG's JFIF header says that pixels are square, no more; DB and C4 are its tables, C0 its size."""
    red = PIL.Image.new("RGB", (8, 8), "red")
    found = {format: chunks(encoded(red, format)) for format in FORMATS}
    assert found == {"png": ["IHDR", "IDAT", "IEND"], "webp": ["VP8L"], "jpeg": ["E0", "DB", "DB", "C0", "C4", "C4", "C4", "C4"]}


def test_a_picture_too_large_for_its_format_is_the_requests_fault(guard64: Guard) -> None:
    long = {"image64": to_blob(torch.zeros(3, 8, SIDES["webp"] + 1)), "tokens": TOKENS}
    with pytest.raises(BadRequest, match=r"webp.* holds at most 16383 pixels a side, not 16384 x 8: png or jpeg") as caught:
        guard64.admit("a", Request("a fox", 1, last_stage="stage_one", format="webp"), long)
    assert caught.value.field == "format"
    assert not list(guard64.step())
    assert guard64.admit("a", Request("a fox", 1, last_stage="stage_one", format="jpeg"), long) == 1
    guard64.drop("a")


def test_numbers_that_are_none_do_not_pass(guard64: Guard) -> None:
    broken = torch.zeros(3, 64, 64)
    broken[0, 0, 0] = torch.nan
    guard64.admit("a", Request("a fox", 1, last_stage="stage_one"), {"image64": to_blob(broken), "tokens": TOKENS})
    with pytest.raises(ArithmeticError, match="no numbers"):
        list(guard64.step())
    guard64.drop("a")


def test_what_is_known_of_the_texts_passes(guard64: Guard) -> None:
    [done] = through(guard64, Request("a fox", 1, last_stage="stage_one"), bag(16))
    assert done.output is not None
    assert done.output["tokens"] == TOKENS
    assert set(done.output) == {b.name for b in IF["guard"].gives(Request("a fox", 1, last_stage="stage_one"))}


def test_a_preview_has_no_texts(guard64: Guard) -> None:
    request = Request("preview", 0, first_stage="stage_two", last_stage="stage_two", stages=False)
    [done] = through(guard64, request, {"image256": bag(16)["image256"]})
    assert done.output is not None
    assert set(done.output) == {"picture_stage_two", "flagged"}


def test_a_paused_job_stays_as_it_is(guard64: Guard) -> None:
    whole = through(guard64, Request("a fox", 1), bag(16))[-1].output
    assert guard64.admit("a", Request("a fox", 1), bag(16)) == 3
    assert [advance.step for advance in guard64.step()] == [1]
    assert not list(guard64.step({"a"}))
    assert [(advance.step, advance.output) for _ in range(2) for advance in guard64.step()] == [(2, None), (3, whole)]


def test_a_missing_picture_is_refused_and_a_dropped_job_forgotten(guard64: Guard) -> None:
    given = bag(16)
    with pytest.raises(ValueError, match="image64"):
        guard64.admit("a", Request("a fox", 1), {k: v for k, v in given.items() if k != "image64"})
    assert guard64.admit("b", Request("a fox", 1), given) == 3
    guard64.drop("b")
    guard64.drop("never admitted")
    assert not list(guard64.step())


def altered(cascade: Path, to: Path, **changed: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """The cascade with other heads of the safety checker: p_weight, p_bias, w_weight, w_bias."""
    made = rewritten(cascade, to)
    (to / "IF-I-nano").unlink()
    shutil.copytree(cascade / "IF-I-nano", to / "IF-I-nano", ignore=shutil.ignore_patterns("unet", "text_encoder", "*.fp16.*"))
    path = to / "IF-I-nano/safety_checker/model.safetensors"
    weights = load_file(path)
    for name, change in changed.items():
        head, _, kind = name.partition("_")
        weights[f"{head}_head.{kind}"] = change(weights[f"{head}_head.{kind}"])
    save_file(weights, path, metadata={"format": "pt"})
    return made


def sees(stage: Guard) -> bool:
    """Whether it flags some picture."""
    [done] = through(stage, Request("a fox", 1, last_stage="stage_one"), bag(24))
    assert done.output is not None
    flagged = bool(done.output["flagged"].data[0])
    assert flagged == (image(done.output["picture_stage_one"]).max() < 255)
    return flagged


@pytest.mark.parametrize("head", ["p", "w"])
def test_thresholds_are_diffusers_or_stricter(nano16: Path, tmp_path: Path, head: str) -> None:
    """A logit of 0.2 passes in diffusers, and not in the original IF."""
    to = {f"{head}_weight": torch.zeros_like, f"{head}_bias": lambda bias: torch.full_like(bias, 0.2)}
    cascade = altered(nano16, tmp_path / "near", **to)
    name = f"{head}_threshold"
    assert [sees(guard(cascade, said)) for said in ({}, {name: 0.5}, {name: 0}, {name: 0.19})] == [False, False, True, True]
    classes = [Guard().load(Setup(cascade=cascade, options=said)) for said in ({}, {name: 0.5}, {name: 0})]
    assert classes[0] == classes[1] != classes[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"p_threshold": 0.51},
            "services.guard.options.p_threshold: 0.51: a logit of at most 0.5, which is diffusers' own; a lower one flags",
        ),
        ({"w_threshold": float("nan")}, "services.guard.options.w_threshold: nan: a logit of at most 0.5"),
        ({"w_threshold": float("-inf")}, "services.guard.options.w_threshold: -inf"),
        ({"p_threshold": True}, "services.guard.options.p_threshold: True"),
        ({"p_threshold": "0"}, "services.guard.options.p_threshold: '0'"),
        ({"p_treshold": 0}, "services.guard.options: unknown key 'p_treshold'; did you mean 'p_threshold'?"),
        ({"mode": "pooled"}, "services.guard.options: unknown key 'mode'"),
        ({"offload": "model"}, "this service computes on the CPU"),
        ({"variant": "fp61"}, "no safetensors of variant 'fp61'; there are: the one without a name, 'fp16'"),
    ],
)
def test_a_wrong_option_is_named_with_what_to_do(nano16: Path, options: Mapping[str, str | float | bool], said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        guard(nano16, options)
    assert said in str(caught.value)


def test_the_checker_computes_as_it_is_told(nano16: Path, tmp_path: Path) -> None:
    """fp32 unless told otherwise; the numbers concern the verdict alone.  In fp16 these heads overflow, which is no verdict."""
    setups = {"": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    stages = {dtype: Guard() for dtype in setups}
    classes = {dtype: stage.load(Setup(cascade=str(nano16), dtype=dtype)) for dtype, stage in stages.items()}
    assert {dtype: said.split(", ")[2] for dtype, said in classes.items()} == setups
    assert classes[""] == classes["fp32"]
    made = [through(stage, Request("a fox", 1, last_stage="stage_one"), bag(24))[0].output for stage in stages.values()]
    assert all(one == made[0] for one in made)
    wild = altered(nano16, tmp_path / "wild", p_weight=lambda weight: weight * 1e9)
    sees(guard(wild))
    sees(guard(wild, dtype="bf16"))
    with pytest.raises(ArithmeticError, match=r"the safety checker has overflowed in torch.float16: let the guard compute in fp32"):
        sees(guard(wild, dtype="fp16"))


def test_its_options_about_weights(nano16: Path) -> None:
    """From disk: the same bytes and class.  The fp16 file's weights are others."""
    stages = [Guard() for _ in range(3)]
    options: list[dict[str, str | int | float | bool]] = [{}, {"offload": "disk"}, {"variant": "fp16"}]
    plain, disk, half = (one.load(Setup(cascade=str(nano16), options=how)) for one, how in zip(stages, options, strict=True))
    assert plain == disk != half
    assert {p.device.type for p in stages[1]._checker.parameters()} == {"meta"}
    made = [through(stage, Request("a fox", 1), bag(24))[-1] for stage in stages]
    assert made[0] == made[1] == made[2]


BRIGHT = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(4)) * 0.7 + 0.1  # a Stage II picture without a negative value
UP = Request(
    "a fox", 1, first_stage="upscaler", stages=False, brings=("image256",), upload="0" * 64, settings={"upscaler": Settings(steps=1)}
)


@pytest.fixture(scope="module")
def upscaler_only(nano16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an upscaler-only host has: the upscaler's repository, where nothing watches over pictures, and of Stage I's what does."""
    folder = tmp_path_factory.mktemp("hosts") / "upscaler"
    shutil.copytree(nano16, folder, ignore=shutil.ignore_patterns("unet", "text_encoder", "tokenizer", "image_noising_scheduler"))
    shutil.rmtree(folder / "x4-nano")
    (folder / "x4-nano").symlink_to(nano16 / "x4-nano")
    assert not {"safety_checker", "watermarker", "feature_extractor"} & {path.name for path in (folder / "x4-nano").iterdir()}
    return folder


def drawn_large(folder: Path) -> Bag:
    upscaler = Upscaler()
    upscaler.load(Setup(cascade=str(folder)))
    given = {"image256": to_blob(BRIGHT)}
    return run(upscaler, "a", UP, given)


@pytest.fixture(scope="module")
def x4(nano16: Path) -> Any:
    kind: Any = StableDiffusionUpscalePipeline
    pipeline = kind.from_pretrained(nano16 / "x4-nano")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def asked(pipeline: Any, picture: torch.Tensor) -> np.ndarray[Any, Any]:
    said = {"num_inference_steps": 1, "noise_level": 100, "generator": torch.Generator().manual_seed(1), "output_type": "pil"}
    return np.asarray(pipeline(prompt="a fox", image=picture[None], **said).images[0])


@pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor with value range:FutureWarning")  # the pipeline does, of its guess
def test_an_all_bright_picture_is_not_misread(upscaler_only: Path, x4: Any) -> None:
    """And an upscaler-only host still marks what it publishes."""
    large = drawn_large(upscaler_only)
    expected = asked(x4, BRIGHT / 2 + 0.5)
    assert np.array_equal(to_torch(large["image1024"]).permute(1, 2, 0).numpy(), expected)
    assert not np.array_equal(asked(x4, BRIGHT), expected)  # the guess
    [done] = through(guard(upscaler_only), UP, large)
    assert done.output is not None
    differ = (image(done.output["picture_upscaler"]) != expected).any(-1)
    assert 0 < differ.sum() <= 16 * 16
    assert done.output["flagged"].data == b"\0"


def test_where_the_upscalers_pipeline_crashes_the_picture_is_black(upscaler_only: Path, x4: Any, flagging64: Path) -> None:
    mending.mend_safety_checker()
    checker: Any = IFSafetyChecker
    watching = type(x4)(
        **x4.components
        | {
            "safety_checker": checker.from_pretrained(flagging64 / "IF-I-nano/safety_checker"),
            "feature_extractor": CLIPImageProcessorPil.from_pretrained(flagging64 / "IF-I-nano/feature_extractor"),
        }
    )
    watching.set_progress_bar_config(disable=True)
    with pytest.raises(TypeError, match=r"can't assign a numpy.ndarray to a torch.FloatTensor"):
        asked(watching, BRIGHT / 2 + 0.5)
    [done] = through(guard(flagging64), UP, drawn_large(upscaler_only))
    assert done.output is not None
    assert done.output["flagged"].data == b"\1"
    assert not image(done.output["picture_upscaler"])[:200].any()
