"""The hub as its client sees it, on this machine: repositories by name, some of them behind a licence, and some moods.

Started as a program it serves until its stdin ends: `python -m tests.services.hub FOLDER`, which holds OWNER/NAME folders; a repository
with a file named GATED answers only those whose token is in it; one with a file LICENCE says so.  It prints its address, and then one
line for each file it hands out, with @N when it begins at byte N.  Safetensors are large files, known by their SHA-256 and handed out by
another server, which must see no token.  FOLDER/moods.json says by a file's path what is wrong with it, see `Mood`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0" * 40


@dataclass(frozen=True, slots=True)
class Mood:
    """Of one file.  status: of every answer.  cut: bytes after which the connection ends; pause: seconds that it stays open before.

    forgets: it knows no Range; refuses: it answers one with 416; wrong: other bytes; size: as it says it is.
    """

    status: int = 200
    cut: int = 0
    pause: float = 0.0
    forgets: bool = False
    refuses: bool = False
    wrong: bool = False
    size: int = 0


class Handler(BaseHTTPRequestHandler):
    folder: Path
    large: str  # where large files are
    alone = False  # this is that place

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        name, _, rest = ("/".join(path.split("/")[2:4]), "", "") if path.startswith("api/models/") else path.partition("/resolve/")
        repo = self.folder / name
        if not repo.is_dir():
            return self._refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        gate = repo / "GATED"
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.alone:
            assert not token, "a token on its way to a stranger"
            return self._send(repo, repo / rest.partition("/")[2], body)
        listing = path.startswith("api/models/")
        if token == "unknown":
            return self._refuse(401, "")
        if gate.exists() and not listing and token not in gate.read_text().split():
            return self._refuse(403 if token else 401, "GatedRepo")
        if listing:
            return self._list(name, repo, gate, "/tree/" in path)
        file = repo / rest.partition("/")[2]
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        if file.suffix == ".safetensors":
            return self._refuse(302, "", {"Location": f"{self.large}{self.path}", **self._about(repo, file)})
        return self._send(repo, file, body)

    def _list(self, name: str, repo: Path, gate: Path, tree: bool) -> None:
        files = sorted(file for file in repo.rglob("*") if file.is_file() and file.name not in ("GATED", "LICENCE"))
        licence = repo / "LICENCE"
        said: Any = {"id": name, "sha": COMMIT, "private": False, "gated": "auto" if gate.exists() else False}
        said["tags"] = [f"license:{licence.read_text()}"] if licence.exists() else []
        said["siblings"] = [self._sibling(repo, file) for file in files]
        if tree:
            said = [
                {"type": "file", "path": str(file.relative_to(repo)), "size": file.stat().st_size, "oid": _etag(file)} for file in files
            ]
        data = json.dumps(said).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)

    def _sibling(self, repo: Path, file: Path) -> dict[str, Any]:
        size = self._mood(repo, file).size or file.stat().st_size
        made = {"rfilename": str(file.relative_to(repo)), "size": size, "blobId": COMMIT}
        if file.suffix == ".safetensors":
            made["lfs"] = {"size": size, "sha256": _etag(file), "pointerSize": 100}
        return made

    def _mood(self, repo: Path, file: Path) -> Mood:
        moods = self.folder / "moods.json"
        said = json.loads(moods.read_text()) if moods.exists() else {}
        return Mood(**said.get(str(file.relative_to(repo)), {}))

    def _about(self, repo: Path, file: Path) -> dict[str, str]:
        size = self._mood(repo, file).size or file.stat().st_size
        return {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{_etag(file)}"', "X-Linked-Size": str(size)}

    def _send(self, repo: Path, file: Path, body: bool) -> None:
        """The file, or what is asked for of it."""
        mood, data = self._mood(repo, file), file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(wanted[1]) if wanted and not mood.forgets else 0
        if body:
            print(f"{file.relative_to(self.folder)}{f'@{begin}' if begin else ''}", flush=True)
        if begin >= len(data) > 0 or (begin and mood.refuses):
            self._refuse(416, "")
            return
        if mood.status != 200:
            self._refuse(mood.status, "")
            return
        data = data[::-1] if mood.wrong else data
        data = data[begin:]
        about = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data)), "ETag": f'"{_etag(file)}"'}
        self._head(206 if begin else 200, {**about, **self._about(repo, file)})
        if body:
            self.wfile.write(data[: mood.cut] if mood.cut else data)
            self.wfile.flush()
            time.sleep(mood.pause)
        self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _refuse(self, status: int, code: str, more: dict[str, str] | None = None) -> None:
        self._head(status, {**({"X-Error-Code": code} if code else {}), "Content-Length": "0", **(more or {})})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _etag(file: Path) -> str:
    data = file.read_bytes()
    return hashlib.sha256(data).hexdigest() if file.suffix == ".safetensors" else hashlib.sha1(data).hexdigest()


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(folder: Path) -> None:
    made: list[str] = []
    for alone in (True, False):
        kind = type("Served", (Handler,), {"folder": folder, "alone": alone, "large": made[0] if made else ""})
        server = Server(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.append(f"http://{'localhost' if alone else '127.0.0.1'}:{server.server_address[1]}")
    print(made[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
