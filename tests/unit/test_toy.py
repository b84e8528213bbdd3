"""The toy stages keep the contract of the real ones: names, shapes, dtypes, and bytes that depend on everything that came in."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from ifmesh import bags, toy
from ifmesh.cascade import DRAWN, IF, PICTURE
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Foreign, Setup, Stage, Tensor, counted

FOX = Request("a fox", seed=7)
SIZES = {"F16": 2, "U8": 1, "I64": 8}
BRINGS: dict[str, Tensor] = {
    "source": Tensor("U8", (900,), bytes(900)),
    "mask": Tensor("U8", (300,), bytes(300)),
    "embeds": Tensor("F32", (2, 77, 16), bytes(2 * 77 * 16 * 4)),
    "rng": Tensor("U8", (5056,), bytes(5056)),
}


def bringing(request: Request, *names: str) -> Request:
    """This request with an upload of these; its digest is not looked at here."""
    return replace(request, brings=names, upload="0" * 64, first_stage="stage_one" if "embeds" in names else "encoder")


TASKS = {
    "generate": FOX,
    "generate, its own generator": bringing(FOX, "rng"),
    "generate, its own embeddings": bringing(FOX, "embeds"),
    "vary": bringing(replace(FOX, task="vary"), "source"),
    "inpaint": bringing(replace(FOX, task="inpaint"), "source", "mask"),
    "inpaint, all its own": bringing(replace(FOX, task="inpaint"), "source", "mask", "embeds", "rng"),
    "encode": replace(FOX, task="encode", last_stage="encoder"),
    "one stage": replace(FOX, last_stage="stage_one"),
    "the last picture only": replace(FOX, stages=False),
}


def stages() -> dict[str, Stage]:
    return {s.name: s for s in (toy.Encoder(), toy.StageOne(), toy.StageTwo(), toy.Upscaler(), toy.Guard())}


def through(stage: Stage, request: Request, bag: Bag, setup: Setup | None = None) -> tuple[list[tuple[int, int]], Bag]:
    """All steps of one job: the counters, and the output."""
    stage.load(setup or Setup())
    stage.admit("j", request, bag)
    counters: list[tuple[int, int]] = []
    while True:
        for advance in stage.step():
            counters.append((advance.step, advance.steps))
            if advance.output is not None:
                return counters, advance.output


def chain(request: Request, brought: Bag | None = None) -> dict[str, Bag]:
    """The bag after each stage of the route, with what rides along, as a mesh would carry it."""
    made: dict[str, Bag] = {}
    bag: Bag = brought or {name: BRINGS[name] for name in request.brings}
    for name in IF.route(request):
        given = through(stages()[name], request, bag)[1]
        everything = {**bag, **given}
        bag = made[name] = {blob.name: everything[blob.name] for blob in IF.carries(request, name)}
    return made


def plain(bag: Bag) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (t.dtype, tuple(t.shape), bytes(t.data)) for name, t in bag.items()}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_goes_all_the_way(task: str) -> None:
    """The bags between the stages are exactly those that the receivers expect."""
    request = TASKS[task]
    IF.check(request)
    for name, bag in chain(request).items():
        expected = IF.carries(request, name)
        frame = bags.encode({blob.name: bag[blob.name] for blob in expected})
        assert bags.decode(frame, expected).keys() == bag.keys()


def test_each_stage_gives_what_the_cascade_declares() -> None:
    bag: Bag = {}
    for name in IF.route(FOX):
        given = through(stages()[name], FOX, bag)[1]
        assert set(given) == {b.name for b in IF[name].gives(FOX)}
        for blob in IF[name].gives(FOX):
            tensor = given[blob.name]
            assert len(tensor.shape) == len(blob.shape)
            assert all(got == want for got, want in zip(tensor.shape, blob.shape, strict=True) if isinstance(want, int))
            assert tensor.dtype == (blob.dtype or "F16")
            count = 1
            for side in tensor.shape:
                count *= side
            assert len(tensor.data) == count * SIZES[tensor.dtype]
        bag = {**bag, **given}
    assert len(bag["embeds"].data) == 1_261_568  # as the real ones in fp16
    assert len(bag["image64"].data) == 24_576
    assert len(bag["image256"].data) == 393_216
    assert len(bag["image1024"].data) == 3_145_728


def test_the_guard_gives_real_pngs_of_what_was_drawn() -> None:
    whole = chain(FOX)
    for stage, side in (("stage_one", 64), ("stage_two", 256), ("upscaler", 1024)):
        picture = Image.open(io.BytesIO(whole["guard"][f"picture_{stage}"].data))
        picture.load()
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (side, side))
    drawn = Image.open(io.BytesIO(whole["guard"]["picture_upscaler"].data))
    planes = whole["upscaler"]["image1024"].data
    assert b"".join(bytes(band.tobytes()) for band in drawn.split()) == bytes(planes)


def test_halves_become_the_levels_they_stand_for() -> None:
    level = toy._png(Tensor("F16", (3, 1, 8), b"".join(toy.HALVES[i] for i in range(24))), blank=False)
    assert Image.open(io.BytesIO(level)).tobytes() == bytes(v for x in range(8) for v in (x, 8 + x, 16 + x))
    odd = toy._png(Tensor("F16", (3, 1, 1), b"\x01\x00\x00\x7c\x00\x7e"), blank=False)  # tiny, infinite, not a number
    assert Image.open(io.BytesIO(odd)).tobytes() == bytes((128, 255, 0))


def test_same_request_same_bytes() -> None:
    assert {k: plain(v) for k, v in chain(FOX).items()} == {k: plain(v) for k, v in chain(FOX).items()}


@pytest.mark.parametrize(
    "other",
    [replace(FOX, seed=8), replace(FOX, prompt="a cat"), replace(FOX, negative="dogs")],
    ids=["seed", "prompt", "negative"],
)
def test_another_request_other_pixels(other: Request) -> None:
    mine, theirs = plain(chain(FOX)["guard"]), plain(chain(other)["guard"])
    assert all(mine[name] != theirs[name] for name in mine if name.startswith("picture_"))


@pytest.mark.parametrize("name", ["stage_one", "stage_two", "upscaler"])
def test_one_wrong_byte_on_the_way_in_shows(name: str) -> None:
    route = IF.route(FOX)
    bag = chain(FOX)[route[route.index(name) - 1]]
    for touched in (blob.name for blob in IF[name].needs(FOX)):
        data = bytearray(bag[touched].data)
        data[-1] ^= 1
        wrong = {**bag, touched: replace(bag[touched], data=bytes(data))}
        assert plain(through(stages()[name], FOX, bag)[1]) != plain(through(stages()[name], FOX, wrong)[1])


@pytest.mark.parametrize("task", [task for task in TASKS if TASKS[task].brings])
def test_every_byte_that_was_brought_shows_in_all_pictures(task: str) -> None:
    request = TASKS[task]
    mine = plain(chain(request)["guard"])
    for name in request.brings:
        other = {**{n: BRINGS[n] for n in request.brings}, name: replace(BRINGS[name], data=bytes(len(BRINGS[name].data) - 1) + b"\1")}
        theirs = plain(chain(request, other)["guard"])
        assert all(mine[png] != theirs[png] for png in mine if png.startswith("picture_"))


def test_the_tokens_of_the_texts_arrive_with_the_pictures() -> None:
    texts = replace(FOX, prompt="a fox in " + "deep snow " * 40, negative="azzzb czzz dogs")
    for last in (replace(texts, last_stage="stage_one"), replace(texts, task="encode", last_stage="encoder")):
        tokens = chain(last)[IF.route(last)[-1]]["tokens"]
        assert (tokens.dtype, tokens.shape) == ("I64", (2, 3))
        assert struct.unpack("<6q", tokens.data) == (4, 4, 2, 84, 77, 0)


def test_the_guard_alone_makes_the_same_picture_early() -> None:
    whole = chain(FOX)
    for stage, blob in DRAWN.items():
        look = Request("preview", 0, first_stage=stage, last_stage=stage, stages=False)
        given = through(toy.Guard(), look, {blob.name: whole[stage][blob.name]})[1]
        assert given.keys() == {b.name for b in IF.carries(look, "guard")} == {PICTURE[stage].name, "flagged"}
        assert plain(given)[PICTURE[stage].name] == plain(whole["guard"])[PICTURE[stage].name]


def test_sizes_and_steps_follow_the_request_and_the_options() -> None:
    wide = replace(FOX, width=96, height=40, last_stage="stage_one", settings={"stage_one": Settings(steps=3)})
    bag = chain(replace(wide, settings={}))["encoder"]
    counters, out = through(toy.StageOne(), wide, bag, Setup(options={"steps": 9}))
    assert counters == [(1, 3), (2, 3), (3, 3)]
    assert out["image64"].shape == (3, 40, 96)
    assert through(toy.StageOne(), FOX, bag, Setup(options={"steps": 2}))[0] == [(1, 2), (2, 2)]
    assert Image.open(io.BytesIO(chain(wide)["guard"]["picture_stage_one"].data)).size == (96, 40)


def brought(width: int, height: int, format: str) -> Tensor:
    """A source."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, format)
    return Tensor("U8", (file.tell(),), file.getvalue())


