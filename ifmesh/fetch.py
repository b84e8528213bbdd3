"""A file from an http(s) URL: fetched by the client, never by the mesh; no longer, larger or farther than is sensible."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPMessage
from typing import IO, Final

from ifmesh.errors import BadRequest
from ifmesh.geometry import FILE_BYTES

SECONDS = 30.0  # for all of it: names, connections, redirects, bytes
GRACE = 0.5  # seconds more, in which the thread may say itself that it is late
SILENCE = 10.0  # seconds without a byte
REDIRECTS: Final = 5
SCHEMES: Final = ("http://", "https://")
ONLY: Final = "only http and https are fetched; give a path to read a file"
TOO_LARGE: Final = f"at most {FILE_BYTES} bytes ({FILE_BYTES >> 20} MiB): load it down yourself and make it smaller"


def fetch(url: str, field: str) -> bytes:
    """What the URL gives, at most 16 MiB.  Raises BadRequest(field, url, what went wrong), after 30 s at the latest."""
    got: list[bytes] = []
    wrong: list[str] = []
    until = time.monotonic() + SECONDS

    def work() -> None:
        try:
            got.append(_read(url, until))
        except Exception as error:  # the door to a foreign server: urllib raises whatever it likes
            wrong.append(_told(error))

    # A thread of its own: looking up a name, or a server that sends a header byte by byte, knows no time limit.
    thread = threading.Thread(target=work, name="fetch", daemon=True)
    thread.start()
    thread.join(SECONDS + GRACE)
    if got:
        return got[0]
    raise BadRequest(field, url, wrong[0] if wrong else _late())


class _Refused(Exception):
    """The text is the remedy."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib's own follows ten, and to ftp."""

    max_redirections = max_repeats = REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.lower().startswith(SCHEMES):
            raise urllib.error.HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(url: str, until: float) -> bytes:
    if not url.lower().startswith(SCHEMES):
        raise _Refused(ONLY)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),  # as the environment says
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):  # and none for files, ftp and data
        opener.add_handler(handler)
    asked = urllib.request.Request(url, headers={"User-Agent": "ifmesh", "Accept": "image/png, image/jpeg, image/webp"})
    with opener.open(asked, timeout=min(SILENCE, SECONDS)) as answer:
        data = bytearray()
        while chunk := answer.read1(1 << 16):
            data += chunk
            if len(data) > FILE_BYTES:
                raise _Refused(TOO_LARGE)
            if time.monotonic() > until:
                raise TimeoutError
    return bytes(data)


def _late() -> str:
    return f"no picture within {SECONDS:g} s, or not a byte for {SILENCE:g} s: fetch it yourself, and give the file"


def _told(error: Exception) -> str:
    match error:
        case _Refused():
            return str(error)
        case urllib.error.HTTPError():
            with error:  # it is the answer, too
                if "infinite loop" in str(error.msg):
                    return f"redirects more than {REDIRECTS} times: give the address where it ends"
                if 300 <= error.code < 400:
                    return f"redirects to {error.headers.get('Location', 'nowhere')[:80]}: {ONLY}"
                return f"the server answers {error.code} {error.msg}: check the address"[:200]
        case urllib.error.URLError(reason=TimeoutError()) | TimeoutError():
            return _late()
        case urllib.error.URLError():
            return f"cannot be fetched ({error.reason}): check the address"[:200]
        case _:
            return f"cannot be fetched ({type(error).__name__}): check the address"
