"""Where a repository lies: a folder in the hub's layout, or what the hub's client has stored under the hub's own name.

The mesh downloads nothing unless a service's option says `download = true`: a worker that starts on a fresh host must say what is
missing, not fetch 20 GB.  Even then only what the stage loads is fetched, and only safetensors: a pickle can run code when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ifmesh.errors import Misconfigured

from .bars import no_bars
from .recipes import is_hub_name

LICENCE = "DeepFloyd/IF-I-XL-v1.0"  # accepted once, for all repositories of DeepFloyd
PLAIN = ("json", "txt", "model")  # configurations and vocabularies
PICKLED = (".bin", ".ckpt", ".pt", ".pth")


def where(repo: str) -> Path:
    """The folder of a repository: itself, or where the hub's client has put it.  Misconfigured: it is not on this host."""
    folder = Path(repo).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_name(repo):
        raise Misconfigured(f"{repo}: no such folder; {remedy(repo)}")
    try:
        # a pattern that asks for nothing: else it wants the whole repository, and a stage needs but a part of it
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns="nothing"))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise Misconfigured(f"{repo} is not on this host; {remedy(repo)}") from error


def fetched(repo: str, subfolder: str, variants: Sequence[str] = ("",)) -> Path:
    """`where`, after fetching what is missing of one part of a repository on the hub.

    variants: of the weights' files, "" is the one without a name.  Misconfigured: the hub does not give it to this host, with what
    to do.  A login stored by `hf auth login` counts as much as HF_TOKEN.
    """
    if Path(repo).expanduser().is_dir() or not is_hub_name(repo):
        return where(repo)
    names = [f"*.{ending}" for ending in PLAIN]
    names += [f"*{'.' + variant if variant else ''}{shard}.safetensors" for variant in variants for shard in ("", "-?????-of-?????")]
    try:
        with no_bars():
            wanted = [f"{subfolder}/{name}" for name in names]
            unwanted = [] if any(variants) else [f"{subfolder}/*.*.safetensors", f"{subfolder}/*.*-of-*.safetensors"]
            return Path(snapshot_download(repo, allow_patterns=wanted, ignore_patterns=unwanted))
    except (GatedRepoError, RepositoryNotFoundError, HfHubHTTPError) as error:
        raise Misconfigured(f"{repo}: {refusal(repo, error)}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Misconfigured(f"{repo} cannot be fetched: {why}; {remedy(repo)}") from error


def refusal(repo: str, error: HfHubHTTPError) -> str:
    """What the hub's refusal means, and what to do."""
    status = error.response.status_code if error.response is not None else 0
    name = LICENCE if repo.startswith("DeepFloyd/") else repo
    accept = f"accept the licence at https://huggingface.co/{name} once"
    enter = "log in (hf auth login) or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return f"the hub knows no such repository, or keeps it private (HTTP {status}); check the name, or {enter}"
    if status in (401, 403) and not get_token():
        return f"the hub wants a login (HTTP {status}), and this host has none; {accept}, and {enter}"
    if status == 401:
        return f"the hub does not know this host's login (HTTP 401); {enter} anew, and {accept}"
    if status == 403:
        return f"this host's login has no access (HTTP 403); {accept}, with the account of that login"
    return f"the hub answered HTTP {status}; try again later, or {remedy(repo)}"


def remedy(repo: str) -> str:
    """What to do when it is not here."""
    if Path(repo).expanduser().is_dir() or not is_hub_name(repo):
        return "point cascade.path at a folder with cascade.json and repositories in the hub's layout (safetensors)"
    fetch = f"download it: ifmesh pull {repo}"
    if repo.startswith("DeepFloyd/"):
        return f"accept the licence at https://huggingface.co/{LICENCE}, log in (hf auth login) or set HF_TOKEN, and {fetch}"
    return fetch


def weights(folder: Path, variant: str, repo: str) -> list[Path]:
    """The safetensors files of one variant ("": the one without a name) in a part's folder, in the order of their names.

    Misconfigured: there are none, and what there is instead.  The repository's pickles are never read.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.setdefault(variant_of(path), []).append(path)
    if variant in found:
        return found[variant]
    if found:
        there = ", ".join(repr(name) if name else "the one without a name" for name in sorted(found))
        raise Misconfigured(f"{folder}: no safetensors of variant {variant!r}; there are: {there}")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickles:
        raise Misconfigured(
            f"{folder}: {', '.join(pickles[:3])}: only pickled weights, which can run code when they are read, so they are not; "
            f"convert them to safetensors, or {remedy(repo)}"
        )
    raise Misconfigured(f"{folder}: no weights; {remedy(repo)}")


def variant_of(path: Path) -> str:
    """ "fp16" of model.fp16.safetensors, model.fp16-00001-of-00002.safetensors and model-00001-of-00002.fp16.safetensors; else ""."""
    parts = path.name.removesuffix(".safetensors").split(".")[1:]
    return parts[0].partition("-")[0] if parts else ""
