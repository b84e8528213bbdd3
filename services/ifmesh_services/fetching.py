"""One file of the hub into the hub's own cache: what is there of it is not fetched again, and what is not as promised is not kept.

The hub's client begins a file anew when its process was interrupted; of 11 GB that is too much.  So the bytes are ours (with Range, into
blobs/ETAG.incomplete), and all else is the client's: sessions, login, mirror, names and links in its cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, logging
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from ifmesh.errors import Lost, MeshError

from .bars import no_bars
from .pull import File, told

PARTIAL, UNSATISFIABLE = 206, 416  # of HTTP
Tell = Callable[[int], None]
"""Told how many bytes of the file are here."""


def fetch(file: File, tell: Tell) -> Path:
    """The file's place in the cache.  Misconfigured, Lost: the hub does not give it.  MeshError: what it gives is not what it promises."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would tell of every new attempt, on the line of the bar
    with no_bars(), told(file.repo):
        _stored(file, tell)
        return Path(hf_hub_download(file.repo, file.path))


def _stored(file: File, tell: Tell) -> None:
    url = hf_hub_url(file.repo, file.path)
    promised = get_hf_file_metadata(url)
    etag, size = promised.etag or "", promised.size if promised.size is not None else file.size
    if not re.fullmatch(r"[\w-][\w.-]*", etag):
        raise MeshError(f"{file.repo}/{file.path}: {constants.ENDPOINT} gives no ETag, so it is no hub that can be pulled from")
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    blob, part = blobs / etag, blobs / f"{etag}.incomplete"
    if blob.exists() and blob.stat().st_size != size:
        blob.unlink()  # somebody else's interrupted copy
    with open(part, "ab", buffering=0) as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)  # another pull is at it: wait for it
        if blob.exists():
            part.unlink(missing_ok=True)
            return
        digest = file.sha256 or (etag if re.fullmatch("[0-9a-f]{64}", etag) else "")
        for again in (False, True):
            _filled(opened, url, size, tell)
            if not digest or _digest(part) == digest:
                break
            opened.truncate(0)  # the bytes of an older file, or damaged on the way
            if again:
                raise MeshError(f"{file.repo}/{file.path}: twice not the bytes that the hub promises (sha256 {digest[:12]}...): not kept")
        part.rename(blob)


def _filled(opened: BinaryIO, url: str, size: int, tell: Tell) -> None:
    """Append what is missing.  HTTPError, Lost: it breaks off without a byte of progress."""
    while True:
        if (begun := opened.seek(0, 2)) > size:
            begun = opened.truncate(0)
        tell(begun)
        if begun == size:
            return
        try:
            _stream(opened, url, begun, tell)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != UNSATISFIABLE or not begun:
                raise
            opened.truncate(0)  # what we have is not a beginning of what it has
        except HTTPError:
            if opened.seek(0, 2) <= begun:
                raise
        else:
            if opened.seek(0, 2) <= begun < size:
                raise Lost(f"{url}: ends after {begun} of {size} bytes; the same command goes on where it was")


def _stream(opened: BinaryIO, url: str, begun: int, tell: Tell) -> None:
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if begun and response.status_code != PARTIAL:  # it knows no Range: this is the whole
            begun = opened.truncate(0)
        for chunk in response.iter_bytes():  # as they come: a rest that fills no chunk is not lost
            opened.write(chunk)
            begun += len(chunk)
            tell(begun)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
