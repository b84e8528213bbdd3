"""What was interrupted after any step goes on from its checkpoint, in another stage, to the bits of diffusers' own pipelines."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from ifmesh_services import checkpoint
from ifmesh_services.guard import Guard

from ifmesh import bags
from ifmesh.cascade import IF
from ifmesh.request import Request, Settings
from ifmesh.samplers import SAMPLERS
from ifmesh.stage import DONE, Bag, Foreign, Setup, Stage, Tensor, counted
from ifmesh.wire import Garbled
from tests.services.chained import KINDS, bringing, compare, file, loaded, passed, run
from tests.services.interrupted import At, Interrupted
from tests.services.pairwise import Case, pairs, pairwise, shared, whole
from tests.services.photos import photo, saved, stencil
from tests.services.together import GUIDED, ONE, TWO, UP, every, pooled, requests, together

# numpy's word to torch, within the solvers of diffusers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

FOX, OIL = "a red fox in the snow", "oil on canvas, thick strokes"
STEPS = {ONE: 4, TWO: 3, UP: 3}
ROWS = 6  # of the pools: their bytes are always the same
FACTORS: dict[str, tuple[object, ...]] = {
    "sampler": SAMPLERS,
    "task": ("generate", "vary", "inpaint", "upscale", "upscale alone"),
    "texts": ("prompt", "guided", "styled"),
    "seeding": ("chained", "per_stage"),
    "mode": ("exact", "pooled"),
    "at": get_args(At),
}
NEEDS = {"generate": (), "inpaint": ("source", "mask")}
MADE = {"source": photo(48, 32), "mask": stencil(48, 32)}

Stages = Mapping[str, Stage]


@pytest.fixture(scope="module")
def stages(nano16: Path, stages16: Stages) -> dict[str, tuple[Stages, Stages]]:
    """By mode, twice: as in two processes."""
    pools = [{"encoder": stages16["encoder"], **{name: pooled(nano16, name, rows=ROWS) for name in STEPS}} for _ in range(2)]
    return {"exact": (stages16, loaded(nano16)), "pooled": (pools[0], pools[1])}


def asked(sampler: str, task: str, texts: str, seeding: str) -> tuple[Request, Bag]:
    task, _, alone = task.partition(" ")
    said: dict[str, Any] = {"scheduler": sampler, "guidance": 1.0 if texts == "prompt" else 6.0}
    settings = {stage: Settings(steps=steps, **said) for stage, steps in STEPS.items()}
    small = {"source": photo(16, 24)} if task == "upscale" else MADE
    brought = {name: file(saved(small[name])) for name in NEEDS.get(task, ("source",))}
    more: dict[str, Any] = {"style": OIL if texts == "styled" and not alone else "", "first_stage": UP if alone else "encoder"}
    request = Request(FOX, 7, task, "blurry", settings, seeding=seeding, **more)  # type: ignore[arg-type]
    return bringing(request, brought), brought


def moving(pair: tuple[Stages, Stages], at: At) -> dict[str, Stage]:
    """Every stage that draws is interrupted."""
    return {name: Interrupted(one, pair[1][name], at) if name in STEPS else one for name, one in pair[0].items()}


def check(pair: tuple[Stages, Stages], request: Request, brought: Bag, *ats: At) -> None:
    """All that every stage gives, the generator's state included, is what it is undisturbed."""
    wanted = passed(pair[0], request, brought)
    for at in ats:
        disturbed = moving(pair, at)
        assert passed(disturbed, request, brought) == wanted
        for name in IF.route(request):
            assert name not in STEPS or cast(Interrupted, disturbed[name]).resumed, f"{name} was not interrupted"


def named(case: Case) -> str:
    return "-".join(str(part).replace(" ", "_") for part in case)


@pytest.mark.parametrize("case", shared(pairwise(FACTORS)), ids=named)
def test_every_pair(stages: dict[str, tuple[Stages, Stages]], case: Case) -> None:
    *words, mode, at = cast(tuple[str, str, str, str, str, At], case)
    check(stages[mode], *asked(*words), at)