@pytest.mark.parametrize(
    ("task", "size", "drawn"),
    [
        ("vary", (500, 768), [(64, 96), (256, 392), (1024, 1568)]),
        ("inpaint", (96, 64), [(96, 64), (384, 256), (1536, 1024)]),
        ("upscale", (100, 61), [(384, 256), (1536, 1024)]),
        ("upscale", (256, 256), [(1024, 1024), (4096, 4096)]),
        ("alone", (100, 61), [(384, 256)]),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_sizes_follow_the_source(task: str, size: tuple[int, int], drawn: list[tuple[int, int]], format: str) -> None:
    """As in the real stages."""
    kind = "upscale" if task == "alone" else task
    request = bringing(replace(FOX, task=kind), *(("source", "mask") if task == "inpaint" else ("source",)))
    request = replace(request, first_stage="upscaler") if task == "alone" else request
    guard = chain(request, {"source": brought(*size, format), "mask": BRINGS["mask"]})["guard"]
    pictures = [Image.open(io.BytesIO(guard[name].data)).size for name in (blob.name for blob in PICTURE.values()) if name in guard]
    assert pictures == drawn


@pytest.mark.parametrize(("stage", "task", "size"), [("stage_one", "vary", (64, 300)), ("upscaler", "upscale", (1032, 1024))])
def test_a_source_that_would_become_too_large_is_refused(stage: str, task: str, size: tuple[int, int]) -> None:
    request = replace(bringing(replace(FOX, task=task), "source"), first_stage=stage)
    with pytest.raises(BadRequest, match="{} x {}".format(*size)):
        stages()[stage].admit("j", request, {"source": brought(*size, "PNG")})


def test_what_was_drawn_before_says_how_large_to_go_on() -> None:
    drawn = Tensor("F16", (3, 256, 392), bytes(2 * 3 * 256 * 392))
    request = Request("a fox", 7, first_stage="upscaler", brings=("image256",), upload="0" * 64)
    assert chain(request, {"image256": drawn})["upscaler"]["image1024"].shape == (3, 1024, 1568)


def test_the_numeric_class_says_the_mode_as_that_of_the_real_stages() -> None:
    ways: tuple[tuple[dict[str, str | int | float | bool], str, int], ...] = (
        ({}, "toy/1", 1),
        ({"mode": "exact"}, "toy/1", 1),
        ({"mode": "pooled"}, "toy/1, pooled, rows any", 8),
        ({"mode": "pooled", "rows": 16, "slots": 3}, "toy/1, pooled, rows 16", 3),
    )
    for options, numeric, slots in ways:
        stage = toy.StageOne()
        assert (stage.load(Setup(options=options)), stage.slots) == (numeric, slots)


def test_jobs_step_together_and_can_be_dropped() -> None:
    stage = toy.Encoder()
    stage.load(Setup(options={"slots": 2, "steps": 3}))
    stage.admit("a", FOX, {})
    stage.admit("b", FOX, {})
    assert [a.job for a in stage.step()] == ["a", "b"]
    stage.drop("a")
    stage.drop("never admitted")
    assert [(a.job, a.step) for a in stage.step()] == [("b", 2)]


def test_what_is_paused_stays_as_it_is() -> None:
    stage = toy.Encoder()
    stage.load(Setup(options={"steps": 3}))
    for job in ("a", "b"):
        stage.admit(job, FOX, {})
    assert [(a.job, a.step) for a in stage.step(("a",))] == [("b", 1)]
    assert [(a.job, a.step) for a in stage.step(("b",))] == [("a", 1)]
    assert [(a.job, a.step) for a in stage.step()] == [("a", 2), ("b", 2)]


@pytest.mark.parametrize("name", IF.route(FOX))
def test_another_goes_on_from_a_checkpoint(name: str) -> None:
    route, whole = IF.route(FOX), chain(FOX)
    bag = whole[route[route.index(name) - 1]] if name != route[0] else {}
    one, other = stages()[name], stages()[name]
    for stage in (one, other):
        stage.load(Setup())
    one.admit("j", FOX, bag)
    assert one.save("j") is None
    for _ in range(3):
        list(one.step())
    saved = one.save("j")
    assert saved is not None
    with pytest.raises(Foreign):
        other.admit("j", FOX, bag, {**saved, "done": counted(5)})
    assert not list(other.step())
    assert other.admit("j", FOX, bag, bags.decode(bags.encode(saved))) == 5
    for _ in range(2):
        [[mine], [theirs]] = [list(stage.step()) for stage in (one, other)]
        assert (mine.step, mine.output and plain(mine.output)) == (theirs.step, theirs.output and plain(theirs.output))
    assert theirs.output is not None
    assert one.save("j") is None


def test_its_steps_can_be_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Also those of a process that dies."""
    with caplog.at_level(logging.INFO, "ifmesh"):
        through(toy.Encoder(), FOX, {}, Setup(options={"steps": 3, "log_steps": True}))
        through(toy.Encoder(), FOX, {})
    assert [record.getMessage() for record in caplog.records] == [f"step {n} of 3 in encoder" for n in (1, 2, 3)]


def test_a_worker_can_be_trouble_to_all() -> None:
    with pytest.raises(MemoryError):
        through(toy.Encoder(), FOX, {}, Setup(options={"trouble": "oom"}))
    with pytest.raises(Misconfigured, match=r"services\.encoder\.options\.trouble: 'war': one of raise, oom, "):
        toy.Encoder().load(Setup(options={"trouble": "war"}))


def test_a_prompt_can_ask_for_trouble() -> None:
    with pytest.raises(BadRequest, match="encoder"):
        through(toy.Encoder(), replace(FOX, prompt="toy:bad=encoder"), {})
    with pytest.raises(RuntimeError, match="asked encoder"):
        through(toy.Encoder(), replace(FOX, prompt="toy:raise=encoder"), {})
    with pytest.raises(MemoryError, match="asked encoder"):
        through(toy.Encoder(), replace(FOX, prompt="toy:oom=encoder"), {})
    assert through(toy.Encoder(), replace(FOX, prompt="toy:raise=guard"), {})[0][-1] == (5, 5)  # not this stage
    flagged = chain(replace(FOX, prompt="toy:flag"))["guard"]
    assert bytes(flagged["flagged"].data) == b"\1"
    assert not any(Image.open(io.BytesIO(flagged["picture_stage_one"].data)).tobytes())


def test_abort_ends_the_process() -> None:
    code = "from ifmesh import toy; from ifmesh.protocol import Request; from ifmesh.stage import Setup\n"
    code += "s = toy.Guard(); s.load(Setup()); s.admit('j', Request('toy:abort=guard', 1), {}); list(s.step()); list(s.step())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == -6
