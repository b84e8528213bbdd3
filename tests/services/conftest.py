"""The built-in cascade, built afresh once per session."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ifmesh_services.nano import builder

from ifmesh.stage import Stage
from tests.services.chained import loaded

OTHER: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 48, "d_kv": 24, "d_ff": 80, "num_layers": 3, "num_heads": 2},
    "clip": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2},
    "one": {
        "block_out_channels": [24, 48, 64, 80],
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "cross_attention_dim": 64,
        "encoder_hid_dim": 48,
        "addition_embed_type_num_heads": 6,
    },
    "two": {
        "block_out_channels": [12, 20, 24, 48, 64],
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "encoder_hid_dim": 48,
        "time_embedding_dim": 64,
    },
    "x4": {"block_out_channels": [12, 24, 24, 48], "norm_num_groups": 4, "attention_head_dim": 6, "cross_attention_dim": 24},
    "vae": {"block_out_channels": [12, 16, 24], "norm_num_groups": 4},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Thread count changes bits, and two processes with two threads on two cores run at a third of the speed."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nano64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cascade 64 -> 256 -> 1024."""
    folder = tmp_path_factory.mktemp("cascades") / "nano64"
    builder.build(folder)
    return folder


@pytest.fixture(scope="session")
def nano16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cascade 16 -> 64 -> 256, for fast tests."""
    folder = tmp_path_factory.mktemp("cascades") / "nano16"
    builder.build(folder, base=16)
    return folder


@pytest.fixture(scope="session")
def other16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sizes, but an encoder and UNets of other widths and depths."""
    folder = tmp_path_factory.mktemp("cascades") / "other16"
    builder.build(folder, base=16, seed=100, other=OTHER)
    return folder


@pytest.fixture(scope="session")
def others16(other16: Path) -> dict[str, Stage]:
    return loaded(other16)


@pytest.fixture(scope="session")
def stages16(nano16: Path) -> dict[str, Stage]:
    return loaded(nano16)


@pytest.fixture(scope="session")
def flagging64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As nano64, with a safety checker that flags every picture."""
    folder = tmp_path_factory.mktemp("cascades") / "flagging64"
    builder.build(folder, flagging=True)
    return folder
