"""Checkpoints: which repositories a cascade is made of, and their parts as models.

A repository is a folder in the hub's layout, or the hub's own name for one that was downloaded before.  The mesh never downloads:
a worker that starts on a fresh host must say what is missing, not fetch 20 GB.  Only safetensors are read; no code from a checkpoint
is ever run.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
import xxhash
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError

from ifmesh.cascade import DRAWN, IF
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.protocol import STAGES, Request, Settings
from ifmesh.stage import Setup

from .mending import mend_safety_checker, no_bars

Kind = TypeVar("Kind")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LICENCE = "DeepFloyd/IF-I-XL-v1.0"  # accepted once, for all repositories of DeepFloyd
UPSCALER = "stabilityai/stable-diffusion-x4-upscaler"
PUBLISHED = {
    "if-xl": ("DeepFloyd/IF-I-XL-v1.0", "DeepFloyd/IF-II-L-v1.0"),
    "if-l": ("DeepFloyd/IF-I-L-v1.0", "DeepFloyd/IF-II-L-v1.0"),
    "if-m": ("DeepFloyd/IF-I-M-v1.0", "DeepFloyd/IF-II-M-v1.0"),
}
DEFAULTS = {  # those of diffusers' pipelines; but the upscaler's noise is 100, as the published scripts pass it
    "stage_one": Settings(steps=100, guidance=7.0),
    "stage_two": Settings(steps=50, guidance=4.0, noise_level=250),
    "upscaler": Settings(steps=75, guidance=9.0, noise_level=100),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a cascade is made of.  repos: stage name to folder or hub name; defaults: drawing stage to the settings it starts from."""

    name: str
    repos: dict[str, str]
    defaults: dict[str, Settings]


def recipe(cascade: str) -> Recipe:
    """The recipe of a cascade: "" (the built-in one, built on first use), a folder with cascade.json, "if-xl", "if-l" or "if-m".

    Misconfigured when there is no such cascade, or cascade.json is wrong.
    """
    if cascade in PUBLISHED:
        one, two = PUBLISHED[cascade]
        return Recipe(cascade, _repos(one, two, UPSCALER), dict(DEFAULTS))
    if not cascade:
        from ifmesh_services.nano import builder  # here: nobody who has real weights needs it

        try:
            return _read(builder.ensure())
        except OSError as error:
            raise Misconfigured(f"the built-in cascade cannot be built: {error}; XDG_CACHE_HOME wants a folder with 60 MB free") from error
    folder = Path(cascade).expanduser()
    if not folder.is_dir():
        near = difflib.get_close_matches(cascade, PUBLISHED, 1)
        raise Misconfigured(
            f"cascade.path: {cascade!r} is neither a folder nor one of {', '.join(PUBLISHED)}"
            + (f"; did you mean {near[0]!r}?" if near else "; leave it out for the built-in cascade")
        )
    return _read(folder.resolve())


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
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    return f"{_device_model(setup.device)}, {named}, {versions}, threads {torch.get_num_threads()}, weights {digest.hexdigest()}"


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
    if not _is_hub_name(repo):
        raise Misconfigured(f"{repo}: no such folder; {_remedy(repo)}")
    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise Misconfigured(f"{repo} is not on this host; {_remedy(repo)}") from error


def _is_hub_name(repo: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repo) is not None


def _remedy(repo: str) -> str:
    if Path(repo).expanduser().is_dir() or not _is_hub_name(repo):
        return "point cascade.path at a folder with cascade.json and repositories in the hub's layout (safetensors)"
    fetch = f"download it: hf download {repo} --include '*.json' '*.txt' '*.model' '*.safetensors'"
    if repo.startswith("DeepFloyd/"):
        return f"accept the licence at https://huggingface.co/{LICENCE}, log in (hf auth login) or set HF_TOKEN, and {fetch}"
    return fetch


def _repos(one: str, two: str, upscaler: str) -> dict[str, str]:
    """The encoder and the guard live in Stage I's repository."""
    return dict(zip(STAGES, (one, one, two, upscaler, one), strict=True))


def _read(folder: Path) -> Recipe:
    """The recipe in folder/cascade.json."""
    path = folder / "cascade.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Misconfigured(f"{path}: no such file; a cascade's folder holds cascade.json beside its repositories") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Misconfigured(f"{path}: cannot be read as JSON: {error}") from error
    _check_keys(path, "", data, {"name", *DRAWN})
    repos, defaults = [], {}
    for stage in DRAWN:
        entry = data.get(stage)
        _check_keys(path, f"{stage}.", entry, {"repo", *(f.name for f in fields(Settings))})
        repo = entry.get("repo")
        if not isinstance(repo, str) or not repo:
            raise Misconfigured(f"{path}: {stage}.repo: {repo!r}: the name of a folder beside cascade.json, or of a repository on the hub")
        beside = folder / repo
        if not beside.is_dir() and not _is_hub_name(repo):
            raise Misconfigured(f"{path}: {stage}.repo: no folder {beside}")
        repos.append(str(beside) if beside.is_dir() else repo)
        defaults[stage] = _settings(path, stage, entry)
    one, two, upscaler = repos
    return Recipe(str(data.get("name", folder.name)), _repos(one, two, upscaler), defaults)


def _check_keys(path: Path, where: str, data: object, known: set[str]) -> None:
    if not isinstance(data, dict):
        raise Misconfigured(f"{path}: {where.rstrip('.') or 'the whole'}: {data!r}: an object with {', '.join(sorted(known))}")
    for key in sorted(set(data) - known):
        near = difflib.get_close_matches(key, sorted(known), 1, cutoff=0.0)
        raise Misconfigured(f"{path}: unknown key {where + key!r}; did you mean {where + near[0]!r}?")


def _settings(path: Path, stage: str, entry: dict[str, Any]) -> Settings:
    """The published defaults with what the entry says; checked by the rules for a request's own."""
    whole = {key: entry[key] for key in ("steps", "noise_level") if entry.get(key) is not None}
    real = {key: entry[key] for key in ("guidance", "strength") if entry.get(key) is not None}
    listed = entry.get("timesteps")
    for key, value in (whole | real).items():
        if isinstance(value, bool) or not isinstance(value, int if key in whole else (int, float)):
            raise Misconfigured(f"{path}: {stage}.{key}: {value!r}: a number")
    if listed is not None:
        if not isinstance(listed, list) or not all(type(t) is int for t in listed):
            raise Misconfigured(f"{path}: {stage}.timesteps: {listed!r}: a list of whole numbers")
        whole["timesteps"] = tuple(listed)
    usual = {f.name: getattr(DEFAULTS[stage], f.name) for f in fields(Settings)}
    if listed is not None and "steps" not in whole:
        usual["steps"] = None
    made = Settings(**(usual | whole | {key: float(value) for key, value in real.items()}))
    try:
        IF.check(Request("a fox", 0, settings={stage: made}))
    except BadRequest as error:
        raise Misconfigured(f"{path}: {error}") from error
    return made


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
