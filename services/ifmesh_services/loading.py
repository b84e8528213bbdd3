"""Checkpoints: the parts of a repository as models.

A repository is a folder in the hub's layout, or the hub's own name for one that was downloaded before.  The mesh never downloads:
a worker that starts on a fresh host must say what is missing, not fetch 20 GB.  Only safetensors are read; no code from a checkpoint
is ever run.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import PIL
import PIL.features
import torch
import transformers
import xxhash
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError

from ifmesh.errors import Misconfigured
from ifmesh.stage import Setup

from .mending import mend_safety_checker, mend_upsampling, no_bars
from .recipes import is_hub_name

Kind = TypeVar("Kind")

LICENCE = "DeepFloyd/IF-I-XL-v1.0"  # accepted once, for all repositories of DeepFloyd
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(setup: Setup) -> torch.dtype:
    """The dtype a stage computes in: by default fp32 on a CPU, fp16 elsewhere.

    Misconfigured when there is no such dtype or device.
    """
    _check_device(setup.device)
    if setup.dtype and setup.dtype not in DTYPES:
        near = difflib.get_close_matches(setup.dtype.lower().replace("float", "fp"), DTYPES, 1, cutoff=0.0)
        raise Misconfigured(f"dtype: {setup.dtype!r} is not one of {', '.join(DTYPES)}; did you mean {near[0]!r}?")
    return DTYPES[setup.dtype or ("fp32" if torch.device(setup.device).type == "cpu" else "fp16")]


def component(repo: str, subfolder: str, kind: type[Kind], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Kind:
    """One part of a repository: a model (ready for inference on `device`), a tokenizer or a feature extractor.

    dtype, device: of a model.  With fp16 the repository's fp16 variant is read when it has one.  Misconfigured: it is not there
    or cannot be read, and what to do.
    """
    if kind is IFSafetyChecker:
        mend_safety_checker()
    mend_upsampling()
    if not issubclass(kind, torch.nn.Module):
        _check_vocabulary(repo, subfolder, kind)
        return _part(repo, subfolder, kind)
    more: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if dtype == torch.float16 and any(re.search(r"\.fp16[.-]", file.name) for file in (_where(repo) / subfolder).glob("*.safetensors")):
        more["variant"] = "fp16"
    model: Any = _part(repo, subfolder, kind, **more)
    made: Kind = model.eval().requires_grad_(False).to(device)
    return made


def scheduler(repo: str, subfolder: str, kind: type[Kind]) -> Kind:
    """A scheduler with the repository's configuration.  Misconfigured as `component`."""
    return _part(repo, subfolder, kind)


def tokenizer(repo: str, kind: type[Kind]) -> Kind:
    """The repository's tokenizer.  Misconfigured as `component`."""
    return component(repo, "tokenizer", kind)


def settle(setup: Setup) -> None:
    """Give torch the threads the setup asks for.  On a CPU their number changes bits, so it is part of the numeric class."""
    if torch.get_num_threads() != setup.threads:
        torch.set_num_threads(setup.threads)
    with contextlib.suppress(RuntimeError):  # can be set but once in a process, before any parallel work; it changes no bits
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)


def numeric_class(setup: Setup, dtype: torch.dtype, *parts: object) -> str:
    """Settle torch's threads and name what the bits depend on: equal strings promise equal bits.

    parts: the models (told apart by the bytes of their weights) and schedulers (by their configuration).
    """
    settle(setup)
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(type(part).__name__.encode())
        if isinstance(part, torch.nn.Module):
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                if tensor.numel():
                    digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
        else:
            config = {key: value for key, value in dict(getattr(part, "config", {})).items() if not key.startswith("_")}
            digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    named = next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}, {_pillow()}"
    return f"{_device_model(setup.device)}, {named}, {versions}, threads {torch.get_num_threads()}, weights {digest.hexdigest()}"


def _pillow() -> str:
    """It decodes and resizes what clients send; JPEG leaves its decoders free in the last bit."""
    jpeg = PIL.features.version("libjpeg_turbo") or PIL.features.version("jpg")
    return f"pillow {PIL.__version__} (libjpeg {jpeg}, webp {PIL.features.version('webp')})"


def _part(repo: str, subfolder: str, kind: type[Kind], **more: Any) -> Kind:
    folder = _where(repo) / subfolder
    if not folder.is_dir():
        raise Misconfigured(f"{folder}: no such folder; {_remedy(repo)}")
    try:
        with no_bars():
            reader: Any = kind
            made: Kind = reader.from_pretrained(str(folder), local_files_only=True, **more)
            return made
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Misconfigured(f"{folder}: cannot be loaded as {kind.__name__}: {why}; {_remedy(repo)}") from error


def _check_vocabulary(repo: str, subfolder: str, kind: Any) -> None:
    """transformers 5 makes an empty tokenizer of a folder whose vocabulary is missing, and says nothing."""
    named = dict(getattr(kind, "vocab_files_names", {}))
    folder = _where(repo) / subfolder
    if not named or not folder.is_dir() or (folder / named.pop("tokenizer_file", "tokenizer.json")).exists():
        return
    if missing := [name for name in named.values() if not (folder / name).exists()]:
        raise Misconfigured(f"{folder}: {', '.join(missing)} is missing; {_remedy(repo)}")


def _where(repo: str) -> Path:
    """The folder of a repository: itself, or where the hub's client has put it."""
    folder = Path(repo).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_name(repo):
        raise Misconfigured(f"{repo}: no such folder; {_remedy(repo)}")
    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise Misconfigured(f"{repo} is not on this host; {_remedy(repo)}") from error


def _remedy(repo: str) -> str:
    if Path(repo).expanduser().is_dir() or not is_hub_name(repo):
        return "point cascade.path at a folder with cascade.json and repositories in the hub's layout (safetensors)"
    fetch = f"download it: hf download {repo} --include '*.json' '*.txt' '*.model' '*.safetensors'"
    if repo.startswith("DeepFloyd/"):
        return f"accept the licence at https://huggingface.co/{LICENCE}, log in (hf auth login) or set HF_TOKEN, and {fetch}"
    return fetch


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or str(device) != name:  # "cuda:300" is read as "cuda:44"
        raise Misconfigured(f"device: {name!r} is none that torch knows: 'cpu', 'cuda' or 'cuda:0'")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise Misconfigured(
            f"device: {name!r}: torch {torch.__version__} sees {count} CUDA devices here; use 'cpu' or install its CUDA build"
        )


def _device_model(name: str) -> str:
    if torch.device(name).type == "cuda":
        cudnn: Any = torch.backends.cudnn
        return f"{torch.cuda.get_device_name(name)}, CUDA {torch.version.cuda}, cuDNN {cudnn.version()}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
