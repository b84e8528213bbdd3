"""Pooled mode: requests at different timesteps share one UNet call, and keep (nearly) the pixels of exact mode."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ifmesh_services import pooled as module
from ifmesh_services.pooled import Pooled, Pooling
from ifmesh_services.skinny import Skinny
from ifmesh_services.tensors import to_torch

from ifmesh.errors import Misconfigured
from ifmesh.request import Request
from ifmesh.stage import Bag, Setup, Stage
from tests.services.chained import KINDS, run
from tests.services.together import GUIDED, ONE, PICTURES, TWO, UP, Jobs, alone, apart, every, pooled, requests, together

# Measured on 16 px: 1e-6, 4e-5 and one level of 256.  Each stage starts from what exact mode gave to the one before.
TOLERANCE = {ONE: 2e-4, TWO: 5e-3, UP: 1}


@pytest.fixture(scope="module")
def jobs(stages16: dict[str, Stage]) -> dict[str, Jobs]:
    """By stage."""
    asked = requests()
    bags: dict[str, Bag] = {job: {**bag, **run(stages16["encoder"], job, request, bag)} for job, (request, bag) in asked.items()}
    made: dict[str, Jobs] = {}
    for stage in PICTURES:
        made[stage] = {job: (asked[job][0], bags[job]) for job in asked}
        given = alone(stages16[stage], made[stage])
        bags = {job: {**bags[job], **given[job]} for job in asked}
    return made


@pytest.fixture(scope="module")
def exactly(stages16: dict[str, Stage], jobs: dict[str, Jobs]) -> dict[str, dict[str, Bag]]:
    """What exact mode gives, by stage."""
    return {stage: alone(stages16[stage], jobs[stage]) for stage in PICTURES}


class Calls:
    """Every call of a stage's UNet: rows, and the timesteps of the rows."""

    def __init__(self, stage: Any) -> None:
        self.seen: list[tuple[int, list[int]]] = []
        stage._unet.register_forward_pre_hook(self._called)

    def _called(self, unet: object, given: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, t = given
        self.seen.append((len(x), t.expand(len(x)).tolist()))


@pytest.mark.parametrize("stage", PICTURES)
@pytest.mark.parametrize("rows", [0, 6])
def test_guided_requests_have_the_bits_of_exact_mode(
    nano16: Path, jobs: dict[str, Jobs], exactly: dict[str, dict[str, Bag]], stage: str, rows: int
) -> None:
    """On a CPU, whoever their neighbours are; those without guidance come near."""
    far = apart(together(pooled(nano16, stage, rows=rows), jobs[stage]), exactly[stage], stage)
    assert {job: far[job] for job in GUIDED} == dict.fromkeys(GUIDED, 0.0)
    assert max(far.values()) <= TOLERANCE[stage]


@pytest.mark.parametrize("stage", PICTURES)
@pytest.mark.parametrize("rows", [0, 6])
def test_as_on_a_card(nano16: Path, jobs: dict[str, Jobs], exactly: dict[str, dict[str, Bag]], stage: str, rows: int) -> None:
    """Where a batch changes the last bits of all."""
    made: Any = pooled(nano16, stage)
    made._pool._predict = Pooled(made._unet, rows)
    assert max(apart(together(made, jobs[stage]), exactly[stage], stage).values()) <= TOLERANCE[stage]


def test_one_call_for_all(nano16: Path, jobs: dict[str, Jobs]) -> None:
    made = pooled(nano16, ONE)
    calls = Calls(made)
    for job in ("three steps", "four steps", "no guidance"):
        made.admit(job, *jobs[ONE][job])
        list(made.step())
    assert [rows for rows, _ in calls.seen] == [2, 4, 5]
    assert len(set(calls.seen[2][1])) == 3, "three requests, each at its own timestep"


def test_other_shapes_have_calls_of_their_own(nano16: Path, jobs: dict[str, Jobs], stages16: dict[str, Stage]) -> None:
    embeds = {"embeds": jobs[ONE]["three steps"][1]["embeds"]}
    wide = {name: (Request("a fox", 9, settings=every(steps=2), width=24, height=16), embeds) for name in ("wide", "wide, too")}
    mixed = {"three steps": jobs[ONE]["three steps"], **wide, "vary": jobs[ONE]["vary"]}
    made = pooled(nano16, ONE)
    calls = Calls(made)
    for job, asked in mixed.items():
        made.admit(job, *asked)
    assert [advance.job for advance in made.step()] == list(mixed)
    assert [rows for rows, _ in calls.seen] == [4, 4]
    for job in mixed:
        made.drop(job)
    assert set(apart(together(made, mixed), alone(stages16[ONE], mixed), ONE).values()) == {0.0}


@pytest.mark.parametrize(("rows", "calls"), [(4, [4, 4, 4]), (5, [5, 5, 5]), (6, [6, 6]), (12, [12]), (16, [16])])
def test_fixed_rows_fill_and_split(nano16: Path, jobs: dict[str, Jobs], rows: int, calls: list[int]) -> None:
    made = pooled(nano16, ONE, rows=rows)
    seen = Calls(made)
    for job in GUIDED:
        made.admit(job, *jobs[ONE][job])
    list(made.step())
    assert [n for n, _ in seen.seen] == calls
    for job in GUIDED[1:]:
        made.drop(job)
    list(made.step())
    assert seen.seen[-1][0] == rows


@pytest.mark.parametrize("stage", PICTURES)
def test_dropped_between_steps(nano16: Path, jobs: dict[str, Jobs], exactly: dict[str, dict[str, Bag]], stage: str) -> None:
    """The others notice nothing, and the dropped one may come again."""
    made = pooled(nano16, stage)
    for job in ("vary", "four steps", "inpaint"):
        made.admit(job, *jobs[stage][job])
    list(made.step())
    made.drop("four steps")
    left = {advance.job: advance.output for _ in range(5) for advance in made.step() if advance.output}
    again = together(made, {"four steps": jobs[stage]["four steps"]})
    wanted = {job: exactly[stage][job] for job in (*left, *again)}
    assert sorted(left) == ["inpaint", "vary"]
    assert set(apart({**left, **again}, wanted, stage).values()) == {0.0}


@pytest.mark.parametrize(("stage", "dtype"), [(ONE, "bf16"), (ONE, "fp16"), (TWO, "bf16"), (UP, "bf16")])  # fp16 is slow on a CPU
def test_half_precision(nano16: Path, jobs: dict[str, Jobs], exactly: dict[str, dict[str, Bag]], stage: str, dtype: str) -> None:
    """The pool keeps x in fp32 and gives the stage's own dtype: no farther from what fp32 draws than exact mode, which rounds x."""
    few = {job: jobs[stage][job] for job in ("three steps", "inpaint", "no guidance")}
    made: Any = pooled(nano16, stage, dtype)
    made.admit("one", *few["inpaint"])
    for _ in range(2):
        assert made._pool._draws["one"].x.dtype == torch.float32
        list(made.step())
    made.drop("one")
    exact = KINDS[stage]()
    exact.load(Setup(cascade=str(nano16), dtype=dtype))
    ours, theirs = together(made, few), alone(exact, few)
    assert all(ours[job][PICTURES[stage]].dtype == theirs[job][PICTURES[stage]].dtype for job in few)

    def error(given: dict[str, Bag]) -> float:
        return sum(
            float((to_torch(given[job][PICTURES[stage]]).double() - to_torch(exactly[stage][job][PICTURES[stage]])).abs().mean())
            for job in few
        )

    assert 0 < error(ours) < 1.1 * error(theirs)
    assert all(ours[job]["rng"] == theirs[job]["rng"] for job in few)


def one_time_for_all(self: Pooled, draws: Any) -> Any:
    t = torch.stack([draws[0].t] * len(draws))
    counts = [len(draw.embeds) for draw in draws]
    x, texts = torch.cat([draw.seen() for draw in draws]), torch.cat([draw.embeds for draw in draws])
    made = self._unet(x, t.repeat_interleave(torch.tensor(counts)), encoder_hidden_states=texts, return_dict=False)[0]
    return torch.split(made, counts)


def shifted(self: Pooled, draws: Any) -> Any:
    made = list(pooled_call(self, draws))
    return [made[-1], *made[:-1]] if len({m.shape for m in made}) == 1 else made


pooled_call = Pooled._call
FAULTS: dict[str, tuple[object, str, object]] = {
    "all at the first one's timestep": (Pooled, "_call", one_time_for_all),
    "answers to the wrong request": (Pooled, "_call", shifted),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(
    nano16: Path, jobs: dict[str, Jobs], exactly: dict[str, dict[str, Bag]], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Break it on purpose."""
    where, name, broken = FAULTS[fault]
    monkeypatch.setattr(where, name, broken)
    few = {job: jobs[ONE][job] for job in GUIDED}
    far = apart(together(pooled(nano16, ONE), few, dice=random.Random(1)), {job: exactly[ONE][job] for job in few}, ONE)
    assert max(far.values()) > 10 * TOLERANCE[ONE]


def test_the_unet_is_as_it_was(nano16: Path) -> None:
    """Outside of `apart` its layers are its own, after an error, too; and what was there before is there again."""
    unet: Any = cast(Any, pooled(nano16, ONE))._unet
    layers = [layer for layer in unet.modules() if isinstance(layer, torch.nn.Linear)]
    hooked = vars(layers[3])["forward"] = layers[3].forward
    with suppress(ZeroDivisionError), Skinny(unet).apart([2, 2]):
        assert all("forward" in vars(layer) for layer in layers)
        assert vars(layers[3])["forward"] is not hooked
        raise ZeroDivisionError
    assert [layer for layer in layers if "forward" in vars(layer)] == [layers[3]]
    assert vars(layers[3])["forward"] is hooked


@pytest.mark.parametrize("sizes", [(16, 64), (96, 384), (320, 1280), (1280, 77)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_a_skinny_layer_keeps_each_requests_bits(sizes: tuple[int, int], tokens: int) -> None:
    for bias in (True, False):
        layer = torch.nn.Linear(*sizes, bias=bias)
        counts = [2, 2, 2, 1, 3]
        x = torch.randn(sum(counts), tokens, sizes[0])
        with torch.no_grad(), Skinny(torch.nn.ModuleList([layer])).apart(counts):
            made = layer(x)
        with torch.no_grad():
            assert torch.equal(made, torch.cat([layer(one) for one in torch.split(x, counts)]))


def test_the_numeric_class_and_slots(nano16: Path) -> None:
    def numeric(**options: str | int) -> str:
        stage = KINDS[TWO]()
        said = stage.load(Setup(cascade=str(nano16), options=options))
        assert stage.slots == options.get("slots", 1)
        return said

    exact = numeric()
    assert "pooled" not in exact
    assert numeric(mode="exact", slots=2) == exact
    assert numeric(mode="pooled", slots=4) == f"{exact}, pooled, rows any"
    assert numeric(mode="pooled", slots=4, rows=8) == f"{exact}, pooled, rows 8"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "mode": ({"mode": "fast"}, "services.stage_one.options.mode: 'fast': exact or pooled"),
    "no text": ({"mode": True}, "services.stage_one.options.mode: True: exact or pooled"),
    "no slot": ({"slots": 0}, "services.stage_one.options.slots: 0: from 1 to 64"),
    "half a slot": ({"slots": 1.5}, "services.stage_one.options.slots: 1.5: a whole number"),
    "rows": ({"mode": "pooled", "rows": 3}, "services.stage_one.options.rows: 3: from 4 to 256, or 0 for as many as there are"),
    "true rows": ({"mode": "pooled", "rows": True}, "services.stage_one.options.rows: True: a whole number"),
    "exact rows": ({"rows": 8}, 'services.stage_one.options.rows: 8: only with mode = "pooled"; in exact mode no request shares a call'),
    "unknown": ({"row": 8}, "services.stage_one.options: unknown key 'row'; did you mean 'rows'?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(case: str) -> None:
    options, said = WRONG[case]
    with pytest.raises(Misconfigured) as caught:
        Pooling.read(ONE, options)
    assert str(caught.value) == said


@pytest.mark.parametrize("stage", PICTURES)
def test_every_stage_reads_them(nano16: Path, stage: str) -> None:
    with pytest.raises(Misconfigured, match=rf"services\.{stage}\.options\.mode: 'pool'"):
        KINDS[stage]().load(Setup(cascade=str(nano16), options={"mode": "pool"}))


def test_options_of_others_are_left_alone() -> None:
    assert Pooling.read(ONE, {"offload": "model", "slots": 3}, beside=("offload",)) == Pooling("exact", 3, 0)
    assert module.OPTIONS == ("mode", "slots", "rows")
