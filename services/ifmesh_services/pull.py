"""What of the hub a cascade needs, and whether this host may have it: the half of `ifmesh pull` that asks before anything is fetched.

Of each part only what the stage will load: configurations, vocabularies, and the safetensors of one variant.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from ifmesh.errors import Lost, Misconfigured
from ifmesh.published import whole

from . import hub

RESERVE = 1 << 30  # bytes of the disk that are left free


@dataclass(frozen=True, slots=True)
class Want:
    """What a stage wants of a repository.  parts: its folders; (): all.  strict: this very variant, where a stage would insist on it."""

    repo: str
    stage: str = ""
    parts: tuple[str, ...] = ()
    variant: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class File:
    """size: bytes.  sha256: "" of small ones, which git keeps.  here: in the hub's cache already."""

    repo: str
    path: str
    size: int
    sha256: str = ""
    here: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """Of one repository.  licence: its name as the hub has it; "": it says none.  gated: it wants to be accepted at `page`."""

    repo: str
    licence: str
    gated: bool
    page: str
    files: tuple[File, ...]

    @property
    def missing(self) -> tuple[File, ...]:
        return tuple(file for file in self.files if not file.here)


def listed(wants: Sequence[Want]) -> list[Listing]:
    """What is to be there for them, repository by repository.  Misconfigured, Lost: the hub does not say."""
    found = []
    for repo in dict.fromkeys(want.repo for want in wants):
        with told(repo):
            info: Any = HfApi().model_info(repo, files_metadata=True)
        names = {each.rfilename: each for each in info.siblings or ()}
        paths = dict.fromkeys(path for want in wants if want.repo == repo for path in wanted(want, names))
        files = tuple(_file(repo, names[path], info.sha) for path in paths)
        page = f"{constants.ENDPOINT}/{hub.LICENCE if repo.startswith('DeepFloyd/') else repo}"
        found.append(Listing(repo, _licence(info), bool(getattr(info, "gated", False)), page, files))
    return found


def wanted(want: Want, names: Iterable[str]) -> list[str]:
    """The paths of what is wanted, among all of the repository's.  Misconfigured: it has no such weights."""
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, slash, file = name.rpartition("/")
        if slash and "/" not in folder and ".." not in name:
            folders.setdefault(folder, []).append(file)
    found: list[str] = []
    for part in want.parts or sorted(folders):
        files = folders.get(part, [])
        if not files:
            raise Misconfigured(f"{want.repo}: the repository has no {part}/: it is none that {want.stage or 'a stage'} can load")
        plain = [file for file in files if file.endswith(tuple(f".{ending}" for ending in hub.PLAIN)) and ".bin.index" not in file]
        found += [f"{part}/{file}" for file in (*plain, *_weights(want, part, files))]
    return found


def _weights(want: Want, part: str, files: Sequence[str]) -> list[str]:
    """The safetensors of the part, in the variant that the stage will choose."""
    by: dict[str, list[str]] = {}
    for file in files:
        if file.endswith(".safetensors"):
            by.setdefault(hub.variant_of(Path(file)), []).append(file)
    strict = want.strict and whole(want.stage, part)
    for variant in (want.variant, *(() if strict else ("",))):
        if variant in by:
            return by[variant]
    if by:
        there = ", ".join(repr(name) if name else "the one without a name" for name in sorted(by))
        raise Misconfigured(f"{want.repo}: {part}: no safetensors of variant {want.variant!r}; there are: {there}: say --variant")
    if pickles := [file for file in files if PurePosixPath(file).suffix in hub.PICKLED]:
        raise Misconfigured(f"{want.repo}: {part}: {pickles[0]}: only pickled weights, which can run code when they are read: not fetched")
    return []


def allowed(listing: Listing) -> None:
    """May this host have the files?  Misconfigured: no login, or the licence is not accepted there; where to go.  Lost: no answer."""
    if listing.missing:
        first = max(listing.missing, key=lambda file: file.size)
        with told(listing.repo):
            get_hf_file_metadata(hf_hub_url(first.repo, first.path))


def fits(listings: Sequence[Listing]) -> None:
    """Misconfigured: the disk of the hub's cache has no room for what is missing."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    needed = sum(file.size for listing in listings for file in listing.missing)
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        remedy = "make room, or let HF_HOME name a folder on another disk"
        raise Misconfigured(f"{constants.HF_HUB_CACHE}: {needed / 1e9:.1f} GB are to come, and {free / 1e9:.1f} GB are free: {remedy}")


def present(wants: Sequence[Want]) -> None:
    """Without the hub (HF_HUB_OFFLINE): Misconfigured names the first thing that is not here."""
    for want in wants:
        folder = hub.where(want.repo)
        names = [str(path.relative_to(folder)) for path in folder.glob("*/*")]
        if not wanted(want, names):
            raise Misconfigured(f"{want.repo} is not on this host; without HF_HUB_OFFLINE: ifmesh pull {want.repo}")


@contextmanager
def told(repo: str) -> Iterator[None]:
    """What the hub's client raises, as Misconfigured (it refuses; what to do) or Lost (asking again may help)."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (408, 429) or status >= 500:
            raise Lost(
                f"{repo}: the hub at {constants.ENDPOINT} answered HTTP {status}; try again later: it goes on where it was"
            ) from error
        raise Misconfigured(f"{repo}: {hub.refusal(repo, error)}") from error
    except OfflineModeIsEnabled as error:
        raise Misconfigured(f"{repo}: HF_HUB_OFFLINE is set: nothing is fetched") from error
    except HFValidationError as error:
        raise Misconfigured(f"{repo}: no name of a repository on the hub: OWNER/NAME") from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Lost(f"{repo}: no (whole) answer from {constants.ENDPOINT}: {why}; the same command goes on where it was") from error


class Accepted:
    """Which licences this user has accepted, by name: a JSON file.  It holds for all repositories of that licence."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def lacking(self, listings: Sequence[Listing]) -> list[Listing]:
        """Of those of which something is missing."""
        known = self._known()
        return [listing for listing in listings if listing.missing and listing.licence and listing.licence not in known]

    def add(self, listings: Sequence[Listing]) -> None:
        said = self._known() | {listing.licence: listing.page for listing in listings}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_name(f"{self._file.name}.{os.getpid()}.part")
        part.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        part.replace(self._file)

    def _known(self) -> dict[str, str]:
        try:
            said = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}


def _file(repo: str, sibling: Any, commit: str) -> File:
    lfs = sibling.lfs
    size = int((lfs.size if lfs else sibling.size) or 0)
    cached = try_to_load_from_cache(repo, sibling.rfilename, revision=commit)
    here = isinstance(cached, str) and (not size or Path(cached).stat().st_size == size)
    return File(repo, sibling.rfilename, size, lfs.sha256 if lfs else "", here)


def _licence(info: Any) -> str:
    card = info.card_data.to_dict() if info.card_data else {}
    tagged = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), "")
    return str(card.get("license_name") or card.get("license") or tagged)