@pytest.mark.parity
@pytest.mark.parametrize("case", whole({name: values for name, values in FACTORS.items() if name != "at"}), ids=named)
def test_the_whole_matrix(nano16: Path, stages: dict[str, tuple[Stages, Stages]], case: Case) -> None:
    *words, mode = cast(tuple[str, str, str, str, str], case)
    request, brought = asked(*words)
    check(stages[mode], request, brought, *get_args(At))
    if mode == "exact" and not request.style:  # diffusers' pipelines know no style
        compare(moving(stages[mode], "every"), nano16, request, brought)


@pytest.mark.parametrize("task", ["generate", "inpaint", "upscale"])
def test_interrupted_after_every_step_it_is_what_diffusers_draw(nano16: Path, stages: dict[str, tuple[Stages, Stages]], task: str) -> None:
    compare(moving(stages["exact"], "every"), nano16, *asked("ddpm", task, "guided", "chained"))


def test_the_selection_holds_every_pair() -> None:
    chosen, everything = pairwise(FACTORS), whole(FACTORS)
    assert set().union(*map(pairs, chosen)) == set().union(*map(pairs, everything))
    assert len(everything) == 960
    assert len(chosen) <= 26


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mode", ["exact", "pooled"])
def test_half_precision(nano16: Path, sampler: str, mode: str) -> None:
    """Also in a pool, which keeps x in fp32."""
    request, _ = asked(sampler, "generate", "guided", "chained")
    bag = run(loaded(nano16)["encoder"], "job", request, {})
    made: list[Stage] = []
    for _ in range(2):
        options: dict[str, Any] = {} if mode == "exact" else {"mode": "pooled", "rows": ROWS}
        made.append(KINDS[ONE]())
        made[-1].load(Setup(cascade=str(nano16), dtype="bf16", options=options))
    both = Interrupted(made[0], made[1], "every")
    assert run(both, "job", request, bag) == run(made[0], "job", request, bag)
    assert both.resumed == [1, 2, 3]


def test_long_lists_of_the_solvers(stages16: Stages, nano16: Path) -> None:
    """From 15 steps on they end otherwise; and where a picture is drawn over, they begin in the midst of their list."""
    other = loaded(nano16)
    for sampler, task in product(("dpm++", "dpm++-single"), ("generate", "vary")):
        request, brought = asked(sampler, task, "prompt", "chained")
        settings = {ONE: Settings(steps=16, scheduler=sampler, guidance=1.0)}
        check((stages16, other), replace(request, settings=settings, last_stage=ONE), brought, "middle", "every")


def test_it_goes_on_among_other_neighbours(nano16: Path, stages16: Stages) -> None:
    """In a pool with fixed rows: interrupted one by one, each goes on in the other pool, beside whoever is there."""
    one, other = (pooled(nano16, ONE, rows=ROWS) for _ in range(2))
    jobs = {job: (request, {**bag, **run(stages16["encoder"], job, request, bag)}) for job, (request, bag) in requests().items()}
    wanted = together(one, jobs)
    frames: dict[str, bytes] = {}
    for job in GUIDED:
        one.admit(job, *jobs[job])
    other.admit("no guidance", *jobs["no guidance"])
    given: dict[str, Bag] = {}
    for _ in range(2):
        list(one.step())
    for job in GUIDED:
        frames[job] = bags.encode(one.save(job) or {})
    for job, frame in frames.items():
        other.admit(job, *jobs[job], bags.decode(frame))
        given |= {advance.job: advance.output for advance in other.step() if advance.output}
    for _ in range(5):
        given |= {advance.job: advance.output for advance in other.step() if advance.output}
    assert given == {job: wanted[job] for job in given}
    assert set(given) == {*GUIDED, "no guidance"}


# ---- what it is, and what is none

BASE = 3 * 16 * 16 * 4  # bytes of x


@pytest.fixture(scope="module")
def encoded(stages16: Stages) -> Bag:
    return run(stages16["encoder"], "job", Request(FOX, 7), {})


