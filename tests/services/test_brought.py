"""Embeddings, generators and pictures of earlier stages that the client brings, and what the encoder says of the texts."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ifmesh_services import loading
from ifmesh_services.generators import sound
from ifmesh_services.tensors import to_blob, to_torch
from transformers import T5Tokenizer

from ifmesh import cascade
from ifmesh.errors import BadRequest
from ifmesh.request import Request, Settings
from ifmesh.stage import Stage, Tensor
from tests.services import oracle
from tests.services.chained import assert_equal, bringing, compare, drawn, file, passed
from tests.services.photos import photo, saved, stencil

FOX = "a red fox in the snow, oil on canvas"
ONE, TWO, UP = "stage_one", "stage_two", "upscaler"
FEW = {ONE: Settings(steps=3), TWO: Settings(steps=2), UP: Settings(steps=1)}
PICTURES = {"source": file(saved(photo(96, 64))), "mask": file(saved(stencil(96, 64)))}
NEEDS: dict[str, tuple[str, ...]] = {"generate": (), "vary": ("source",), "inpaint": ("source", "mask")}


def generator(seed: int, drawn_before: int = 0) -> torch.Generator:
    made = torch.Generator("cpu").manual_seed(seed)
    torch.randn(drawn_before, generator=made)
    return made


@pytest.mark.parametrize("task", ["generate", "vary", "inpaint"])
def test_a_brought_generator_goes_on_from_where_it_was(stages16: dict[str, Stage], nano16: Path, task: str) -> None:
    brought = {name: PICTURES[name] for name in NEEDS[task]} | {"rng": to_blob(generator(5, 1000).get_state())}
    compare(stages16, nano16, Request(FOX, 0, task, settings=FEW), brought)


def test_a_fresh_generator_is_its_seed_and_comes_back_as_it_was_left(stages16: dict[str, Stage]) -> None:
    brought = {"rng": to_blob(generator(7).get_state())}
    ours = passed(stages16, bringing(Request(FOX, 0, settings=FEW), brought), brought)
    seeded = passed(stages16, Request(FOX, 7, settings=FEW))
    assert ours.keys() == seeded.keys()
    assert ours == seeded  # the last generator, too


def behind_its_end() -> bytes:
    """A state that torch takes: its next word lies behind the last one."""
    state = bytearray(generator(1).get_state().numpy().tobytes())
    struct.pack_into("<iiQ", state, 8, 624, 1, 624)
    torch.Generator("cpu").set_state(torch.frombuffer(state, dtype=torch.uint8))
    return bytes(state)


@pytest.mark.parametrize("state", [bytes(5056), b"\xff" * 5056, behind_its_end()])
def test_what_is_no_generator_is_refused(stages16: dict[str, Stage], state: bytes) -> None:
    brought = {"rng": to_blob(torch.tensor(list(state), dtype=torch.uint8))}
    with pytest.raises(BadRequest, match="get_state") as caught:
        drawn(stages16, bringing(Request(FOX, 0, settings=FEW), brought), brought)
    assert (caught.value.field, caught.value.value) == ("rng", "5056 bytes")


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 311, 623, 624, 625, 12288])
def test_a_generator_that_was_used_is_one(count: int) -> None:
    used = generator(3)
    for draw in (torch.randn, torch.rand):
        draw(count, generator=used)
        assert sound(used.get_state())


@pytest.mark.parametrize("seeding", ["chained", "per_stage"])
@pytest.mark.parametrize("task", ["generate", "vary"])
def test_brought_embeddings_draw_what_the_encoders_own_do(stages16: dict[str, Stage], task: str, seeding: str) -> None:
    made = passed(stages16, Request(FOX, 0, "encode", negative="blurry", last_stage="encoder"))
    assert set(made) == {"embeds", "tokens"}
    request = Request(FOX, 8, task, "blurry", FEW, seeding=seeding)  # type: ignore[arg-type]
    source = {"source": PICTURES["source"]} if task == "vary" else {}
    whole = passed(stages16, bringing(request, source), source)
    brought = {**source, "embeds": made["embeds"]}
    skipping = Request(FOX, 8, task, "blurry", FEW, seeding=seeding, first_stage=ONE)  # type: ignore[arg-type]
    part = passed(stages16, bringing(skipping, brought), brought)
    assert part == {name: blob for name, blob in whole.items() if name not in ("embeds", "tokens")}


def test_embeddings_and_a_generator_at_once(stages16: dict[str, Stage]) -> None:
    embeds = passed(stages16, Request(FOX, 9, settings=FEW, last_stage=ONE))
    brought = {"embeds": embeds["embeds"], "rng": to_blob(generator(9).get_state())}
    request = bringing(Request("whatever", 0, settings=FEW, first_stage=ONE, last_stage=ONE), brought)
    assert_equal(drawn(stages16, request, brought), {"image64": to_torch(embeds["image64"])})


@pytest.mark.parametrize(
    ("embeds", "remedy"),
    [(torch.zeros(2, 77, 32), r"\[2, 77, 64\]: encode the prompt with it"), (torch.full((2, 77, 64), torch.nan), "no numbers")],
)
def test_embeddings_of_another_cascade_are_refused(stages16: dict[str, Stage], embeds: torch.Tensor, remedy: str) -> None:
    brought = {"embeds": to_blob(embeds)}
    with pytest.raises(BadRequest, match=remedy) as caught:
        drawn(stages16, bringing(Request(FOX, 0, settings=FEW, first_stage=ONE), brought), brought)
    assert (caught.value.field, caught.value.value) == ("embeds", list(embeds.shape))
    assert not list(stages16[ONE].step())


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [(FOX, ""), ("a fox and " * 60, FOX), ("\u4e00\u53ea\u888b\u9f20 fox \U0001f98a fox", "\u03a9"), ("x " * 900, "</s>")],
)
def test_the_encoder_says_what_it_could_read(stages16: dict[str, Stage], nano16: Path, prompt: str, negative: str) -> None:
    made = to_torch(passed(stages16, Request(prompt, 0, "encode", negative, last_stage="encoder"))["tokens"])
    tokenizer = loading.tokenizer(str(nano16 / "IF-I-nano"), T5Tokenizer)
    for row, text in zip(made.tolist(), (negative, prompt), strict=True):
        pieces = [*tokenizer.tokenize(text.lower().strip()), "</s>"]
        assert row == [len(pieces), min(77, len(pieces)), sum(tokenizer.convert_tokens_to_ids(piece) == 2 for piece in pieces)]
    assert made.dtype == torch.int64


def test_truncated_and_unknown(stages16: dict[str, Stage]) -> None:
    """The numbers themselves, where they are known."""
    made = to_torch(passed(stages16, Request("a fox " * 100, 0, "encode", "\u4e00", last_stage="encoder"))["tokens"])
    assert made[1].tolist() == [201, 77, 0]
    assert made[0, 1:].tolist() == [made[0, 0], 1]


def test_the_same_texts_again_say_the_same(stages16: dict[str, Stage]) -> None:
    """The last negative is remembered, its counts, too."""
    first, other, again = (
        passed(stages16, Request(FOX, 0, "encode", negative, last_stage="encoder")) for negative in ("a fox " * 60, "", "a fox " * 60)
    )
    assert first == again
    assert first["tokens"] != other["tokens"]


# ---- pictures of an earlier stage


def kept(stages: dict[str, Stage], request: Request, brought: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the mesh keeps for a job that goes on where this one ends."""
    request = replace(bringing(request, brought), keep=60.0)
    given = {**brought, **passed(stages, request, brought)}
    return {blob.name: given[blob.name] for blob in cascade.kept(request)}


