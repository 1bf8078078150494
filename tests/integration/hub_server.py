"""A server on 127.0.0.1 that speaks the hub's HTTP API, and misbehaves on request.

Files over 1 KiB are kept "by LFS": listed with their SHA-256 and given out by a redirect to a
content network's path, as the hub does; the others have a git object id. ``Hub.faults`` makes the
next answers for a path go wrong. ``Hub.seen`` lists what was asked for: (method, path, token).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 1024
PAGE = 2  # entries of a tree's page: small, so that every listing has several


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """Commits (newest last) of one repository, each a map of path → bytes."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        names = repr(sorted((path, git_oid(data)) for path, data in files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Hub:
    """The server. ``faults`` maps a file's path to what goes wrong next, in turn."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}  # plain addresses, for the url source
        self.faults: dict[str, list[str]] = {}
        self.seen: list[tuple[str, str, str]] = []
        self.ranges: list[str] = []
        self.token = ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}"  # another host, as the hub's is

    def repo(self, name: str) -> Repo:
        return self.repos.setdefault(name, Repo(name))

    def next_fault(self, path: str) -> str:
        faults = self.faults.get(path, [])
        return faults.pop(0) if faults else ""

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            split = urlsplit(self.path)
            path = unquote(split.path)
            authorization = self.headers.get("Authorization", "")
            hub.seen.append((self.command, path, authorization))
            guarded = hub.token and not path.startswith("/cdn/")
            if guarded and authorization != f"Bearer {hub.token}":
                self.send(401, b"Invalid credentials", {"X-Error-Message": "no"})
                return
            if path.startswith("/api/models/"):
                self.api(path.removeprefix("/api/models/"), split.query)
            elif path.startswith("/cdn/"):
                self.blob(hub.files[path], path, {})
            elif "/resolve/" in path:
                self.resolve(path)
            elif path in hub.files:
                self.blob(hub.files[path], path, {})
            else:
                self.send(404, b"Not found", {"X-Error-Code": "EntryNotFound"})

        def api(self, path: str, query: str) -> None:
            owner, name, what, revision = path.split("/", 3)
            repo = hub.repos.get(f"{owner}/{name}")
            commit = repo.resolve(revision) if repo else None
            if repo is None or commit is None:
                code = "RevisionNotFound" if repo else "RepoNotFound"
                self.send(404, b'{"error": "not here"}', {"X-Error-Code": code})
                return
            files = repo.commits[commit]
            if what == "revision":
                value: Any = {
                    "_id": "1", "id": repo.name, "modelId": repo.name, "sha": commit,
                    "private": False, "gated": False, "tags": [], "downloads": 0,
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                }  # fmt: skip
                self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
                return
            entries = [_entry(path, files[path]) for path in sorted(files)]
            folders = {path.rpartition("/")[0] for path in files if "/" in path}
            entries += [
                {"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in folders
            ]
            start = int(parse_qs(query).get("cursor", ["0"])[0])
            headers = {"Content-Type": "application/json"}
            if start + PAGE < len(entries):
                next_page = (
                    f"{hub.url}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
                )
                headers["Link"] = f'<{next_page}>; rel="next"'
            self.send(200, json.dumps(entries[start : start + PAGE]).encode(), headers)

        def resolve(self, path: str) -> None:
            owner, name, _resolve, rest = path.removeprefix("/").split("/", 3)
            revision, _slash, file = rest.partition("/")
            repo = hub.repos[f"{owner}/{name}"]
            commit = repo.resolve(revision)
            if commit is None or file not in repo.commits[commit]:
                self.send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
                return
            data = repo.commits[commit][file]
            headers = {"X-Repo-Commit": commit}
            if len(data) < LFS_FROM:
                self.blob(data, file, {**headers, "ETag": f'"{git_oid(data)}"'})
                return
            sha256 = hashlib.sha256(data).hexdigest()
            hub.files[f"/cdn/{sha256}"] = data
            hub.faults[f"/cdn/{sha256}"] = hub.faults.setdefault(file, [])
            headers |= {
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{hub.cdn}/cdn/{sha256}?Signature=SECRET&Expires=1",
            }
            self.send(302, b"Found. Redirecting", headers)

        def blob(self, data: bytes, path: str, headers: dict[str, str]) -> None:
            fault = hub.next_fault(path) if self.command == "GET" else ""
            start = 0
            wanted = self.headers.get("Range", "")
            if wanted:
                hub.ranges.append(wanted)
            if fault == "no-ranges":
                wanted, fault = "", ""
            if fault == "busy":
                self.send(503, b"", {"Retry-After": "0"})
                return
            if fault.startswith("to:"):
                self.send(302, b"", {"Location": fault.removeprefix("to:")})
                return
            if fault == "other":
                data = bytes(len(data))
            if fault == "longer":
                data += b"!"
            if wanted:
                first, _dash, last = wanted.removeprefix("bytes=").partition("-")
                start = int(first)
                if start >= len(data):
                    self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                    return
                end = min(int(last) if last else len(data) - 1, len(data) - 1)
                headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
                data = data[: end + 1]
            if fault == "endless":
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                self.wfile.write(data + bytes(4096))
                return
            if fault == "cut":
                self.send_response(206 if wanted else 200)
                for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data[start : start + (len(data) - start) // 2])
                self.close_connection = True
                return
            self.send(206 if wanted else 200, data[start:], {**headers, "Accept-Ranges": "bytes"})

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _entry(path: str, data: bytes) -> dict[str, Any]:
    if len(data) < LFS_FROM:
        return {"type": "file", "oid": git_oid(data), "size": len(data), "path": path}
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
    return {
        "type": "file",
        "oid": git_oid(pointer.encode()),
        "size": len(data),
        "lfs": {"oid": sha256, "size": len(data), "pointerSize": len(pointer)},
        "path": path,
    }
