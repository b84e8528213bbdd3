"""Embeddings: from the encoder, from the user's arrays, to a file and back."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy
import pytest
import safetensors
import torch
from safetensors.numpy import save_file

from ifmesh import bags, wire
from ifmesh.embeds import Embeds
from ifmesh.errors import BadRequest
from ifmesh.request import Request
from ifmesh.stage import Tensor

REQUEST = Request('a "fox", 狐狸\nin the snow', 0, "encode", "blurry", last_stage="encoder")
ARRAY = numpy.random.default_rng(7).normal(size=(2, 77, 32)).astype("float32")


def published(read: int = 9, whole: int = 9) -> Embeds:
    tokens = Tensor("I64", (2, 3), struct.pack("<6q", 3, 3, 0, whole, read, 0))
    frame = bags.encode({"embeds": Tensor("F32", (2, 77, 32), ARRAY.tobytes()), "tokens": tokens})
    return Embeds.published(REQUEST, frame)


def test_what_the_encoder_publishes() -> None:
    embeds = published()
    assert (embeds.prompt, embeds.negative, embeds.notes) == (REQUEST.prompt, "blurry", ())
    assert (embeds.tensor.dtype, embeds.tensor.shape) == ("F32", (2, 77, 32))
    assert (embeds.numpy() == ARRAY).all()
    assert published(77, 92).notes == ("the prompt has 92 tokens; the encoder reads the first 77",)
    assert hash(embeds) == hash(published())
    assert len(repr(embeds)) < 200


@pytest.mark.parametrize(
    "bag",
    [
        {"embeds": Tensor("F32", (2, 77, 1), bytes(616))},
        {"tokens": Tensor("I64", (2, 3), bytes(48))},
        {"embeds": Tensor("F32", (1, 77, 1), bytes(308)), "tokens": Tensor("I64", (2, 3), bytes(48))},
        {"embeds": Tensor("U8", (2, 77, 1), bytes(154)), "tokens": Tensor("I64", (2, 3), bytes(48))},
    ],
)
def test_what_no_encoder_publishes(bag: dict[str, Tensor]) -> None:
    with pytest.raises(wire.Garbled):
        Embeds.published(REQUEST, bags.encode(bag))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_to_torch_and_back_every_bit(dtype: torch.dtype) -> None:
    given = torch.from_numpy(ARRAY.copy()).to(dtype)
    embeds = Embeds.of(given, "a fox", "blurry")
    assert (embeds.prompt, embeds.negative) == ("a fox", "blurry")
    assert embeds.torch().dtype == dtype
    assert torch.equal(embeds.torch(), given)
    assert (embeds.numpy() == given.float().numpy()).all()
    assert embeds.numpy().dtype == ("float16" if dtype == torch.float16 else "float32")
    embeds.torch()[:], embeds.numpy()[:] = 0, 0  # copies
    assert torch.equal(embeds.torch(), given)


def test_views_and_gradients_are_no_matter() -> None:
    turned = torch.from_numpy(ARRAY.transpose(2, 1, 0).copy()).permute(2, 1, 0).requires_grad_()
    assert (Embeds.of(turned).numpy() == ARRAY).all()
    assert (Embeds.of(numpy.asfortranarray(ARRAY)).numpy() == ARRAY).all()


def test_embeds_of_embeds_are_the_same() -> None:
    embeds = published()
    assert Embeds.of(embeds, "another prompt") is embeds


def spoiled(value: float, dtype: str) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.floating]]:
    array = ARRAY.astype(dtype)
    array[1, 76, 31] = value
    return array


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (ARRAY[0], r"\[77, 32\] float32.*\[2, 77, channels\]"),
        (ARRAY[:1], r"\[1, 77, 32\]"),
        (ARRAY[:, :76], r"\[2, 76, 32\]"),
        (ARRAY[:, :, :0], r"\[2, 77, 0\]"),
        (torch.zeros(2, 77, 20000), r"\[2, 77, 20000\]"),
        (ARRAY.astype("float64"), "float64.*convert"),
        (ARRAY.astype(">f4"), ">f4.*convert"),
        (torch.zeros(2, 77, 4, dtype=torch.float64), "float64.*convert"),
        (torch.zeros(2, 77, 4, dtype=torch.uint8), "uint8.*convert"),
        (spoiled(float("nan"), "float32"), "no numbers"),
        (spoiled(float("inf"), "float16"), "no numbers"),
        (torch.from_numpy(spoiled(float("-inf"), "float32")).bfloat16(), "no numbers"),
        (ARRAY.tolist(), "list.*numpy array or torch tensor"),
        (None, "NoneType"),
        ("a fox", "str"),
    ],
)
def test_what_is_refused_and_what_would_work(value: object, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as error:
        Embeds.of(value, "a fox")
    assert error.value.field == "embeds"


class Odd:
    """Has what an array has, as others have it."""

    def __init__(self, **has: object) -> None:
        self.__dict__ |= has


class Jax:
    """As arrays of jax and tensorflow look from here."""

    def __init__(self, array: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.floating]]) -> None:
        self.shape, self.dtype, self._array = array.shape, array.dtype, array

    def __array__(self, dtype: object = None, copy: object = None) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.floating]]:
        return self._array


def test_arrays_of_others_that_can_be_numpys() -> None:
    assert (Embeds.of(Jax(ARRAY)).numpy() == ARRAY).all()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Odd(shape=(2, 77, 4), dtype="float32"), "numpy array or torch tensor"),
        (Odd(shape=3, dtype="float32"), "numpy array or torch tensor"),
        (Odd(shape=(2, 77, None), dtype="float32"), "numpy array or torch tensor"),
        (Odd(shape=(2, 77, 4), dtype="float32", __array__=list), "numpy array or torch tensor"),
        (Odd(shape=(2, 77, 4), dtype="float32", __array_interface__={}), "numpy array or torch tensor"),
        (Odd(shape=(2, 77, 4), dtype="float32", __array_interface__={"typestr": "<f4"}, tobytes=lambda: b"123"), "3 bytes"),
        (Jax(ARRAY.astype("float64")), "float64.*convert"),
        (torch.zeros(2, 77, 4, device="meta"), "cannot be read"),
        (torch.zeros(2, 77, 4).to_sparse(), "cannot be read"),
    ],
)
def test_odd_arrays_are_refused(value: object, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as error:
        Embeds.of(value)
    assert error.value.field == "embeds"


# ---- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    made = Embeds.of(torch.from_numpy(ARRAY.copy()).to(dtype), REQUEST.prompt, "blurry")
    assert Embeds.load(made.save(tmp_path / "fox.safetensors")) == made
    noted = published(77, 92)
    assert Embeds.load(noted.save(tmp_path / "fox.safetensors")).notes == noted.notes


def test_the_safetensors_library_opens_it(tmp_path: Path) -> None:
    path = published().save(tmp_path / "fox.safetensors")
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # as the library writes them: the data are aligned
    with safetensors.safe_open(path, "numpy") as file:
        assert list(file.keys()) == ["embeds"]
        assert file.metadata() == {"prompt": REQUEST.prompt, "negative": "blurry", "notes": ""}
        assert (file.get_tensor("embeds") == ARRAY).all()


def test_what_the_library_wrote_is_loaded(tmp_path: Path) -> None:
    save_file({"embeds": ARRAY, "other": ARRAY}, tmp_path / "a.safetensors", {"prompt": "a fox"})
    embeds = Embeds.load(tmp_path / "a.safetensors")
    assert (embeds.prompt, embeds.negative) == ("a fox", "")
    assert (embeds.numpy() == ARRAY).all()


def test_the_longest_texts_fit_into_a_file_and_longer_ones_are_refused(tmp_path: Path) -> None:
    longest = '"' * 2000
    assert Embeds.load(Embeds.of(ARRAY, longest, longest).save(tmp_path / "a")).prompt == longest
    with pytest.raises(BadRequest, match=r"prompt.*too long"):
        Embeds.of(ARRAY, '"' * 9000).save(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_bad_files_are_named(tmp_path: Path) -> None:
    def bad(data: bytes | None, said: str) -> None:
        path = tmp_path / "bad.safetensors"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(BadRequest, match="embeds: ") as error:
            Embeds.load(path)
        assert str(error.value.value).startswith(str(path))
        assert said in f"{error.value.value} {error.value.remedy}"

    bad(None, "No such file")
    bad(b"", "no safetensors file")
    bad(published().save(tmp_path / "good").read_bytes()[:-1], "no safetensors file")
    bad(bags.encode({"other": Tensor("F32", (2, 77, 1), bytes(616))}), "no tensor named 'embeds'")
    bad(bags.encode({"embeds": Tensor("F32", (2, 76, 1), bytes(608))}), "[2, 76, 1]")
    bad(bags.encode({"embeds": Tensor("F64", (2, 77, 1), bytes(1232))}), "F64")
    bad(bags.encode({"embeds": Tensor("F16", (2, 77, 1), b"\xff" * 308)}), "no numbers")
    for path in ("a\0b", "\ud800"):
        with pytest.raises(BadRequest, match=r"embeds: .*cannot be read"):
            Embeds.load(path)
    header = json.dumps({"__metadata__": {"prompt": 7}}).encode()
    bad(len(header).to_bytes(8, "little") + header, "no safetensors file")
