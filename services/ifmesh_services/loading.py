"""Checkpoints: the parts of a repository as models.

A repository is a folder in the hub's layout, or the hub's own name: see hub.py.  Only safetensors are read; no code from a checkpoint
is ever run.  RAM while loading: the weights once, in the dtype they end up in, and one tensor more.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import PIL
import PIL.features
import torch
import transformers
import xxhash
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from safetensors import SafetensorError
from transformers import T5EncoderModel

from ifmesh.errors import Misconfigured
from ifmesh.stage import Setup

from . import hub, precision, shelf
from .compiled import compiled
from .mending import mend_safety_checker, mend_upsampling, quiet
from .offload import offloaded
from .precision import DTYPES, dtype_of
from .terms import Terms

__all__ = ["DTYPES", "agreed", "component", "dtype_of", "numeric_class", "scheduler", "settle", "tokenizer", "weight"]

Kind = TypeVar("Kind")
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}  # safetensors' names
WHOLE = (T5EncoderModel, UNet2DConditionModel, IFSafetyChecker)  # a variant has these; not all of the smaller parts
ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def component(
    repo: str, subfolder: str, kind: type[Kind], dtype: torch.dtype = torch.float32, device: str = "cpu", terms: Terms | None = None
) -> Kind:
    """One part of a repository: a model (ready for inference on `device`), a tokenizer or a feature extractor.

    dtype, device, terms: of a model.  With fp16 the repository's fp16 variant is read when it has one.  Misconfigured: it is not there
    or cannot be read, and what to do.
    """
    terms = terms or Terms()
    if kind is IFSafetyChecker:
        mend_safety_checker()
    mend_upsampling()
    if terms.download:
        hub.fetched(repo, subfolder, (terms.variant or ("fp16" if dtype == torch.float16 else ""), ""))
    if not issubclass(kind, torch.nn.Module):
        _check_vocabulary(repo, subfolder, kind)
        return _part(repo, subfolder, kind)
    folder = _folder(repo, subfolder)
    variant, files = _chosen(repo, folder, kind, dtype, terms)
    try:
        made: Any = _model(kind, folder, files, variant, dtype, device, terms)
    except ERRORS as error:
        raise _unreadable(folder, kind, repo, error) from error
    ready: Kind = _treated(kind, made, terms)
    return ready


def _treated(kind: Any, model: Any, terms: Terms) -> Any:
    """The model, its attention in slices, its decode in tiles, or compiled."""
    if kind is UNet2DConditionModel and terms.attention_slicing != "none":
        try:
            model.set_attention_slice(terms.attention_slicing)
        except ValueError as error:
            where = f"services.{terms.stage}.options.attention_slicing"
            raise Misconfigured(f"{where}: {terms.attention_slicing!r}: more heads than this UNet's layers have; {error}") from error
    if kind is AutoencoderKL and terms.vae_tiling:
        model.enable_tiling()
    if terms.compile and kind is not AutoencoderKL:
        side = model.config.sample_size if kind is UNet2DConditionModel else 0
        return compiled(model, terms.shapes or [(side, side)], f"services.{terms.stage}.options.compile")
    return model


def _chosen(repo: str, folder: Path, kind: Any, dtype: torch.dtype, terms: Terms) -> tuple[str, list[Path]]:
    """The variant to read and its files.  Misconfigured: there is none of that name."""
    variant = terms.variant
    if not variant and dtype == torch.float16 and any(hub.variant_of(path) == "fp16" for path in folder.glob("*.safetensors")):
        variant = "fp16"
    if variant and kind not in WHOLE and not any(hub.variant_of(path) == variant for path in folder.glob("*.safetensors")):
        variant = ""  # the watermarker has one file
    return variant, hub.weights(folder, variant, repo)


def _model(kind: Any, folder: Path, files: list[Path], variant: str, dtype: torch.dtype, device: str, terms: Terms) -> Any:
    """A model for inference, its weights where the terms want them."""
    stored = precision.stored(files)
    if terms.quantize and stored and stored != terms.quantize:
        where = f"services.{terms.stage}.options.quantize"
        raise Misconfigured(f"{where}: {terms.quantize!r}: the files of variant {variant!r} are {stored} already; leave it out")
    quantize = stored or (terms.quantize if kind is T5EncoderModel else "")
    if quantize and terms.offload != "none":
        raise Misconfigured(f"services.{terms.stage}.options.offload: {terms.offload!r}: not with {quantize} weights; leave it out")
    at = device if terms.offload == "none" else "cpu"
    if quantize:
        made = _quantised(kind, folder, variant, quantize, bool(stored), dtype, at)
    elif terms.offload == "disk":
        made, kept = shelf.skeleton(kind, folder, files, variant, dtype)
        return offloaded(made.eval(), "disk", device, kept)
    elif _alike(kind, files, dtype):
        made = _from_pretrained(kind, folder, variant, dtype=dtype).to(at)
    else:  # the libraries would hold the files and the model at once
        made, kept = shelf.skeleton(kind, folder, files, variant, dtype)
        made = shelf.filled(made, kept, at)
    made = made.eval()
    return made if terms.offload == "none" else offloaded(made, terms.offload, device)


def _alike(kind: Any, files: list[Path], dtype: torch.dtype) -> bool:
    """Are the files' tensors the model's, bit by bit?  Then they are mapped into memory, not copied."""
    if issubclass(kind, T5EncoderModel) and dtype == torch.float16:  # some of its layers stay in fp32
        return False
    stored = {tensor["dtype"] for path in files for tensor in precision.header(path).values()}
    return all(FLOATS.get(name, dtype) == dtype for name in stored)


def _quantised(kind: Any, folder: Path, variant: str, quantize: str, stored: bool, dtype: torch.dtype, device: str) -> Any:
    """T5 in int8 or nf4.  stored: the files are."""
    config = precision.quantised(quantize, dtype)
    if stored:  # said in the model's own configuration: as an argument it would have the integers quantised once more
        own = kind.config_class.from_pretrained(str(folder), local_files_only=True)
        own.quantization_config = config.to_dict()
        return _from_pretrained(kind, folder, variant, dtype=dtype, config=own, device_map={"": device})
    return _from_pretrained(kind, folder, variant, dtype=dtype, quantization_config=config, device_map={"": device})


def _from_pretrained(kind: Any, folder: Path, variant: str, **more: Any) -> Any:
    """As the library reads it.  ValueError: weights are missing, which it would make up."""
    if issubclass(kind, torch.nn.Module):
        more |= {"use_safetensors": True, "variant": variant or None, "output_loading_info": True}
    with quiet():
        made = kind.from_pretrained(str(folder), local_files_only=True, **more)
    if not issubclass(kind, torch.nn.Module):
        return made
    made, info = made
    shelf.complete(info["missing_keys"])
    return made


def weight(repo: str, subfolder: str, kind: type, dtype: torch.dtype, terms: Terms) -> int:
    """Bytes of memory of this model once it is loaded, without what it computes with: by its files' headers.  Misconfigured as `component`.

    Of weights read from disk layer by layer: none.
    """
    if terms.download:
        hub.fetched(repo, subfolder, (terms.variant or ("fp16" if dtype == torch.float16 else ""), ""))
    folder = _folder(repo, subfolder)
    _, files = _chosen(repo, folder, kind, dtype, terms)
    try:
        heads = {name: tensor for path in files for name, tensor in precision.header(path).items()}
    except ERRORS as error:
        raise _unreadable(folder, kind, repo, error) from error
    if terms.offload == "disk":
        return 0
    quantize = "" if precision.stored(files) else terms.quantize
    return sum(_bytes(name, tensor, kind, dtype, quantize, bool(precision.stored(files))) for name, tensor in heads.items())


def _bytes(name: str, tensor: Mapping[str, Any], kind: type, dtype: torch.dtype, quantize: str, stored: bool) -> int:
    """Of one tensor in memory: T5 keeps each block's `wo` in fp32 where the rest is fp16, and bitsandbytes its other Linear weights in 8 or
    4 bits."""
    count, source = int(math.prod(tensor["shape"])), FLOATS.get(tensor["dtype"])
    text = issubclass(kind, T5EncoderModel)
    if source is None or stored:
        begin, end = tensor["data_offsets"]
        return int(end - begin)
    if text and quantize and len(tensor["shape"]) == 2 and ".wo." not in name and "block" in name and "relative" not in name:
        return count if quantize == "int8" else count // 2
    held = torch.float32 if text and dtype == torch.float16 and ".wo." in name else dtype
    return count * held.itemsize


def agreed(stage: str, setup: Setup, beside: Sequence[str] | None = None) -> Terms:
    """The terms on which a stage's models are loaded, and torch's threads settled: what is compiled is compiled for their number.

    beside: as in Terms.read.  Misconfigured: key, value, remedy.
    """
    settle(setup)
    return Terms.read(stage, setup.options, setup.device, beside)


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


def numeric_class(setup: Setup, dtype: torch.dtype, *parts: object, terms: Terms | None = None) -> str:
    """Settle torch's threads and name what the bits depend on: equal strings promise equal bits.

    parts: the models (told apart by the bytes of their weights) and schedulers (by their configuration).  terms: on which the models
    were loaded.
    """
    settle(setup)
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(type(part).__name__.encode())
        if isinstance(part, torch.nn.Module):
            for name, tensor in shelf.tensors(part):
                data: Any = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(data)
        else:
            config = {key: value for key, value in dict(getattr(part, "config", {})).items() if not key.startswith("_")}
            digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    how = terms.numeric if terms else ""
    named = next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}, {_pillow()}"
    return f"{_device_model(setup.device)}, {named}, {versions}, threads {torch.get_num_threads()}, weights {digest.hexdigest()}{how}"


def _pillow() -> str:
    """It decodes and resizes what clients send; JPEG leaves its decoders free in the last bit."""
    jpeg = PIL.features.version("libjpeg_turbo") or PIL.features.version("jpg")
    return f"pillow {PIL.__version__} (libjpeg {jpeg}, webp {PIL.features.version('webp')})"


def _part(repo: str, subfolder: str, kind: type[Kind]) -> Kind:
    folder = _folder(repo, subfolder)
    try:
        made: Kind = _from_pretrained(kind, folder, "")
        return made
    except ERRORS as error:
        raise _unreadable(folder, kind, repo, error) from error


def _folder(repo: str, subfolder: str) -> Path:
    folder = hub.where(repo) / subfolder
    if not folder.is_dir():
        raise Misconfigured(f"{folder}: no such folder; {hub.remedy(repo)}")
    return folder


def _unreadable(folder: Path, kind: Any, repo: str, error: Exception) -> Misconfigured:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Misconfigured(f"{folder}: cannot be loaded as {kind.__name__}: {why}; {hub.remedy(repo)}")


def _check_vocabulary(repo: str, subfolder: str, kind: Any) -> None:
    """transformers 5 makes an empty tokenizer of a folder whose vocabulary is missing, and says nothing."""
    named = dict(getattr(kind, "vocab_files_names", {}))
    folder = hub.where(repo) / subfolder
    if not named or not folder.is_dir() or (folder / named.pop("tokenizer_file", "tokenizer.json")).exists():
        return
    if missing := [name for name in named.values() if not (folder / name).exists()]:
        raise Misconfigured(f"{folder}: {', '.join(missing)} is missing; {hub.remedy(repo)}")


def _device_model(name: str) -> str:
    if torch.device(name).type == "cuda":
        cudnn: Any = torch.backends.cudnn
        return f"{torch.cuda.get_device_name(name)}, CUDA {torch.version.cuda}, cuDNN {cudnn.version()}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
