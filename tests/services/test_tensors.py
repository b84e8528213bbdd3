"""Tensors to blobs and back."""

import pytest
import torch
from ifmesh_services.tensors import take, to_blob, to_torch

from ifmesh.cascade import Blob
from ifmesh.stage import Tensor

BITS = torch.arange(-6, 6).reshape(3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(3, 4), (12,), (1, 3, 2, 2), (0, 4), ()], ids=str)
def test_there_and_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    t = BITS.to(dtype).reshape(-1)[: torch.Size(shape).numel()].reshape(shape)
    blob = to_blob(t)
    assert blob.shape == shape
    assert len(blob.data) == t.nbytes
    for data in (blob.data, memoryview(blob.data), memoryview(bytearray(blob.data))):
        back = to_torch(Tensor(blob.dtype, blob.shape, data))
        assert back.dtype == dtype
        assert torch.equal(back, t)


def test_not_a_number_and_minus_zero_keep_their_bits() -> None:
    t = torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.bfloat16)
    assert torch.equal(to_torch(to_blob(t)).view(torch.int16), t.view(torch.int16))


def test_a_view_travels_in_its_own_order() -> None:
    assert torch.equal(to_torch(to_blob(BITS.T)), BITS.T)
    assert torch.equal(to_torch(to_blob(BITS[:, 1:3])), BITS[:, 1:3])


def test_the_bytes_are_little_endian() -> None:
    assert to_blob(torch.tensor([1.0, -2.0])) == Tensor("F32", (2,), bytes.fromhex("0000803f 000000c0"))


def test_what_comes_out_may_be_written_to_and_lies_apart_from_the_frame() -> None:
    frame = bytearray(4)
    t = to_torch(Tensor("U8", (4,), memoryview(frame)))
    t += 1
    assert frame == bytes(4)


@pytest.mark.parametrize(
    "wrong",
    [
        Tensor("F32", (3,), bytes(8)),
        Tensor("F32", (2,), bytes(9)),
        Tensor("F32", (), b""),
        Tensor("F32", (-1, -2), bytes(8)),
        Tensor("U8", (2**40, 2**40), bytes(8)),
        Tensor("C64", (1,), bytes(8)),
        Tensor("", (1,), bytes(8)),
    ],
)
def test_bytes_that_do_not_fill_the_shape(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"takes|dtype"):
        to_torch(wrong)


def test_a_dtype_without_a_name() -> None:
    with pytest.raises(ValueError, match="complex64"):
        to_blob(torch.zeros(1, dtype=torch.complex64))


PICTURE = Blob("picture", (3, "h", "w"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_take(dtype: torch.dtype) -> None:
    t = torch.ones(3, 2, 5, dtype=dtype)
    assert torch.equal(take({"picture": to_blob(t)}, PICTURE), t)


@pytest.mark.parametrize(
    ("bag", "words"),
    [
        ({}, "lacks 'picture'"),
        ({"picture": to_blob(torch.ones(1, 2, 5))}, r"F32 \[1, 2, 5\], not"),
        ({"picture": to_blob(torch.ones(3, 10))}, r"F32 \[3, 10\], not"),
        ({"picture": to_blob(torch.ones(3, 2, 5, dtype=torch.uint8))}, "U8"),
    ],
)
def test_take_names_what_is_wrong(bag: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        take(bag, PICTURE)