def after(stage: Stage, request: Request, bag: Bag, steps: int) -> Bag:
    """The checkpoint after so many steps; the job is dropped."""
    stage.admit("job", request, bag)
    for _ in range(steps):
        list(stage.step())
    made = stage.save("job")
    stage.drop("job")
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("sampler", "names"),
    [("ddpm", {"x"}), ("ddim", {"x"}), ("dpm++", {"x", "output0"}), ("dpm++-single", {"x", "output0", "sample"})],
)
def test_it_holds_what_is_needed_and_no_more(stages16: Stages, encoded: Bag, sampler: str, names: set[str]) -> None:
    request = Request(FOX, 7, settings={ONE: Settings(steps=4, scheduler=sampler)})
    for step in (1, 3):
        made = after(stages16[ONE], request, encoded, step)
        assert made.keys() == names | {"rng", DONE}
        assert {len(made[name].data) for name in names} == {BASE}
        assert made[DONE] == counted(step)


def test_there_is_none_before_the_first_step_and_after_the_last(stages16: Stages, nano16: Path, encoded: Bag) -> None:
    """Of the upscaler, the latents that wait for their decode count as done; encoder and guard have none at all."""
    request = Request(FOX, 7, settings=every(steps=2))
    bag = dict(encoded)
    for name in STEPS:
        stage = stages16[name]
        stage.admit("job", request, bag)
        assert stage.save("job") is None
        list(stage.step())
        assert stage.save("job") is not None
        list(stage.step())
        assert stage.save("job") is None
        stage.drop("job")
        bag |= run(stage, "job", request, bag)
    assert stages16[ONE].save("a stranger") is None
    guard = Guard()
    guard.load(Setup(cascade=str(nano16)))
    for one in (stages16["encoder"], guard):
        with pytest.raises(Foreign, match="saves nothing"):
            one.admit("job", request, bag, {DONE: counted(1)})
        assert one.save("job") is None
        assert not list(one.step())


def nothing(good: Bag) -> Bag:
    return {}


