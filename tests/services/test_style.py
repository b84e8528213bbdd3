"""A style mixed into the prompt, as the original DeepFloyd IF does it: diffusers' pipelines with a UNet that mixes, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ifmesh_services import denoising, recipes
from ifmesh_services.encoder import Encoder
from ifmesh_services.tensors import to_blob, to_torch

from ifmesh.errors import BadRequest
from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Setup, Stage
from tests.services import oracle
from tests.services.chained import as_anybody_loads, assert_equal, bringing, drawn, file, loaded, passed, run
from tests.services.photos import photo, saved, stencil
from tests.services.test_loading import rewritten
from tests.services.together import alone, apart, pooled, together

FOX, OIL = "a red fox in the snow", "oil on canvas, thick strokes"
ONE, TWO, UP = "stage_one", "stage_two", "upscaler"
USUAL = {ONE: 0.25, TWO: 0.5}
PICTURES = {"source": file(saved(photo(24, 16))), "mask": file(saved(stencil(24, 16)))}
NEEDS = {"generate": (), "vary": ("source",), "inpaint": ("source", "mask"), "upscale": ("source",)}


def settings(mixer: float | None = None, **more: Any) -> dict[str, Settings]:
    return {ONE: Settings(steps=3, positive_mixer=mixer, **more), TWO: Settings(steps=2, positive_mixer=mixer, **more)}


def asked(task: str = "generate", **more: Any) -> tuple[Request, dict[str, Any]]:
    brought = {name: PICTURES[name] for name in NEEDS[task]}
    return bringing(Request(FOX, 90, task, "blurry", last_stage=TWO, **{"settings": settings(), "style": OIL, **more}), brought), brought


def mixing(
    unet: Any, style: torch.Tensor, mixer: float, x: Any, t: Any, encoder_hidden_states: Any, class_labels: Any = None, **_: Any
) -> Any:
    """A UNet's forward that asks for one row more, the style's, and mixes its noise into the prompt's, the last that was asked for."""
    labels = None if class_labels is None else torch.cat([class_labels, class_labels[-1:]])
    texts = torch.cat([encoder_hidden_states, style])
    answer = type(unet).forward(unet, torch.cat([x, x[-1:]]), t, encoder_hidden_states=texts, class_labels=labels, return_dict=False)[0]
    eps, rest = answer[:, :3], answer[:, 3:]
    mixed = eps[-2] * (1 - mixer) + eps[-1] * mixer
    return (torch.cat([torch.cat([eps[:-2], mixed[None]]), rest[:-1]], dim=1),)


@contextmanager
def styled(folder: Path, task: str, mixers: Mapping[str, float]) -> Iterator[None]:
    """The oracle's pipelines with UNets that mix."""
    kind = "generate" if task == "upscale" else task
    with torch.no_grad():
        style, _ = oracle.pipeline(folder, ONE, torch.float32, "generate").encode_prompt(OIL)
    unets = {stage: oracle.pipeline(folder, stage, torch.float32, kind).unet for stage in mixers}
    for stage, unet in unets.items():
        unet.forward = partial(mixing, unet, style, mixers[stage])
    try:
        yield
    finally:
        for unet in unets.values():
            del unet.forward


def compare(stages: Mapping[str, Stage], folder: Path, request: Request, brought: Bag, mixers: Mapping[str, float]) -> None:
    ours = drawn(stages, request, brought)
    with styled(folder, request.task, mixers):
        theirs = oracle.chain(
            folder,
            request.prompt,
            request.negative,
            request.seed,
            request.settings,
            task=request.task,
            source=as_anybody_loads(brought, "source"),
            mask=as_anybody_loads(brought, "mask"),
            last_stage=request.last_stage,
        )
    assert torch.equal(ours.pop("embeds")[:2], theirs.pop("embeds"))
    assert_equal(ours, theirs)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("task", NEEDS)
def test_the_formula(stages16: dict[str, Stage], nano16: Path, task: str, guidance: float) -> None:
    request, brought = asked(task, settings=settings(0.3, guidance=guidance))
    compare(stages16, nano16, request, brought, {ONE: 0.3, TWO: 0.3})


def test_the_usual_mixers_and_a_cascades_own(stages16: dict[str, Stage], nano16: Path, tmp_path: Path) -> None:
    request, brought = asked()
    compare(stages16, nano16, request, brought, USUAL)
    own = rewritten(nano16, tmp_path / "own", stage_one={"repo": "IF-I-nano", "positive_mixer": 0.75, "vary": {"positive_mixer": 1}})
    assert recipes.read(own).defaults["vary"][ONE].positive_mixer == 1
    compare(loaded(Path(own)), nano16, request, brought, {ONE: 0.75, TWO: 0.5})


def test_the_encoder_reads_the_style_once(nano16: Path) -> None:
    encoder = Encoder()
    encoder.load(Setup(cascade=str(nano16)))
    request = Request(FOX, 0, negative="blurry", style=OIL)
    made = run(encoder, "job", request, {})
    embeds, tokens = to_torch(made["embeds"]), to_torch(made["tokens"])
    assert embeds.shape[0] == tokens.shape[0] == 3
    unstyled = run(encoder, "job", Request(FOX, 0, negative="blurry"), {})
    other = run(encoder, "job", Request(OIL, 0), {})
    for name, whole in (("embeds", embeds), ("tokens", tokens)):
        assert torch.equal(whole[:2], to_torch(unstyled[name]))
        assert torch.equal(whole[2], to_torch(other[name])[1])
    misses = encoder.cache.misses
    assert run(encoder, "job", request, {}) == made
    assert encoder.cache.misses == misses


