"""From keyword arguments to a Request, and every way to get them wrong."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Mapping
from typing import Any

import pytest

from ifmesh import bags, wishes
from ifmesh.case import failure
from ifmesh.embeds import Embeds
from ifmesh.errors import BadRequest
from ifmesh.geometry import FILE_BYTES
from ifmesh.protocol import Failed, Request, Settings
from ifmesh.stage import Tensor
from tests.unit.stand_in import EMBEDS, png

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
    ("colour", "one of aspect_ratio, deadline, embeds", {"colour": "red"}),
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