@pytest.mark.parametrize("style", ["", "oil on canvas"])
@pytest.mark.parametrize("task", ["generate", "vary", "inpaint"])
def test_what_stage_one_kept_goes_on_undisturbed(stages16: dict[str, Stage], task: str, style: str) -> None:
    source = {name: PICTURES[name] for name in NEEDS[task]}
    request = Request(FOX, 20, task, "blurry", FEW, style)
    whole = passed(stages16, bringing(request, source), source)
    bag = kept(stages16, replace(request, last_stage=ONE), source)
    assert set(bag) == {"embeds", "image64", "rng", *source}
    going_on = passed(stages16, bringing(replace(request, first_stage=TWO), bag), bag)
    assert going_on == {name: whole[name] for name in ("image256", "image1024", "rng")}


def test_what_stage_two_kept_goes_on_undisturbed(stages16: dict[str, Stage]) -> None:
    """A picture that was varied is only made larger from there on."""
    source = {"source": PICTURES["source"]}
    request = Request(FOX, 21, "vary", "blurry", FEW)
    whole = passed(stages16, bringing(request, source), source)
    bag = kept(stages16, replace(request, last_stage=TWO), source)
    assert set(bag) == {"image256", "rng"}
    going_on = replace(request, task="generate", settings={UP: FEW[UP]}, first_stage=UP)
    assert passed(stages16, bringing(going_on, bag), bag) == {name: whole[name] for name in ("image1024", "rng")}