# ---- the ends of the mixer


def image(stages: Mapping[str, Stage], stage: str, request: Request, bag: Bag) -> torch.Tensor:
    return to_torch(run(stages[stage], "job", request, bag)["image64" if stage == ONE else "image256"])


@pytest.fixture(scope="module")
def bag(stages16: dict[str, Stage]) -> Bag:
    """Before Stage II, three texts."""
    request, _ = asked()
    made = run(stages16["encoder"], "job", request, {})
    return {**made, **run(stages16[ONE], "job", request, made)}


def without(bag: Bag, text: int) -> Bag:
    embeds = to_torch(bag["embeds"])
    return {**bag, "embeds": to_blob(torch.cat([embeds[:text], embeds[text + 1 :]]))}


CLOSE = {ONE: 2e-4, TWO: 5e-3}  # as test_pool.py allows; with guidance it is 0 here


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("stage", CLOSE)
def test_nothing_of_the_style_is_the_prompt_alone(stages16: dict[str, Stage], bag: Bag, stage: str, guidance: float) -> None:
    """But for the last bits, where a UNet that is asked for one row more computes otherwise."""
    none = image(stages16, stage, asked(settings=settings(0.0, guidance=guidance))[0], bag)
    plain = image(stages16, stage, asked(settings=settings(guidance=guidance), style="")[0], without(bag, 2))
    assert (none - plain).abs().max() <= CLOSE[stage]


@pytest.mark.parametrize("stage", CLOSE)
def test_all_of_the_style_is_the_style_as_prompt(stages16: dict[str, Stage], bag: Bag, stage: str) -> None:
    """Where the scheduler does not ask for the variance: that stays the prompt's."""

    def apart(scheduler: str) -> torch.Tensor:
        whole = image(stages16, stage, asked(settings=settings(1.0, scheduler=scheduler))[0], bag)
        plain = image(stages16, stage, asked(settings=settings(scheduler=scheduler), style="")[0], without(bag, 1))
        return (whole - plain).abs().max()

    assert apart("ddim") <= CLOSE[stage] < apart("ddpm")


def test_between_them_every_mixer_draws_another_picture(stages16: dict[str, Stage], bag: Bag) -> None:
    made = [image(stages16, ONE, asked(settings=settings(mixer))[0], bag) for mixer in (None, 0.0, 0.25, 0.5, 1.0)]
    assert torch.equal(made.pop(0), made[1]), "the usual one is 0.25"
    assert not any(torch.equal(one, other) for i, one in enumerate(made) for other in made[:i])


# ---- with others


@pytest.mark.parametrize("rows", [0, 4, 6])
@pytest.mark.parametrize("stage", [ONE, TWO])
def test_pooled_styles_have_the_bits_of_exact_mode(stages16: dict[str, Stage], nano16: Path, bag: Bag, stage: str, rows: int) -> None:
    """A request of three rows among requests of two."""
    source = {"source": file(saved(photo(16, 16)))}
    vary = bringing(Request(FOX, 92, "vary", "blurry", settings(guidance=3.0), OIL), source)
    jobs = {
        "plain": (asked(settings=settings(), style="")[0], without(bag, 2)),
        "styled": (asked()[0], bag),
        "later": (asked(settings=settings(0.8))[0], bag),
        "vary": (vary, {**bag, **source}),
    }
    made = pooled(nano16, stage, rows=rows)
    assert set(apart(together(made, jobs), alone(stages16[stage], jobs), stage).values()) == {0.0}


# ---- brought


def test_brought_embeddings_hold_the_style(stages16: dict[str, Stage]) -> None:
    request, _ = asked()
    whole = passed(stages16, request)
    brought = {"embeds": whole["embeds"]}
    part = passed(stages16, bringing(asked(first_stage=ONE)[0], brought), brought)
    assert part == {name: whole[name] for name in ("image64", "image256", "rng")}


@pytest.mark.parametrize(
    ("texts", "style", "said"),
    [(2, OIL, r"\[3, 77, 64\], rows negative, prompt, style"), (3, "", r"\[2, 77, 64\], rows negative, prompt:"), (1, "", r"\[2, 77")],
)
def test_rows_that_are_not_the_requests_are_refused(stages16: dict[str, Stage], texts: int, style: str, said: str) -> None:
    brought = {"embeds": to_blob(torch.randn(texts, 77, 64))}
    with pytest.raises(BadRequest, match=said) as caught:
        drawn(stages16, bringing(asked(first_stage=ONE, style=style)[0], brought), brought)
    assert (caught.value.field, caught.value.value) == ("embeds", [texts, 77, 64])


# ---- broken on purpose


right = denoising.styled
FAULTS: dict[str, object] = {
    "the wrong way round": lambda predicted, mixer, channels: right(predicted, 1 - mixer, channels),
    "variance mixed, too": lambda predicted, mixer, channels: right(predicted, mixer, 2 * channels),
    "variance of the style": lambda predicted, mixer, channels: right(
        torch.cat([predicted[:-2], predicted[-2:].flip(0)]), 1 - mixer, channels
    ),
    "no style": lambda predicted, mixer, channels: predicted[:-1],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(stages16: dict[str, Stage], nano16: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(denoising, "styled", FAULTS[fault])
    with pytest.raises(AssertionError, match="image64 differs by"):
        compare(stages16, nano16, *asked(), USUAL)
