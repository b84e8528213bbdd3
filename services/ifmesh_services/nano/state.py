"""What a training knows, as one file: tensors as safetensors, the rest as JSON in its header.  Nothing in it can run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

FILE = "state.safetensors"
TENSOR = "tensor"  # {TENSOR: name}: in the JSON, where a tensor was


def write(path: Path, state: dict[str, Any]) -> None:
    """Dicts, lists, scalars and tensors.  Whole or not at all, whenever the process dies.  OSError."""
    tensors: dict[str, Tensor] = {}
    rest = _without(state, "", tensors)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(save(tensors, {"state": json.dumps(rest)}))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(path: Path, device: str = "cpu") -> dict[str, Any]:
    """As it was written, but for tuples, which are lists, and numbers as keys, which are text.  FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(path)
    with safe_open(path, "pt", device=device) as file:
        state: dict[str, Any] = _with(json.loads(file.metadata()["state"]), file)
    return state


def _without(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone().contiguous()  # what two models share is written twice
        return {TENSOR: name}
    if isinstance(value, dict):
        return {str(key): _without(inner, f"{name}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without(inner, f"{name}/{n}", tensors) for n, inner in enumerate(value)]
    return value


def _with(value: Any, file: Any) -> Any:
    if isinstance(value, dict):
        return file.get_tensor(value[TENSOR]) if value.keys() == {TENSOR} else {key: _with(inner, file) for key, inner in value.items()}
    return [_with(inner, file) for inner in value] if isinstance(value, list) else value
