"""Bags against safetensors itself, and against everything that is no bag."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from ifmesh import bags
from ifmesh.bags import FRAME_LIMIT, HEADER_LIMIT, decode, digest, encode, intact
from ifmesh.cascade import EMBEDS, FLAGGED, IF, IMAGE64, IMAGE256, RNG, Blob
from ifmesh.request import Request
from ifmesh.stage import Tensor
from ifmesh.wire import Garbled

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def tensor(dtype: str, *shape: int, fill: int = 1) -> Tensor:
    size = bags.SIZES[dtype]
    for n in shape:
        size *= n
    return Tensor(dtype, shape, bytes([fill]) * size)


def framed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SMALL = {"embeds": tensor("F16", 2, 77, 8), "rng": tensor("U8", 5056, fill=3), "image64": tensor("F32", 3, 8, 8, fill=2)}


def same(bag: Any, other: Any) -> bool:
    return {k: (t.dtype, t.shape, bytes(t.data)) for k, t in bag.items()} == {
        k: (t.dtype, t.shape, bytes(t.data)) for k, t in other.items()
    }


library: Callable[[bytes], list[Any]] = safetensors.deserialize


# ---- with safetensors


def test_every_dtype_is_read_by_torch_as_it_was_written() -> None:
    draw = torch.Generator().manual_seed(1)
    tensors = {f"t_{name}": (torch.randn(2, 3, 5, generator=draw) * 9).to(dtype) for name, dtype in DTYPES.items()}
    tensors["scalar"] = torch.tensor(3.5)
    bag = {
        name: Tensor(name[2:] if name[2:] in DTYPES else "F32", tuple(t.shape), t.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }
    loaded = safetensors.torch.load(encode(bag))
    assert loaded.keys() == tensors.keys()
    for name, t in tensors.items():
        assert loaded[name].dtype == t.dtype
        assert torch.equal(loaded[name], t)


def test_what_torch_wrote_is_read_and_written_again_to_the_same_bytes() -> None:
    draw = torch.Generator().manual_seed(2)
    tensors = {f"t_{name}": (torch.randn(3, 7, generator=draw) * 9).to(dtype) for name, dtype in DTYPES.items()}
    frame = safetensors.torch.save(tensors)
    bag = decode(frame)
    assert {name: (t.dtype, t.shape) for name, t in bag.items()} == {f"t_{name}": (name, (3, 7)) for name in DTYPES}
    for name, t in tensors.items():
        assert bytes(bag[name].data) == t.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert encode(bag) == frame


def test_numpy_both_ways() -> None:
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.arange(5, dtype=np.uint8),
        "c": np.array([1.5, -2], dtype=np.float16),
    }
    frame = safetensors.numpy.save(arrays)
    bag = decode(frame)
    for name, array in arrays.items():
        assert np.array_equal(np.frombuffer(bag[name].data, array.dtype).reshape(bag[name].shape), array)
    back = safetensors.numpy.load(encode(bag))
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_notes_of_other_writers_are_passed_over() -> None:
    assert decode(safetensors.torch.save({"a": torch.ones(2)}, {"format": "pt"})).keys() == {"a"}


def test_the_rng_state_of_torch_fits_its_blob() -> None:
    state = torch.Generator().manual_seed(5).get_state()
    frame = encode({"rng": Tensor("U8", tuple(state.shape), state.numpy().tobytes())})
    restored = torch.Generator()
    restored.set_state(torch.frombuffer(bytearray(decode(frame, (RNG,))["rng"].data), dtype=torch.uint8))
    assert torch.equal(torch.randn(4, generator=restored), torch.randn(4, generator=torch.Generator().manual_seed(5)))


# ---- the frame


def test_the_same_bag_is_the_same_bytes_in_whatever_order_it_was_filled() -> None:
    assert encode(SMALL) == encode(dict(reversed(SMALL.items())))
    assert digest(encode(SMALL)) == digest(memoryview(encode(SMALL)))
    assert len(digest(b"")) == 32


def test_an_empty_bag_is_a_frame_as_well() -> None:
    assert decode(encode({}), ()) == {}
    assert library(encode({})) == []


def test_nothing_is_copied_and_nothing_can_be_written() -> None:
    frame = bytearray(encode(SMALL))
    bag = decode(memoryview(frame))
    view = bag["rng"].data
    assert isinstance(view, memoryview)
    assert view.readonly
    assert view.obj is frame
    assert same(decode(memoryview(bytes(frame))), SMALL)


def test_wide_values_come_first_so_that_all_are_aligned() -> None:
    bag = {"a": tensor("U8", 3), "b": tensor("F16", 3), "c": tensor("F64", 3), "d": tensor("F32", 3)}
    frame = encode(bag)
    header = json.loads(frame[8 : 8 + int.from_bytes(frame[:8], "little")])
    assert list(header) == ["c", "d", "b", "a"]
    assert all(e["data_offsets"][0] % bags.SIZES[e["dtype"]] == 0 for e in header.values())
    assert list(decode(frame)) == ["a", "b", "c", "d"]


NO_BAG: dict[str, dict[str, Tensor]] = {
    "too few bytes": {"a": Tensor("F32", (2,), b"1234567")},
    "too many bytes": {"a": Tensor("U8", (2,), b"123")},
    "an unknown dtype": {"a": Tensor("F4", (2,), b"12")},
    "an empty tensor": {"a": Tensor("U8", (0,), b"")},
    "a negative size": {"a": Tensor("U8", (-1, -1), b"1")},
    "a name that is a path": {"../a": tensor("U8", 1)},
    "no name": {"": tensor("U8", 1)},
    "too many names": {f"{'n' * 50}{i}": tensor("U8", 1) for i in range(300)},
    "too many bytes in all": {"a": Tensor("U8", (FRAME_LIMIT,), bytes(FRAME_LIMIT))},
}


@pytest.mark.parametrize("name", NO_BAG)
def test_what_could_not_be_read_is_not_written(name: str) -> None:
    with pytest.raises(Garbled):
        encode(NO_BAG[name])


NO_FRAME: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "no header": (0).to_bytes(8, "little"),
    "a header of one byte": framed(b"{"),
    "a header longer than the frame": framed({"a": entry()}, b"abcd", length=10_000),
    "a length of 2**63": framed(b"{}", length=2**63),
    "a header above the limit": framed(b"{}" + b" " * HEADER_LIMIT),
    "spaces first": framed(b" {}"),
    "a list": framed([]),
    "a scalar": framed(b"12"),
    "no JSON": framed(b"{a}"),
    "no UTF-8": framed(b'{"\xff":1}'),
    "deep nesting": framed(b'{"a":' + b"[" * 16_000),
    "a number of many digits": framed(b'{"a":' + b"9" * 10_000 + b"}"),
    "NaN": framed(b'{"a":NaN}'),
    "the same name twice": framed(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"abcd"
    ),
    "an entry that is none": framed({"a": 3}),
    "an entry with more": framed({"a": {**entry(), "x": 1}}, b"abcd"),
    "an entry with less": framed({"a": {"dtype": "U8", "shape": [4]}}, b"abcd"),
    "an unknown dtype": framed({"a": entry("F4")}, b"abcd"),
    "a dtype that is none": framed({"a": entry(["U8"])}, b"abcd"),
    "a shape that is none": framed({"a": entry(shape=4)}, b"abcd"),
    "a negative size": framed({"a": entry(shape=[-2, -2])}, b"abcd"),
    "a size that is true": framed({"a": entry(shape=[4, True])}, b"abcd"),
    "a size that is no whole number": framed({"a": entry(shape=[4.0])}, b"abcd"),
    "an empty tensor": framed({"a": entry(shape=[0], offsets=[0, 0])}),
    "huge sizes": framed({"a": entry(shape=[2**62, 2**62])}, b"abcd"),
    "a size of many digits": framed({"a": entry(shape=[10**4000])}, b"abcd"),
    "many dimensions": framed({"a": entry(shape=[1] * 9 + [4])}, b"abcd"),
    "offsets that are none": framed({"a": entry(offsets=4)}, b"abcd"),
    "three offsets": framed({"a": entry(offsets=[0, 2, 4])}, b"abcd"),
    "negative offsets": framed({"a": entry(offsets=[-4, 0])}, b"abcd"),
    "offsets the wrong way": framed({"a": entry(offsets=[4, 0])}, b"abcd"),
    "offsets that are no whole numbers": framed({"a": entry(offsets=[0.0, 4.0])}, b"abcd"),
    "offsets beyond the frame": framed({"a": entry(offsets=[0, 4])}, b"abc"),
    "offsets of 2**64": framed({"a": entry(offsets=[2**64, 2**64 + 4])}, b"abcd"),
    "a shape that does not fit": framed({"a": entry(shape=[5])}, b"abcd"),
    "a hole": framed({"a": entry(offsets=[1, 5])}, b"abcde"),
    "overlap": framed({"a": entry(), "b": entry(offsets=[2, 6])}, b"abcdef"),
    "the same data twice": framed({"a": entry(), "b": entry()}, b"abcd"),
    "data that nobody owns": framed({"a": entry()}, b"abcde"),
    "data without a tensor": framed(b"{}", b"a"),
    "a name that is a path": framed({"../../etc/passwd\0": entry()}, b"abcd"),
    "no name": framed({"": entry()}, b"abcd"),
    "metadata that is none": framed({"__metadata__": 3, "a": entry()}, b"abcd"),
    "metadata that is no text": framed({"__metadata__": {"a": 3}, "a": entry()}, b"abcd"),
    "random": bytes(random.Random(1).randbytes(5000)),
}


@pytest.mark.parametrize("name", NO_FRAME)
def test_what_is_no_bag_is_garbled(name: str) -> None:
    with pytest.raises(Garbled) as caught:
        decode(NO_FRAME[name])
    assert len(str(caught.value)) < 300


def test_a_frame_above_the_limit_is_garbled() -> None:
    with pytest.raises(Garbled, match="a frame of"):
        decode(bytes(FRAME_LIMIT + 1))


def test_one_tensor_of_a_bag_is_a_frame_of_its_own() -> None:
    frame = bags.only(encode(SMALL), ("image64",))
    assert frame == encode({"image64": SMALL["image64"]})
    assert same(decode(bags.only(memoryview(encode(SMALL)), ("rng", "embeds"))), {n: SMALL[n] for n in ("embeds", "rng")})
    with pytest.raises(Garbled, match="no image256 in the bag"):
        bags.only(encode(SMALL), ("image256", "rng"))
    with pytest.raises(Garbled):
        bags.only(b"no frame", ("rng",))


# ---- against what is declared

REQUEST = Request("a fox", 1)


def entering(stage: str, channels: int = 8, h: int = 8, w: int = 16, dtype: str = "F32") -> dict[str, Tensor]:
    sizes = {"texts": 2, "channels": channels, "h": h, "w": w, "h4": 4 * h, "w4": 4 * w, "h16": 16 * h, "w16": 16 * w}
    return {
        blob.name: tensor(blob.dtype or dtype, *(n if isinstance(n, int) else sizes[n] for n in blob.shape))
        for blob in IF.enters(REQUEST, stage)
    }


@pytest.mark.parametrize("stage", ["encoder", "stage_one", "stage_two", "upscaler", "guard"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_bags_of_the_cascade_go_out_and_come_back(stage: str, dtype: str) -> None:
    bag = entering(stage, dtype=dtype)
    assert same(decode(encode(bag), IF.enters(REQUEST, stage)), bag)


TWO = (Blob("a", ("h", "w")), Blob("b", ("w", 2), "U8"))

UNFIT: dict[str, tuple[dict[str, Tensor], str]] = {
    "a missing tensor": ({"a": tensor("F32", 3, 4)}, "^b missing, 0 tensors too many; expected are a, b$"),
    "one too many": ({"a": tensor("F32", 3, 4), "b": tensor("U8", 4, 2), "c": tensor("U8", 1)}, "^nothing missing, 1 tensors too many"),
    "another name": ({"a": tensor("F32", 3, 4), "c": tensor("U8", 4, 2)}, "^b missing, 1 tensors too many"),
    "a dtype no stage has": ({"a": tensor("F64", 3, 4), "b": tensor("U8", 4, 2)}, "^a: F64; expected is F32, F16, BF16$"),
    "another dtype": ({"a": tensor("F32", 3, 4), "b": tensor("I8", 4, 2)}, "^b: I8; expected is U8$"),
    "another size": ({"a": tensor("F32", 3, 4), "b": tensor("U8", 4, 3)}, r"^b: \[4, 3\]; expected is \['w', 2\]"),
    "two sizes for one name": ({"a": tensor("F32", 3, 4), "b": tensor("U8", 5, 2)}, r"^b: \[5, 2\]"),
    "fewer dimensions": ({"a": tensor("F32", 12), "b": tensor("U8", 4, 2)}, r"^a: \[12\]"),
    "more dimensions": ({"a": tensor("F32", 3, 4, 1), "b": tensor("U8", 4, 2)}, r"^a: \[3, 4, 1\]"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_bag_that_is_not_what_is_declared_is_garbled(name: str) -> None:
    bag, why = UNFIT[name]
    assert same(decode(encode(bag)), bag), "well formed in itself"
    with pytest.raises(Garbled, match=why):
        decode(encode(bag), TWO)


def test_the_name_of_a_stranger_is_not_repeated() -> None:
    with pytest.raises(Garbled) as caught:
        decode(encode({"hunter2": tensor("U8", 1)}), (FLAGGED,))
    assert "hunter2" not in str(caught.value)


# ---- damage


def damages(dice: random.Random, frame: bytes) -> bytes:
    data = bytearray(frame)
    head = 8 + int.from_bytes(frame[:8], "little")
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(head)
        action: list[Callable[[], None]] = [
            lambda at=at: data.__setitem__(at % len(data), dice.randrange(256)),  # type: ignore[misc]
            lambda at=at: data.__setitem__(at % len(data), dice.choice(b'0123456789[]{}":,-.eE ')),  # type: ignore[misc]
            lambda at=at: data.__delitem__(slice(at, at + dice.randint(1, 6))),  # type: ignore[misc]
            lambda at=at: data.__setitem__(
                slice(at, at), dice.choice([b"0", b"9", b"-", b"[", b"1e5", b'"', b"null", b"true", b",", b"{}"])
            ),  # type: ignore[misc]
            lambda: data.__setitem__(slice(0, 8), dice.choice([0, 1, head, head - 9, head - 7, 2**62]).to_bytes(8, "little")),
            lambda: data.__delitem__(slice(dice.randrange(len(data)), None)),
            lambda: data.extend(dice.randbytes(dice.randint(1, 9))),
        ]
        dice.choice(action)()
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("declared", [True, False])
def test_20000_damaged_frames_give_a_bag_or_garbled(declared: bool) -> None:
    dice = random.Random(declared)
    expected = (EMBEDS, RNG, IMAGE64) if declared else None
    frame = encode(SMALL)
    taken = 0
    for _ in range(20_000):
        damaged = damages(dice, frame)
        try:
            bag = decode(damaged, expected)
        except Garbled:
            continue
        taken += 1
        assert sum(t.data.nbytes for t in bag.values() if isinstance(t.data, memoryview)) <= len(damaged)
        if expected:
            assert {k: t.shape for k, t in bag.items()} == {k: t.shape for k, t in SMALL.items()}
        else:
            library(damaged)  # what we take, the library takes
    assert taken < 10_000


@pytest.mark.parametrize("told", [digest, lambda frame: hashlib.sha256(frame).hexdigest()])
def test_a_frame_is_intact_by_the_digest_of_today_and_of_older_versions(told: Callable[[bytes], str]) -> None:
    frame = encode(SMALL)
    assert intact(frame, told(frame))
    assert not intact(frame[:-1] + bytes([frame[-1] ^ 1]), told(frame))
    assert not intact(frame, "")


def test_what_is_declared_for_a_larger_picture_is_refused() -> None:
    wrong = {"image64": tensor("F32", 3, 8, 8), "image256": tensor("F32", 3, 32, 33)}
    assert decode(encode(wrong), (IMAGE64, IMAGE256))["image256"].shape == (3, 32, 33)  # h4 is a name, not 4 * h: the stage's own to check
