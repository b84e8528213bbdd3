"""How far two tensors are apart, by hand."""

from __future__ import annotations

import struct

import pytest
import torch
from ifmesh_services.tensors import to_blob

from ifmesh.bench.difference import apart, values
from ifmesh.stage import Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_values_are_torchs_own(dtype: torch.dtype) -> None:
    made = torch.tensor([[0.0, 1.0, 96.0], [3.0, 0.0, 200.0]]).to(dtype) / (1 if dtype == torch.uint8 else 7)
    assert list(values(to_blob(made.to(dtype)))) == made.double().flatten().tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_differs_is_told(dtype: torch.dtype) -> None:
    one = torch.linspace(-1, 1, 30).to(dtype).reshape(3, 10)
    other = one.clone()
    other[1, 4] += 0.5
    far = apart(to_blob(one), to_blob(other))
    assert far.most == float((one.double() - other.double()).abs().max())
    assert far.values == 1
    assert str(far).startswith(f"differs by {far.most:.3g} at most, in 1 value")
    assert not far.within(0.4)
    assert far.within(0.6)
    assert str(apart(to_blob(one), to_blob(one.clone()))) == "equal"


def test_the_sign_of_a_zero_is_no_difference_that_counts() -> None:
    far = apart(Tensor("F32", (1,), struct.pack("<f", 0.0)), Tensor("F32", (1,), struct.pack("<f", -0.0)))
    assert far.within(0.0)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (torch.zeros(2), torch.zeros(2).half(), "dtype"),
        (torch.zeros(2, 3), torch.zeros(3, 2), "2 x 3 and 3 x 2"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), "equal, but"),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, 2.0]), "no numbers"),
    ],
)
def test_what_proves_nothing_is_within_no_tolerance(one: torch.Tensor, other: torch.Tensor, said: str) -> None:
    far = apart(to_blob(one), to_blob(other))
    assert said in str(far)
    assert not far.within(1e9)
