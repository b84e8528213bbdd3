"""From keyword arguments to a Request, and every way to get them wrong."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from ifmesh import bags, wishes
from ifmesh.case import failure
from ifmesh.embeds import Embeds
from ifmesh.errors import BadRequest
from ifmesh.geometry import FILE_BYTES
from ifmesh.image import Image
from ifmesh.protocol import Failed, Finished
from ifmesh.request import Request, Settings
from ifmesh.stage import Tensor
from tests.unit.stand_in import EMBEDS, pictures, png

SHA = "5e" * 32

STATE = bytes(range(256)) * 19 + bytes(192)
OWN = Embeds("an owl", "blurry", EMBEDS)
SQUARE, WIDE = png(64), png(96, 64)


class Generator:
    """As torch.Generator looks from here."""

    def __init__(self, state: bytes = STATE, seed: int = 11) -> None:
        self._state, self._seed = state, seed

    def get_state(self) -> array[int]:
        return array("B", self._state)

    def initial_seed(self) -> int:
        return self._seed


class Broken:
    """As a tensor without values looks from here."""

    def tolist(self) -> list[int]:
        raise NotImplementedError("Cannot copy out of meta tensor")


def made(prompt: object = "a fox", source: object = None, mask: object = None, **given: Any) -> tuple[Request, wishes.Brought]:
    return wishes.made(prompt, source, mask, given)


def test_nothing_wished_for() -> None:
    request, brought = made()
    assert request == Request("a fox", request.seed)
    assert 0 <= request.seed < 2**32
    assert brought == wishes.NOTHING


def test_everything_wished_for() -> None:
    settings: Mapping[str, Settings | Mapping[str, object]] = {"stage_one": {"steps": 9}, "stage_two": Settings(strength=0.5)}
    request, brought = made(
        source=WIDE,
        mask=png(192, 128),
        negative="a dog",
        seed=5,
        size=256,
        settings=settings,
        strength=0.9,
        seeding="per_stage",
        stages=False,
        priority=3,
        deadline=60,
        deadline_queued=20,
        deadline_running=30,
        tied=True,
    )
    assert request == Request(
        "a fox",
        5,
        "inpaint",
        "a dog",
        {"stage_one": Settings(steps=9, strength=0.9), "stage_two": Settings(strength=0.5)},
        seeding="per_stage",
        last_stage="stage_two",
        stages=False,
        priority=3,
        deadline=60.0,
        deadline_queued=20.0,
        deadline_running=30.0,
        brings=("source", "mask"),
        upload=brought.digest,
        tied=True,
    )
    bag = bags.decode(brought.frame)
    assert (bytes(bag["source"].data), bytes(bag["mask"].data)) == (WIDE, png(192, 128)) == (brought.source, brought.mask)
    assert hashlib.sha256(brought.frame).hexdigest() == brought.digest


def test_strength_goes_to_the_stages_that_run() -> None:
    request, _ = made(source=SQUARE, strength=1, size=64)
    assert (request.task, request.settings) == ("vary", {"stage_one": Settings(strength=1.0)})


@pytest.mark.parametrize(
    ("aspect", "width", "height"),
    [("1:1", 64, 64), ("3:2", 96, 64), ("2:3", 64, 96), ("16:9", 112, 64), ("4:1", 256, 64), ("9:32", 64, 224)],
)
def test_an_aspect_is_a_width_and_a_height(aspect: str, width: int, height: int) -> None:
    assert made(aspect_ratio=aspect, seed=1)[0] == Request("a fox", 1, width=width, height=height)
    assert made(aspect_ratio=None, width=72, seed=1)[0] == Request("a fox", 1, width=72)


def test_the_same_files_are_one_upload() -> None:
    assert made(source=SQUARE)[1].digest == made("an owl", source=bytearray(SQUARE))[1].digest
    assert made(source=WIDE)[1].digest != made(source=SQUARE)[1].digest
    request, brought = made(source=SQUARE)
    again = wishes.made("an owl", SQUARE, None, {"seed": 1}, brought)
    assert again == (Request("an owl", 1, "vary", brings=("source",), upload=request.upload), brought)


def test_embeds_know_their_prompt() -> None:
    request, brought = made("", embeds=OWN, seed=1)
    assert (request.prompt, request.negative, request.first_stage) == ("an owl", "blurry", "stage_one")
    assert request.brings == ("embeds",)
    assert bags.decode(brought.frame)["embeds"].shape == (2, 77, 8)
    assert made("a fox", embeds=OWN, negative="")[0].negative == ""


@pytest.mark.parametrize("generator", [Generator(), STATE, bytearray(STATE), array("B", STATE)])
def test_a_generator(generator: object) -> None:
    request, brought = made(generator=generator)
    assert request.seed == (11 if isinstance(generator, Generator) else 0)
    assert request.brings == ("rng",)
    assert bytes(bags.decode(brought.frame)["rng"].data) == STATE


def test_a_generator_of_torch() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator("cpu").manual_seed(7)
    request, brought = made(generator=generator)
    assert request.seed == 7
    assert bytes(bags.decode(brought.frame)["rng"].data) == bytes(generator.get_state().numpy())
    assert made(generator=generator.manual_seed(-1))[0].seed == 0, "beyond what a request may say"


def test_all_that_may_be_brought_at_once() -> None:
    request, brought = made("", SQUARE, SQUARE, embeds=OWN, generator=STATE)
    assert request.brings == ("source", "mask", "embeds", "rng")
    assert wishes.unpacked(request, brought.frame) == wishes.Brought(request.brings, brought.frame, request.upload, SQUARE, SQUARE)


BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("prompt", "say what to draw", {"prompt": ""}),
    ("prompt", "text", {"prompt": 7}),
    ("seed", "2\\*\\*63", {"seed": -1}),
    ("seed", "whole number", {"seed": "5"}),
    ("seed", "not both", {"seed": 5, "generator": STATE}),
    ("sede", "did you mean seed", {"sede": 5}),
    ("colour", "one of aspect_ratio, continues, deadline", {"colour": "red"}),
    ("size", "64, 256 or 1024", {"size": 512}),
    ("size", "64, 256 or 1024", {"size": "64"}),
    ("size", "64, 256 or 1024", {"size": True}),
    ("width", "multiple of 8", {"width": 63}),
    ("height", "follows its source", {"height": 64, "source": SQUARE}),
    ("aspect_ratio", "as in 3:2", {"aspect_ratio": "wide"}),
    ("aspect_ratio", "as in 3:2", {"aspect_ratio": "1.5:1"}),
    ("aspect_ratio", "as in 3:2", {"aspect_ratio": "3:0"}),
    ("aspect_ratio", "as in 3:2", {"aspect_ratio": 1.5}),
    ("aspect_ratio", "at most 4 times", {"aspect_ratio": "5:1"}),
    ("aspect_ratio", "or width, not both", {"aspect_ratio": "3:2", "width": 64}),
    ("aspect_ratio", "or height, not both", {"aspect_ratio": "3:2", "height": 64}),
    ("aspect_ratio", "vary follows its source", {"aspect_ratio": "3:2", "source": SQUARE}),
    ("aspect_ratoi", "did you mean aspect_ratio", {"aspect_ratoi": "3:2"}),
    ("settings.stage_one.schedule", "did you mean fast27", {"settings": {"stage_one": {"schedule": "fast72"}}}),
    ("settings.stage_one.scheduler", "burn out", {"settings": {"stage_one": {"scheduler": "euler"}}}),
    ("settings.stage_one.threshold_max", "finite number", {"settings": {"stage_one": {"threshold_max": "2"}}}),
    ("settings", "named values", {"settings": 7}),
    ("settings", "one of stage_one", {"settings": {"stage_nine": {"steps": 3}}}),
    ("settings.stage_one", "named fields", {"settings": {"stage_one": 7}, "source": SQUARE, "strength": 0.5}),
    ("settings.stage_one.stepz", "did you mean steps", {"settings": {"stage_one": {"stepz": 3}}}),
    ("settings", "finite", {"settings": {"stage_one": Settings(guidance=float("nan"))}}),
    ("settings.stage_one.strength", "leaves no step of 2", {"settings": {"stage_one": {"steps": 2}}, "source": SQUARE, "strength": 0.3}),
    ("strength", "belongs to vary", {"strength": 0.5}),
    ("strength", "above 0, at most 1", {"strength": 0, "source": SQUARE}),
    ("strength", "above 0, at most 1", {"strength": 1.5, "source": SQUARE}),
    ("strength", "above 0, at most 1", {"strength": float("nan"), "source": SQUARE}),
    ("strength", "above 0, at most 1", {"strength": "0.5", "source": SQUARE}),
    ("seeding", "one of chained", {"seeding": "none"}),
    ("seeding", "chained", {"seeding": "per_stage", "generator": STATE}),
    ("generator", "5056 bytes", {"generator": STATE[1:]}),
    ("generator", "5056 bytes", {"generator": Generator(bytes(16))}),
    ("generator", "5056 bytes", {"generator": random.Random(1)}),
    ("generator", "5056 bytes", {"generator": 7}),
    ("generator", "5056 bytes", {"generator": "cpu"}),
    ("generator", "5056 bytes", {"generator": Broken()}),
    ("mask", "give the source", {"mask": SQUARE}),
    ("mask", "96 x 64.*64 x 64", {"source": SQUARE, "mask": WIDE}),
    ("source", "PNG, JPEG or WebP", {"source": b"GIF89a"}),
    ("mask", "PNG, JPEG or WebP", {"source": SQUARE, "mask": b"GIF89a"}),
    ("embeds", "2, 77", {"embeds": [1.0]}),
    ("embeds", "2, 77", {"embeds": Embeds("a", "", Tensor("F16", (1, 77, 8), bytes(1232)))}),
    ("embeds", "2, 77", {"embeds": Embeds("a", "", Tensor("I16", (2, 77, 8), bytes(2464)))}),
    ("embeds", "do not fill", {"embeds": Embeds("a", "", Tensor("F16", (2, 77, 8), b"1"))}),
    ("style", "own hold no style", {"embeds": OWN, "style": "in oil"}),
    ("style", "control characters", {"style": "\x07"}),
    ("style", "text", {"style": 7}),
    ("settings.stage_one.positive_mixer", "with a style", {"settings": {"stage_one": {"positive_mixer": 0.5}}}),
    ("settings.stage_two.positive_mixer", "0.5 in Stage II", {"style": "in oil", "settings": {"stage_two": {"positive_mixer": 2}}}),
    ("format", "one of png, webp, jpeg", {"format": "jpg"}),
    ("keep", "a day", {"keep": 1e9, "size": 64}),
    ("keep", "nothing comes after upscaler", {"keep": 60}),
    ("keep", "number", {"keep": "60", "size": 64}),
    ("source", "path, URL", {"upscale": True}),
    ("upscale", "'alone'", {"upscale": "stage_two", "source": SQUARE}),
    ("upscale", "'alone'", {"upscale": 1, "source": SQUARE}),
    ("mask", "belongs to inpaint", {"upscale": True, "source": SQUARE, "mask": SQUARE}),
    ("size", "256 or 1024", {"upscale": True, "source": SQUARE, "size": 64}),
    ("size", "draws four times its source: leave it out", {"upscale": "alone", "source": SQUARE, "size": 256}),
    ("source", "260 x 65.*at most 256 pixels", {"upscale": True, "source": png(260, 65)}),
    ("source", "1032 x 300.*at most 1024 pixels", {"upscale": "alone", "source": png(1032, 300)}),
    ("embeds", "no embeddings", {"upscale": "alone", "source": SQUARE, "embeds": OWN}),
    ("style", "Stage I and II", {"upscale": "alone", "source": SQUARE, "style": "in oil"}),
    ("strength", "belongs to vary", {"upscale": True, "source": SQUARE, "strength": 0.5}),
    ("width", "follows its source", {"upscale": True, "source": SQUARE, "width": 64}),
    ("aspect_ratio", "follows its source", {"upscale": True, "source": SQUARE, "aspect_ratio": "3:2"}),
    ("prompt", "say what the picture shows", {"upscale": True, "source": SQUARE, "prompt": ""}),
    ("continues", "a picture of `candidates`", {"continues": "3f9c2a7be01d4c55"}),
    ("priority", "-100", {"priority": 101}),
    ("deadline", "above 0", {"deadline": 0.0}),
    ("tied", "true or false", {"tied": "yes"}),
]


@pytest.mark.parametrize(("field", "remedy", "given"), BAD, ids=[f"{field}-{number}" for number, (field, _, _) in enumerate(BAD)])
def test_a_bad_wish_names_field_value_and_remedy(field: str, remedy: str, given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=f"(?s){remedy}") as error:
        made(**given)
    assert error.value.field == field
    assert str(error.value).startswith(f"{field}: ")


# ---- upscale, and two ways that are one


@pytest.mark.parametrize(
    ("given", "way"),
    [
        ({"upscale": True}, ("encoder", "upscaler", ("source",))),
        ({"upscale": True, "size": 256, "keep": 60}, ("encoder", "stage_two", ("source",))),
        ({"upscale": True, "embeds": OWN}, ("stage_two", "upscaler", ("source", "embeds"))),
        ({"upscale": "alone"}, ("upscaler", "upscaler", ("source",))),
        ({"upscale": "alone", "generator": STATE}, ("upscaler", "upscaler", ("source", "rng"))),
    ],
)
def test_upscale(given: dict[str, Any], way: tuple[str, str, tuple[str, ...]]) -> None:
    request, _ = made(source=png(256, 96), **given)
    assert (request.task, request.first_stage, request.last_stage, request.brings) == ("upscale", *way)
    assert made(source=SQUARE, upscale=False)[0].task == "vary"


def kept(request: Request) -> Image:
    """What comes of it."""
    frame = pictures(request.last_stage)
    return Image.published(Finished("first", "", len(frame), request.seed, True, (), SHA), frame, request, SQUARE, WIDE)


def onwards(asked: Request, **given: Any) -> Request:
    request, brought = made(given.pop("prompt", ""), continues=kept(asked), **given)
    assert (brought.frame, brought.digest, brought.source, brought.mask) == (b"", SHA, SQUARE, WIDE)
    assert brought.names == request.brings
    return request


def test_what_continues_is_asked_for_as_it_was_but_for_what_is_wished_anew() -> None:
    settings = {"stage_one": {"steps": 9}, "stage_two": {"steps": 8, "positive_mixer": 0.2}, "upscaler": {"steps": 7}}
    common: dict[str, Any] = {"negative": "a dog", "style": "in oil", "seed": 5, "width": 96, "priority": 3, "tied": True}
    asked, _ = made(size=64, keep=60, deadline=9, settings=settings, **common)
    whole = Request("a fox", 5, negative="a dog", style="in oil", width=96, priority=3, tied=True)
    rest = replace(whole, first_stage="stage_two", brings=("embeds", "image64", "rng"), upload=SHA)
    later = {"stage_two": Settings(steps=8, positive_mixer=0.2), "upscaler": Settings(steps=7)}
    assert onwards(asked) == replace(rest, settings=later)
    assert onwards(asked, prompt="a fox", negative="a dog") == replace(rest, settings=later)
    anew = onwards(asked, size=256, settings={"stage_two": Settings(steps=3)}, keep=9, tied=False, format="webp", stages=False, deadline=5)
    later["stage_two"] = Settings(steps=3, positive_mixer=0.2)
    assert anew == replace(rest, last_stage="stage_two", settings=later, keep=9.0, tied=False, format="webp", stages=False, deadline=5.0)
    second = replace(rest, last_stage="stage_two", settings=later, keep=9.0)
    last = replace(
        whole, style="", first_stage="upscaler", settings={"upscaler": Settings(steps=7)}, brings=("image256", "rng"), upload=SHA
    )
    assert onwards(second) == last
    assert onwards(second, prompt="an owl", negative="") == replace(last, prompt="an owl", negative="")


def test_a_stage_is_wished_anew_field_by_field() -> None:
    asked, _ = made(size=64, keep=60, settings={"stage_two": {"steps": 8, "guidance": 3.0}})
    assert onwards(asked, settings={"stage_two": {"guidance": 6.0}}).settings == {"stage_two": Settings(steps=8, guidance=6.0)}
    assert onwards(asked, settings={"stage_two": {"schedule": "fast27"}}).settings == {
        "stage_two": Settings(schedule="fast27", guidance=3.0)
    }
    with pytest.raises(BadRequest, match="settings: 'stage_one': has drawn the picture that is continued"):
        onwards(asked, settings={"stage_one": {"steps": 3}})


def test_what_continues_a_varied_picture() -> None:
    """Its strength goes on as well; after Stage II nothing of the source is needed, and the rest is as of any picture."""
    asked, _ = made(source=SQUARE, mask=SQUARE, size=64, keep=60, strength=0.6, seeding="per_stage")
    rest = onwards(asked)
    assert (rest.task, rest.brings, rest.settings["stage_two"]) == (
        "inpaint",
        ("source", "mask", "embeds", "image64"),
        Settings(strength=0.6),
    )
    assert onwards(asked, strength=0.9).settings["stage_two"] == Settings(strength=0.9) != rest.settings["stage_two"]
    asked, _ = made(source=SQUARE, size=256, keep=60, strength=0.6)
    rest = onwards(asked)
    assert (rest.task, rest.first_stage, rest.brings, rest.settings) == ("generate", "upscaler", ("image256", "rng"), {})
    with pytest.raises(BadRequest, match="belongs to vary"):
        onwards(asked, strength=0.9)


SKETCH = Request("a fox", 5, last_stage="stage_one", keep=60.0)
FIXED: dict[str, Any] = {"style": "in oil", "seed": 5, "seeding": "per_stage", "generator": STATE, "embeds": OWN, "width": 64} | {
    "height": 64,
    "aspect_ratio": "3:2",
    "upscale": True,
    "source": SQUARE,
    "mask": SQUARE,
}


@pytest.mark.parametrize("field", FIXED)
def test_what_is_drawn_already_cannot_be_wished_anew(field: str) -> None:
    with pytest.raises(BadRequest, match=rf"^{field}: .*has its own: leave it out"):
        made("", continues=kept(SKETCH), **{field: FIXED[field]})


@pytest.mark.parametrize(
    ("asked", "field", "remedy", "given"),
    [
        (SKETCH, "prompt", "was encoded", {"prompt": "an owl"}),
        (SKETCH, "negative", "was encoded", {"negative": "an owl"}),
        (SKETCH, "size", "has got that far already", {"size": 64}),
        (replace(SKETCH, last_stage="stage_two"), "size", "has got that far already", {"size": 256}),
        (SKETCH, "size", "64, 256 or 1024", {"size": 512}),
        (SKETCH, "keep", "nothing comes after upscaler", {"keep": 60}),
        (SKETCH, "settings.upscaler.steps", "from 1 to 1000", {"settings": {"upscaler": {"steps": 0}}}),
        (SKETCH, "sise", "did you mean size", {"sise": 64}),
    ],
)
def test_a_bad_wish_for_what_continues(asked: Request, field: str, remedy: str, given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=remedy) as error:
        made(given.pop("prompt", ""), continues=kept(asked), **given)
    assert error.value.field == field


def test_only_what_was_kept_can_be_continued() -> None:
    for image in (replace(kept(replace(SKETCH, keep=0.0)), kept=""), replace(kept(SKETCH), request=None)):
        with pytest.raises(BadRequest, match=r"^continues: 'first': was not kept: ask for it with size=64 or 256, and keep=3600"):
            made("", continues=image)
    with pytest.raises(BadRequest, match=r"^continues: 'first': was not kept, for want of room in the mesh"):
        made("", continues=replace(kept(SKETCH), kept=""))


@pytest.mark.parametrize("name", ["source", "mask"])
def test_a_frame_that_is_made_already_holds_no_file_that_is_too_large(name: str) -> None:
    sizes = {"source": 9, "mask": 9, name: FILE_BYTES + 1}
    frame = bags.encode({which: Tensor("U8", (size,), bytes(size)) for which, size in sizes.items()})
    request = Request("a fox", 1, "inpaint", brings=("source", "mask"), upload=hashlib.sha256(frame).hexdigest())
    with pytest.raises(BadRequest, match=f"^{name}: '{FILE_BYTES + 1} bytes': at most {FILE_BYTES}"):
        wishes.unpacked(request, frame)


def test_a_request_that_is_made_already_fits_its_frame() -> None:
    request, brought = made(source=SQUARE)
    assert wishes.unpacked(Request("a fox", 1), b"") == wishes.NOTHING
    for asked, frame, field in (
        (request, b"", "upload"),
        (request, made(source=WIDE)[1].frame, "upload"),
        (Request("a fox", 1), brought.frame, "upload"),
        (Request("a fox", 1, brings=("rng",), upload=brought.digest), brought.frame, "brings"),
    ):
        with pytest.raises(BadRequest) as error:
            wishes.unpacked(asked, frame)
        assert error.value.field == field


def test_what_belongs_to_a_stage_is_shown_there() -> None:
    with pytest.raises(BadRequest, match=r"steps: 3: belongs to a stage: settings=\{'stage_one': Settings\(steps=\.\.\.\)\}"):
        wishes.made("a fox", None, None, {"steps": 3})


def test_embeddings_that_do_not_know_their_prompt_ask_for_it() -> None:
    nameless = Embeds("", "", Tensor("F16", (2, 77, 4), bytes(2 * 77 * 4 * 2)), ())
    with pytest.raises(BadRequest, match="prompt: '': these embeds do not know theirs"):
        wishes.made("", None, None, {"embeds": nameless})
    request, _ = wishes.made("a fox", None, None, {"embeds": nameless})
    assert request.prompt == "a fox"


def test_what_a_stage_says_of_an_upload_stands_in_the_error() -> None:
    told = Failed("j", "request", "stage_one", "", "embeds: [2, 77, 4096]: this cascade's are [2, 77, 64]: encode the prompt with it")
    error = failure(told, Request("a fox", 0))
    assert isinstance(error, BadRequest)
    assert (error.field, error.value) == ("embeds", "[2, 77, 4096]")
    assert error.remedy == "this cascade's are [2, 77, 64]: encode the prompt with it"
