"""Plain data to dataclasses: every kind of field, every refusal with its words."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from ifmesh import typed
from ifmesh.protocol import Token
from ifmesh.request import Request, Settings
from ifmesh.typed import Mismatch, build, plain


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    count: int
    ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    on: bool = False
    raw: bytes = b""
    maybe: int | None = None
    old: Optional[str] = None  # noqa: UP045  the old spelling must work as well
    kind: Literal["bag", "result"] = "bag"
    many: tuple[Inner, ...] = ()
    token: Token = (0, 0)
    named: dict[str, Inner] = field(default_factory=dict)
    any: dict[str, str | int | float | bool] = field(default_factory=dict)
    colour: Colour = Colour.RED
    where: Path = Path()
    inner: Inner | None = None


def test_every_kind_of_field_goes_out_and_comes_back() -> None:
    whole = Outer(
        "a",
        True,
        b"\x00",
        3,
        "x",
        "result",
        (Inner(1), Inner(2, 0.5)),
        (4, 5),
        {"k": Inner(3)},
        {"s": "t", "i": 1, "f": 0.5, "b": True},
        Colour.BLUE,
        Path("here"),
        Inner(9),
    )
    data = plain(whole)
    assert data["colour"] == "blue"
    assert data["many"] == [{"count": 1, "ratio": 1.0}, {"count": 2, "ratio": 0.5}]
    assert build(Outer, data) == whole
    assert [type(v) for v in build(Outer, data).any.values()] == [str, int, float, bool]


def test_defaults_fill_what_is_not_given() -> None:
    assert build(Outer, {"name": "a"}) == Outer("a")
    assert build(Outer, {"name": "a"}).named is not build(Outer, {"name": "a"}).named


def test_a_whole_number_is_taken_for_a_float_and_becomes_one() -> None:
    built = build(Inner, {"count": 1, "ratio": 2})
    assert built.ratio == 2.0
    assert type(built.ratio) is float


REFUSED: list[tuple[dict[Any, Any], str, str]] = [
    ({}, "name", "missing"),
    ({"name": 3}, "name", "text"),
    ({"name": b"a"}, "name", "text"),
    ({"name": "a", "on": 1}, "on", "true or false"),
    ({"name": "a", "raw": "x"}, "raw", "bytes"),
    ({"name": "a", "maybe": True}, "maybe", "a whole number"),
    ({"name": "a", "maybe": 1.0}, "maybe", "a whole number"),
    ({"name": "a", "maybe": 2**64}, "maybe", "a whole number of at most 64 bits"),
    ({"name": "a", "maybe": 10**5000}, "maybe", "a whole number of at most 64 bits"),
    ({"name": "a", "old": 1}, "old", "text"),
    ({"name": "a", "kind": "box"}, "kind", "one of bag, result"),
    ({"name": "a", "kind": ["bag"]}, "kind", "one of bag, result"),
    ({"name": "a", "many": {"count": 1}}, "many", "a list"),
    ({"name": "a", "many": "ab"}, "many", "a list"),
    ({"name": "a", "many": [{"count": 1}, {"count": "x"}]}, "many[1].count", "a whole number"),
    ({"name": "a", "many": [{"count": 1}] * (typed.MOST_ENTRIES + 1)}, "many", "at most 4096 entries"),
    ({"name": "a", "token": [1]}, "token", "exactly 2 entries"),
    ({"name": "a", "token": [1, 2, 3]}, "token", "exactly 2 entries"),
    ({"name": "a", "token": [1, "2"]}, "token[1]", "a whole number"),
    ({"name": "a", "named": []}, "named", "named values"),
    ({"name": "a", "named": {1: {"count": 1}}}, "named", "names that are text"),
    ({"name": "a", "named": {"k": {}}}, "named.k.count", "missing"),
    ({"name": "a", "named": {str(i): {"count": 1} for i in range(typed.MOST_KEYS + 1)}}, "named", "at most 256 names"),
    ({"name": "a", "any": {"k": None}}, "any.k", "text or a whole number or a finite number or true or false"),
    ({"name": "a", "colour": "green"}, "colour", "one of red, blue"),
    ({"name": "a", "colour": []}, "colour", "one of red, blue"),
    ({"name": "a", "where": 3}, "where", "a path"),
    ({"name": "a", "inner": 3}, "inner", "named fields: count, ratio"),
    ({"name": "a", "inner": {"count": 1, "ratio": float("nan")}}, "inner.ratio", "a finite number"),
    ({"name": "a", "inner": {"count": 1, "ratio": float("inf")}}, "inner.ratio", "a finite number"),
    ({"name": "a", "inner": {"count": 1, "ratio": True}}, "inner.ratio", "a finite number"),
]


@pytest.mark.parametrize(("data", "where", "remedy"), REFUSED)
def test_what_is_wrong_is_named_with_its_remedy(data: dict[Any, Any], where: str, remedy: str) -> None:
    with pytest.raises(Mismatch) as caught:
        build(Outer, data)
    assert (caught.value.where, caught.value.remedy) == (where, remedy)
    assert str(caught.value).startswith(f"{where}: ")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("data", [None, 3, "text", [], [("name", "a")], object()])
def test_what_is_no_mapping_is_refused(data: object) -> None:
    with pytest.raises(Mismatch, match=r"^Outer: .*named fields: any, colour"):
        build(Outer, data)


def test_unknown_fields_are_ignored_on_the_wire() -> None:
    assert build(Inner, {"count": 1, "colour": "red"}) == Inner(1)


def test_an_unknown_field_is_an_error_with_the_nearest_name_in_configuration() -> None:
    with pytest.raises(Mismatch) as caught:
        build(Outer, {"name": "a", "inner": {"count": 1, "ration": 2}}, "mesh", unknown="error")
    assert str(caught.value) == "mesh.inner.ration: 2: unknown; did you mean ratio?"
    with pytest.raises(Mismatch) as caught:
        build(Inner, {"count": 1, "zzz": 2}, unknown="error")
    assert str(caught.value) == "zzz: 2: unknown; one of count, ratio"


def test_a_request_by_hand_tells_where_it_is_wrong() -> None:
    with pytest.raises(Mismatch) as caught:
        build(Request, {"prompt": "x", "seed": 1, "settings": {"stage_one": {"stepps": 3}}}, unknown="error")
    assert str(caught.value) == "settings.stage_one.stepps: 3: unknown; did you mean steps?"


def test_place_holds_no_name_that_the_data_chose() -> None:
    with pytest.raises(Mismatch) as caught:
        build(Request, {"prompt": "x", "seed": 1, "settings": {"my secret": {"steps": "3"}}})
    assert caught.value.where == "settings.my secret.steps"
    assert caught.value.place == "settings.*.steps"


def test_plain_refuses_what_has_no_plain_form() -> None:
    for value in (float("nan"), Inner(1, float("inf")), object(), {1, 2}):
        with pytest.raises(Mismatch):
            plain(value)


def test_one_hint_is_prepared_once() -> None:
    build(Settings, {})
    before = typed._builder.cache_info().misses
    for _ in range(100):
        build(Settings, {"steps": 3, "timesteps": [5, 3]})
    assert typed._builder.cache_info().misses == before


def nested(depth: int) -> object:
    made: object = 1
    for _ in range(depth):
        made = [made]
    return made


def test_whatever_is_given_only_a_mismatch_comes_out() -> None:
    dice = random.Random(1)
    deep = nested(5000)
    leaves: list[Callable[[], object]] = [
        lambda: None,
        lambda: dice.choice([True, False]),
        lambda: dice.choice([0, -1, 2**63, 2**200, -(10**4400), 10**400]),
        lambda: dice.choice([0.5, float("nan"), float("-inf")]),
        lambda: dice.choice(["", "bag", "red", "\ud800", "x" * 5000]),
        lambda: b"\xff",
        lambda: object(),
        lambda: {1, 2},
        lambda: deep,
    ]
    names = (
        "name",
        "on",
        "raw",
        "maybe",
        "old",
        "kind",
        "many",
        "token",
        "named",
        "any",
        "colour",
        "where",
        "inner",
        "count",
        "ratio",
        "zzz",
    )

    def thing(depth: int) -> object:
        roll = dice.random()
        if depth and roll < 0.3:
            return {dice.choice((*names, 3, None)): thing(depth - 1) for _ in range(dice.randrange(4))}
        if depth and roll < 0.5:
            return [thing(depth - 1) for _ in range(dice.randrange(4))]
        return dice.choice(leaves)()

    built = 0
    for _ in range(20_000):
        data = {name: thing(2) for name in dice.sample(names, dice.randrange(8))} | ({"name": "a"} if dice.random() < 0.5 else {})
        try:
            build(Outer, data, unknown=dice.choice(["ignore", "error"]))
            built += 1
        except Mismatch:
            pass
    assert built > 100