def test_what_was_kept_of_stages_with_generators_of_their_own(stages16: dict[str, Stage]) -> None:
    request = Request(FOX, 24, settings=FEW, seeding="per_stage")
    whole = passed(stages16, request)
    bag = kept(stages16, replace(request, last_stage=ONE), {})
    assert set(bag) == {"embeds", "image64"}
    going_on = passed(stages16, bringing(replace(request, first_stage=TWO), bag), bag)
    assert going_on == {name: whole[name] for name in ("image256", "image1024", "rng")}


def test_without_a_generator_the_seed_begins_anew(stages16: dict[str, Stage]) -> None:
    """As seeding per stage does in every stage."""
    whole = passed(stages16, Request(FOX, 22, settings=FEW, seeding="per_stage"))
    for first, names in ((TWO, ("embeds", "image64")), (UP, ("image256",))):
        bag = {name: whole[name] for name in names}
        made = passed(stages16, bringing(Request(FOX, 22, settings=FEW, seeding="per_stage", first_stage=first), bag), bag)
        assert made == {name: whole[name] for name in made}
        anew = passed(stages16, bringing(Request(FOX, 22, settings=FEW, first_stage=first, last_stage=first), bag), bag)
        assert anew == {name: whole[name] for name in anew if name != "rng"} | {"rng": anew["rng"]}
        assert set(anew) == {"image256" if first == TWO else "image1024", "rng"}


def test_any_range_is_taken_as_the_pipelines_take_it(stages16: dict[str, Stage], nano16: Path) -> None:
    """Ten times too wide for Stage II."""
    wild = 10 * torch.randn(3, 16, 24, generator=generator(1))
    embeds = passed(stages16, Request(FOX, 0, "encode", last_stage="encoder"))["embeds"]
    bag = {"embeds": embeds, "image64": to_blob(wild)}
    request = Request(FOX, 23, settings=FEW, first_stage=TWO, last_stage=TWO)
    negative, prompt = torch.split(to_torch(embeds), 1)
    two = oracle.pipeline(nano16, TWO)(
        image=wild[None],
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        height=64,
        width=96,
        num_inference_steps=2,
        noise_level=250,
        generator=generator(23),
        output_type="pt",
    )
    assert_equal(drawn(stages16, bringing(request, bag), bag), {"image256": two.images[0]})


FINE = torch.zeros(3, 16, 24)
HOLED = FINE.index_put((torch.tensor(1), torch.tensor(2), torch.tensor(3)), torch.tensor(torch.nan))


@pytest.mark.parametrize(
    ("image", "first", "remedy"),
    [
        (torch.zeros(3, 20, 16), TWO, r"\[3, h, w\], for Stage II h and w multiples of 8 from 8 to 256"),
        (torch.zeros(3, 16, 264), TWO, "from 8 to 256"),
        (torch.zeros(3, 16, 1032), UP, "for the upscaler h and w multiples of 8 from 8 to 1024"),
        (HOLED, TWO, r"no numbers in torch\.float32"),
        (HOLED, UP, "no numbers"),
        (FINE - torch.inf, UP, "no numbers"),
    ],
)
def test_what_no_stage_has_drawn_is_refused(stages16: dict[str, Stage], image: torch.Tensor, first: str, remedy: str) -> None:
    name = {TWO: "image64", UP: "image256"}[first]
    bag = {name: to_blob(image)} | ({"embeds": to_blob(torch.zeros(2, 77, 64))} if first == TWO else {})
    with pytest.raises(BadRequest, match=remedy) as caught:
        passed(stages16, bringing(Request(FOX, 0, settings=FEW, first_stage=first), bag), bag)
    assert (caught.value.field, caught.value.value) == (name, list(image.shape))
    assert not list(stages16[first].step())
