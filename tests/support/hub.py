"""A model and data hub on this machine: what huggingface_hub and datasets ask for, from a folder.

with hub(folder) as url:      # folder/models/<owner>/<name>/..., folder/datasets/<owner>/<name>/...
    launch(..., env={"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": ...})
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789" * 4
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/[^/]+(.*))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Serve `folder` inside the block; yields the URL."""
    handler = type("Handler", (_Handler,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    folder: Path

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlparse(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if (match := _API.fullmatch(path)) and (self.folder / match[1] / match[2]).is_dir():
            repository = self.folder / match[1] / match[2]
            inner = (match[4] or "").strip("/")
            self._send(json.dumps(_about(repository, match[3], inner, query, body)).encode())
        elif match := _FILE.fullmatch(path):
            file = self.folder / ("datasets" if match[1] else "models") / match[2] / match[3]
            if file.is_file():
                self._send(file.read_bytes())
            else:
                self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD = do_POST = _answer

    def _send(self, body: bytes, status: int = 200, headers: dict | None = None) -> None:
        self.send_response(status)
        tag = hashlib.sha1(body).hexdigest()
        own = {"Content-Length": str(len(body)), "ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        for name, value in {**own, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


def _about(repository: Path, what: str | None, inner: str, query: dict, body: bytes):
    if what == "tree":
        deep = query.get("recursive") == ["true"]
        paths = (repository / inner).glob("**/*" if deep else "*")
        return [_entry(repository, path) for path in paths]
    if what == "paths-info":
        asked = parse_qs(body.decode())["paths"]
        return [_entry(repository, repository / path) for path in asked]
    files = [path for path in repository.rglob("*") if path.is_file()]
    return {
        "id": "/".join(repository.parts[-2:]),
        "sha": COMMIT,
        "tags": [],
        "siblings": [{"rfilename": _entry(repository, path)["path"]} for path in files],
    }


def _entry(repository: Path, path: Path) -> dict:
    name = path.relative_to(repository).as_posix()
    oid = hashlib.sha1(name.encode()).hexdigest()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": oid, "size": 0}
    return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}
