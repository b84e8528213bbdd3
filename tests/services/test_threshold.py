"""Dynamic thresholding without a full sort, against diffusers' own: equal in every bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from ifmesh_services import threshold
from torch import Tensor

from ifmesh.request import Request, Settings
from ifmesh.stage import Stage
from tests.services.chained import compare

KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler)
}


def scheduler(kind: Any = DDPMScheduler, **config: Any) -> Any:
    return kind(**{"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.95, **config})


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Every bit, and a NaN is a NaN."""
    return (
        ours.dtype == theirs.dtype and torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))
    )


def assert_alike(sample: Tensor, **config: Any) -> None:
    theirs = scheduler(**config)
    wanted = theirs._threshold_sample(sample)
    ours = threshold.quickened(scheduler(**config))
    assert alike(ours._threshold_sample(sample), wanted), f"{list(sample.shape)}, {config}"


def pictures(batch: int, height: int, width: int, seed: int) -> Tensor:
    """Of very different spread, so that s is 1 for some, the most for others."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=source) * torch.rand(batch, 1, 1, 1, generator=source) * 2


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (63, 41), (96, 64), (8, 8), (1, 1), (1, 7), (131, 257)])
def test_random_pictures(size: tuple[int, int]) -> None:
    for seed in range(40 if size[0] < 256 else 6):
        assert_alike(pictures(1 + seed % 3, *size, seed))
        assert_alike(pictures(1, *size, seed), sample_max_value=100.0)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.7499, 0.75, 0.8, 0.9, 0.99, 0.995, 0.9999, 1.0])
def test_other_ratios(ratio: float) -> None:
    for seed in range(10):
        assert_alike(pictures(2, 64, 48, seed), dynamic_thresholding_ratio=ratio, sample_max_value=9.0)
        assert_alike(pictures(1, 3, 5, seed), dynamic_thresholding_ratio=ratio, sample_max_value=9.0)


@pytest.mark.parametrize("most", [0.5, 1.0, 1.0001, 1.5, 20.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_other_limits_and_precisions(most: float, dtype: torch.dtype) -> None:
    for seed in range(5):
        assert_alike(pictures(2, 32, 32, seed).to(dtype), sample_max_value=most)


@pytest.mark.parametrize("most", [1.0, 1.5, float("inf")])
def test_values_that_are_none_and_ties(most: float) -> None:
    odd = pictures(6, 16, 16, 0)
    odd[0, 0, 3, 3] = torch.nan
    odd[1] = torch.inf
    odd[2, 1] = -torch.inf
    odd[3] = 0
    odd[4] = -3
    odd[5] = odd[5].round()
    assert_alike(odd, sample_max_value=most)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # diffusers and numpy
@pytest.mark.parametrize("kind", KINDS)
def test_whole_draws(kind: str) -> None:
    """Every scheduler that thresholds, step by step."""

    def drawn(made: Any) -> Tensor:
        made.set_timesteps(6)
        source = torch.Generator().manual_seed(1)
        x = torch.randn(1, 3, 24, 40, generator=source)
        extra = {"generator": source} if kind == "DDPMScheduler" else {}
        for t in made.timesteps:
            x = made.step(torch.randn(x.shape, generator=source) + x, t, x, **extra).prev_sample
        return x

    ours = threshold.quickened(scheduler(KINDS[kind]))
    assert "_threshold_sample" in vars(ours), "still its own"
    assert torch.equal(drawn(ours), drawn(scheduler(KINDS[kind])))


class OtherFormula(DDPMScheduler):
    def _threshold_sample(self, sample: Tensor) -> Tensor:
        return sample.clamp(-1, 1)


@pytest.mark.parametrize(("kind", "config"), [(OtherFormula, {}), (DDPMScheduler, {"thresholding": False}), (EulerDiscreteScheduler, None)])
def test_where_it_does_not_apply(kind: Any, config: dict[str, Any] | None) -> None:
    other = kind() if config is None else scheduler(kind, **config)
    assert threshold.quickened(other) is other
    assert "_threshold_sample" not in vars(other)


def nearest(values: Tensor, ratio: float) -> Tensor:
    return torch.quantile(values, ratio, dim=1, interpolation="lower")


def test_the_comparison_notices(stages16: dict[str, Stage], nano16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact mode draws with it: a quantile that is off by a hair changes its pictures."""
    request = Request("a red fox", 3, settings={"stage_one": Settings(steps=4)}, last_stage="stage_one")
    compare(stages16, nano16, request)
    monkeypatch.setattr(threshold, "quantile", nearest)
    with pytest.raises(AssertionError, match="image64 differs by"):
        compare(stages16, nano16, request)
