"""A model's weights where they lie on disk, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import torch
from accelerate.hooks import (  # type: ignore[import-untyped]
    AlignDevicesHook,
    add_hook_to_module,
    attach_align_device_hook,
    remove_hook_from_module,
)
from accelerate.utils import set_module_tensor_to_device  # type: ignore[import-untyped]
from diffusers.models.modeling_utils import ModelMixin
from safetensors import safe_open
from torch import Tensor

from .mending import quiet

WINDOW = 1 << 24  # bytes.  Opening a file for each of some hundred tensors would take as long as reading them


class Shelf(Mapping[str, Tensor]):
    """The model's tensors by name, in the dtype it wants.  Each maps the file anew, and is let go of with the tensor.

    places: by the model's name, the file, the file's own name and the dtype; None: the file's.
    """

    def __init__(self, places: Mapping[str, tuple[Path, str, torch.dtype | None]]) -> None:
        self._places = dict(places)

    def __getitem__(self, name: str) -> Tensor:
        path, stored, dtype = self._places[name]
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored)
        return tensor.to(dtype or tensor.dtype)

    def all(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, in the order of the files.  At most WINDOW bytes of a file, and a tensor, are mapped beside what is kept."""
        path, taken = Path(), 0
        file: Any = None
        for name, (here, stored, dtype) in sorted(self._places.items(), key=lambda item: (item[1][0], item[1][1])):
            if file is None or here != path or taken >= WINDOW:
                del file
                path, file, taken = here, safe_open(here, framework="pt"), 0
            tensor: Tensor = file.get_tensor(stored)
            taken += tensor.nbytes
            yield name, tensor.to(dtype or tensor.dtype, copy=True)  # a view would keep the whole window

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def skeleton(kind: Any, folder: Path, files: list[Path], variant: str, dtype: torch.dtype) -> tuple[Any, Shelf]:
    """The model without weights (on the meta device, dtypes settled), and where they are.

    Names follow the libraries' own renaming of old checkpoints.  ValueError: weights are missing.
    """
    model, names = (_of_diffusers if issubclass(kind, ModelMixin) else _of_transformers)(kind, folder, files, variant)
    fine = set(getattr(kind, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    places: dict[str, tuple[Path, str, torch.dtype | None]] = {}
    complete(model.state_dict().keys() - names)
    for name, tensor in model.state_dict().items():
        path, stored = names[name]
        wanted = torch.float32 if fine & set(name.split(".")) else dtype
        places[name] = (path, stored, wanted if tensor.is_floating_point() else None)
        if tensor.is_floating_point() and tensor.dtype != wanted:
            set_module_tensor_to_device(model, name, "meta", dtype=wanted)
    return model, Shelf(places)


def _of_diffusers(kind: Any, folder: Path, files: list[Path], variant: str) -> tuple[Any, dict[str, tuple[Path, str]]]:
    with accelerate.init_empty_weights():
        model = kind.from_config(kind.load_config(folder, local_files_only=True))
    names: dict[str, tuple[Path, str]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names |= {name: (path, name) for name in file.keys()}  # noqa: SIM118  it is no dict
    model._fix_state_dict_keys_on_load(names)  # old names of attention's layers; it only moves values from key to key
    return model, names


def _of_transformers(kind: Any, folder: Path, files: list[Path], variant: str) -> tuple[Any, dict[str, tuple[Path, str]]]:
    """transformers finds out which tensor of the file is which when it offloads to disk; but it forgets which ones stay in fp32."""
    said: dict[str, Any] = {"use_safetensors": True, "variant": variant or None, "device_map": {"": "disk"}, "output_loading_info": True}
    with quiet():
        model, info = kind.from_pretrained(str(folder), local_files_only=True, **said)
    complete(info["missing_keys"])
    index: dict[str, Any] = {}
    for module in model.modules():
        for hook in _hooks(module):
            if hook.weights_map is not None:
                index |= hook.weights_map.dataset.index
    remove_hook_from_module(model, recurse=True)
    return model, {name: (Path(at["safetensors_file"]), at["weight_name"]) for name, at in index.items()}


def complete(missing: Iterable[str]) -> None:
    """ValueError: weights are missing.  The libraries would make them up, and warn."""
    if names := sorted(missing):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"the files lack {', '.join(names[:3])}{more}")


def _hooks(module: Any) -> Iterator[AlignDevicesHook]:
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        if isinstance(one, AlignDevicesHook):
            yield one


def filled(model: Any, shelf: Shelf, device: str) -> Any:
    """The skeleton with its weights, few in flight at a time.  Weights that are tied stay one."""
    tied = _tied(model)
    for name, tensor in shelf.all():
        if name not in tied:
            set_module_tensor_to_device(model, name, device, value=tensor, clear_cache=False)
    _tie(model)
    return model.to(device)  # buffers that are in no file


def _tied(model: Any) -> set[str]:
    """Names that are another's second name."""
    return set(getattr(model, "all_tied_weights_keys", None) or {})


def _tie(model: Any) -> None:
    if _tied(model):
        model.tie_weights()


def hooked(model: Any, weights: Mapping[str, Tensor], device: str) -> Any:
    """The model, each layer of which takes its weights from the mapping when it is called, and lets go of them afterwards."""
    for name in weights:  # buffers are small, and hooks would leave them be
        if name in dict(model.named_buffers()):
            set_module_tensor_to_device(model, name, device, value=weights[name])
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True), append=True)
    attach_align_device_hook(model, execution_device=torch.device(device), offload=True, weights_map=weights)
    return model


def tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """state_dict by name, in the order of the names, wherever the weights are; one at a time."""
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_meta:
            yield name, tensor
            continue
        above, _, own = name.rpartition(".")
        kept = next(hook.weights_map for hook in _hooks(model.get_submodule(above)) if hook.weights_map is not None)
        yield name, kept[own].to(tensor.dtype)
