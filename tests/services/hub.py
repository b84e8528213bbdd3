"""The hub as its client sees it, on this machine: repositories by name, some of them behind a licence.

Started as a program it serves until its stdin ends: `python -m tests.services.hub FOLDER`, which holds OWNER/NAME folders; a repository
with a file named GATED answers only those whose token is in it.  It prints its address, and then one line for each file it hands out.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0" * 40


class Handler(BaseHTTPRequestHandler):
    folder: Path

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
        listing = path.startswith("api/models/")
        if token == "unknown":
            return self._refuse(401, "")
        if gate.exists() and not listing and token not in gate.read_text().split():
            return self._refuse(403 if token else 401, "GatedRepo")
        if listing:
            files = sorted(str(file.relative_to(repo)) for file in repo.rglob("*") if file.is_file() and file != gate)
            said = {"id": name, "sha": COMMIT, "private": False, "siblings": [{"rfilename": file} for file in files]}
            if "/tree/" in path:
                tree = [{"type": "file", "path": file, "size": (repo / file).stat().st_size, "oid": COMMIT} for file in files]
                return self._send(json.dumps(tree).encode(), "application/json", body)
            return self._send(json.dumps(said).encode(), "application/json", body)
        file = repo / rest.partition("/")[2]
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        if body:
            print(f"{name}/{file.relative_to(repo)}", flush=True)
        return self._send(file.read_bytes(), "application/octet-stream", body)

    def _send(self, data: bytes, kind: str, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def serve(folder: Path) -> None:
    made = type("Served", (Handler,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
