"""A Hugging Face hub of one repository, served from a folder on this machine: what downloads are tested against.

It speaks the few requests that huggingface_hub makes to fetch files, with real HTTP, and remembers which files were
asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves `folder` as the repository `repository` at one commit; `fetched` has the files that were downloaded."""

    def __init__(self, repository: str, folder: Path) -> None:
        self.repository = repository
        self.folder = folder
        self.fetched: set[str] = set()
        self.url = ""

    def respond(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        path = handler.path.partition("?")[0]
        api = f"/api/models/{self.repository}"
        revision = path.partition("/revision/")[2]
        if revision and revision not in ("main", COMMIT):
            self._missing(handler, "RevisionNotFound")
        elif path == api or revision:
            files = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            self._json(handler, {"_id": "1", "id": self.repository, "sha": COMMIT, "siblings": files})
        elif path.startswith(f"{api}/tree/"):
            self._json(handler, [self._entry(file) for file in sorted(self.folder.iterdir())])
        elif path.startswith(f"/{self.repository}/resolve/"):
            self._file(handler, path.rpartition("/")[2], with_body)
        else:
            self._missing(handler, "RepoNotFound")

    def _entry(self, file: Path) -> dict[str, object]:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}

    def _json(self, handler: BaseHTTPRequestHandler, value: object) -> None:
        body = json.dumps(value).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _file(self, handler: BaseHTTPRequestHandler, name: str, with_body: bool) -> None:
        file = self.folder / name
        if not file.is_file():
            self._missing(handler, "EntryNotFound")
            return
        content = file.read_bytes()
        handler.send_response(200)
        handler.send_header("ETag", f'"{_etag(file)}"')
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if with_body:
            self.fetched.add(name)
            handler.wfile.write(content)

    def _missing(self, handler: BaseHTTPRequestHandler, code: str) -> None:
        handler.send_response(404)
        handler.send_header("X-Error-Code", code)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serving(repository: str, folder: Path) -> Iterator[HubServer]:
    """A server at `url` for as long as the context lasts."""
    hub = HubServer(repository, folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.respond(self, with_body=True)

        def do_HEAD(self) -> None:
            hub.respond(self, with_body=False)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