FOREIGN: dict[str, Any] = {
    "nothing": nothing,
    "no step": lambda good: {**good, DONE: Tensor("U8", (1,), b"\2")},
    "step 0": lambda good: {**good, DONE: counted(0)},
    "a step before": lambda good: {**good, DONE: Tensor("I64", (1,), b"\xff" * 8)},
    "the last step": lambda good: {**good, DONE: counted(5)},
    "far beyond": lambda good: {**good, DONE: counted(2**62)},
    "two steps": lambda good: {**good, DONE: Tensor("I64", (2,), bytes(16))},
    "one tensor more": lambda good: {**good, "more": counted(1)},
    "no x": lambda good: {name: tensor for name, tensor in good.items() if name != "x"},
    "another shape": lambda good: {**good, "x": replace(good["x"], shape=(1, 3, 8, 32))},
    "a flat x": lambda good: {**good, "x": replace(good["x"], shape=(3 * 16 * 16,))},
    "a huge x": lambda good: {**good, "x": Tensor("F32", (1, 3, 1 << 20, 1 << 20), b"")},
    "another dtype": lambda good: {**good, "x": Tensor("F16", (1, 3, 16, 16), bytes(BASE // 2))},
    "another dtype of the same size": lambda good: {**good, "x": replace(good["x"], dtype="I32")},
    "too few bytes": lambda good: {**good, "x": replace(good["x"], data=bytes(BASE - 4))},
    "no numbers": lambda good: {**good, "x": replace(good["x"], data=b"\xff" * BASE)},
    "no generator": lambda good: {**good, "rng": replace(good["rng"], data=bytes(5056))},
    "a generator beyond its words": lambda good: {
        **good,
        "rng": replace(good["rng"], data=good["rng"].data[:8] + b"\xff\xff\0\0" + good["rng"].data[12:]),
    },
    "no output": lambda good: {name: tensor for name, tensor in good.items() if name != "output0"},
    "one output too many": lambda good: {**good, "output1": good["output0"]},
    "no sample": lambda good: {name: tensor for name, tensor in good.items() if name != "sample"},
}


@pytest.mark.parametrize("wrong", FOREIGN)
def test_what_is_none_is_refused_and_the_job_is_not_admitted(stages16: Stages, encoded: Bag, wrong: str) -> None:
    stage, request = stages16[ONE], Request(FOX, 7, settings={ONE: Settings(steps=5, scheduler="dpm++-single")})
    good = after(stage, request, encoded, 3)
    with pytest.raises(Foreign):
        stage.admit("job", request, encoded, FOREIGN[wrong](good))
    assert not list(stage.step())
    assert stage.admit("job", request, encoded, good) == 5
    stage.drop("job")


def test_that_of_another_stage_or_request_is_refused(stages16: Stages, encoded: Bag) -> None:
    settings = every(steps=4)
    request = Request(FOX, 7, settings=settings)
    small = after(stages16[ONE], request, encoded, 2)
    bag = {**encoded, **run(stages16[ONE], "job", request, encoded)}
    with pytest.raises(Foreign):
        stages16[TWO].admit("job", request, bag, small)
    for other in (replace(request, width=24), replace(request, settings=settings | {ONE: Settings(steps=2)})):
        with pytest.raises(Foreign):
            stages16[ONE].admit("job", other, encoded, small)


def test_mutated_ones_do_no_harm(stages16: Stages, encoded: Bag) -> None:
    """Refused, or taken and drawn to an end."""
    stage, request = stages16[ONE], Request(FOX, 7, settings={ONE: Settings(steps=3)})
    frame, dice = bags.encode(after(stage, request, encoded, 2)), random.Random(1)
    refused = taken = 0
    for _ in range(400):
        wrong = bytearray(frame)
        for _ in range(dice.choice((1, 1, 2, 8))):
            wrong[dice.randrange(dice.choice((8, 300, len(wrong))))] = dice.randrange(256)
        try:
            stage.admit("job", request, encoded, bags.decode(bytes(wrong)))
        except (Garbled, Foreign):
            refused += 1
        else:
            taken += 1
            stage.drop("job")
    assert refused > 100
    assert taken > 10  # a bit of a picture is a bit of a picture


# ---- break it on purpose

true_resume, true_recall = checkpoint.resume, checkpoint._recall


def without_generator(draw: Any, bag: Bag) -> None:
    state = draw.source.get_state()
    true_resume(draw, bag)
    draw.source.set_state(state)


def without_step(draw: Any, bag: Bag) -> None:
    true_resume(draw, bag)
    draw.done -= 1


def with_coarse_x(draw: Any, bag: Bag) -> None:
    true_resume(draw, bag)
    draw.x = draw.x.to(torch.bfloat16).to(draw.x.dtype)


def without_memory(draw: Any, memory: dict[str, torch.Tensor]) -> None:
    true_recall(draw, dict(memory))
    draw.scheduler.model_outputs = [None] * draw.scheduler.config.solver_order


def without_order(draw: Any, memory: dict[str, torch.Tensor]) -> None:
    true_recall(draw, dict(memory))
    draw.scheduler.lower_order_nums = 0


def at_the_beginning(draw: Any, memory: dict[str, torch.Tensor]) -> None:
    true_recall(draw, dict(memory))
    draw.scheduler._step_index = draw.begin


def with_another_sample(draw: Any, memory: dict[str, torch.Tensor]) -> None:
    true_recall(draw, {**memory, "sample": draw.x})


FAULTS: dict[str, tuple[str, object, str]] = {
    "the generator as after admission": ("resume", without_generator, "ddpm"),
    "one step again": ("resume", without_step, "ddim"),
    "x in half precision": ("resume", with_coarse_x, "ddpm"),
    "no outputs, singlestep": ("_recall", without_memory, "dpm++-single"),
    "first order again": ("_recall", without_order, "dpm++"),
    "the first of the sigmas": ("_recall", at_the_beginning, "dpm++"),
    "the sample of now": ("_recall", with_another_sample, "dpm++-single"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(
    stages: dict[str, tuple[Stages, Stages]], encoded: Bag, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    name, broken, sampler = FAULTS[fault]
    one, other = (of[ONE] for of in stages["exact"])
    request = Request(FOX, 7, settings={ONE: Settings(steps=6, scheduler=sampler)})
    wanted = run(one, "job", request, encoded)
    assert run(Interrupted(one, other, "middle"), "job", request, encoded) == wanted
    monkeypatch.setattr(checkpoint, name, broken)
    try:
        differs = [run(Interrupted(one, other, at), "job", request, encoded) != wanted for at in ("first", "middle", "last")]
    except AssertionError:  # it takes one step more
        differs = [True]
    finally:
        one.drop("job")
        other.drop("job")
    assert any(differs)
