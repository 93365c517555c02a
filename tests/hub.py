"""A stand-in for the Hugging Face Hub on this machine: answers as the Hub does, for folders and for what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_let_me_in"


class _Handler(BaseHTTPRequestHandler):
    folders: dict[str, Path]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        if api := re.match(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?", self.path):
            if (refused := self._refused(api[1], api[2] or "main")) is not None:
                return self._send(*refused, b"{}", {}, body)
            if "/tree/" in self.path:  # of further chat templates: none
                return self._send(404, "EntryNotFound", b"{}", {}, body)
            sha = json.dumps({"id": api[1], "modelId": api[1], "sha": COMMIT, "siblings": []}).encode()
            return self._send(200, None, sha, {"Content-Type": "application/json"}, body)
        if not (file := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)):
            return self._send(200, None, b"", {}, body)
        if (refused := self._refused(file[1], file[2])) is not None:
            return self._send(*refused, b"", {}, body)
        path = self.folders[file[1]] / file[3]
        if not path.is_file():
            return self._send(404, "EntryNotFound", b"", {"X-Repo-Commit": COMMIT}, body)
        content = path.read_bytes()
        tag = hashlib.sha1(content).hexdigest()
        return self._send(200, None, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'}, body)

    def _refused(self, name: str, revision: str) -> tuple[int, str] | None:
        allowed = self.headers.get("Authorization") == f"Bearer {SECRET}"
        if name == "owner/gated" and not allowed:
            return 401, "GatedRepo"
        if name not in self.folders:
            return (404 if allowed else 401), "RepoNotFound"
        return None if revision in ("main", COMMIT) else (404, "RevisionNotFound")

    def _send(
        self, status: int, code: str | None, content: bytes, headers: dict[str, str], body: bool
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(folders: dict[str, Path]) -> Iterator[str]:
    """Serve models by id; owner/gated needs a token. Gives the endpoint's address."""
    handler = type("Handler", (_Handler,), {"folders": folders})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
