"""A Galaxy server of the v3 API over a folder of collections that ansible-galaxy built."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

GALAXY = Path(sys.executable).with_name("ansible-galaxy")
_INDEX = "/api/v3/plugin/ansible/content/published/collections/index/"


def build_collection(folder: Path, name: str, version: str, **dependencies: str) -> Path:
    """A real collection archive. Dependencies are given as ``namespace__name="range"``."""
    namespace, _dot, short = name.partition(".")
    tree = folder / "trees" / f"{name}-{version}"
    (tree / "roles" / "hello" / "tasks").mkdir(parents=True)
    (tree / "roles" / "hello" / "tasks" / "main.yml").write_text(
        "---\n- name: Say hello\n  ansible.builtin.debug:\n    msg: hello\n"
    )
    (tree / "README.md").write_text(f"# {name}\n")
    needs = {key.replace("__", "."): value for key, value in dependencies.items()}
    (tree / "galaxy.yml").write_text(
        json.dumps(
            {
                "namespace": namespace, "name": short, "version": version, "readme": "README.md",
                "authors": ["Nobody"], "license": ["GPL-3.0-or-later"], "dependencies": needs,
                "description": f"the collection {name}",
            }
        )
    )  # fmt: skip
    shelf = folder / "shelf"
    done = subprocess.run(
        [GALAXY, "collection", "build", "--output-path", str(shelf), str(tree)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return shelf / f"{namespace}-{short}-{version}.tar.gz"


def build_role(path: Path) -> Path:
    """A role's archive, in the form of a forge's: one folder with everything in it."""
    tree = path.parent / "role-tree"
    (tree / "tasks").mkdir(parents=True)
    (tree / "meta").mkdir()
    (tree / "tasks" / "main.yml").write_text("---\n")
    (tree / "meta" / "main.yml").write_text("---\ngalaxy_info:\n  author: nobody\n")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree, arcname="clock-1.0")
    return path


@dataclass
class Galaxy:
    """The server's address, what it was asked for, and lies it is to tell (path → digest)."""

    uri: str
    asked: list[str]
    lies: dict[str, str]


@contextmanager
def galaxy(shelf: Path) -> Iterator[Galaxy]:
    """Serve every collection on the shelf, and any other file there as it is."""
    state = Galaxy("", [], {})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            state.asked.append(path)
            if path.startswith("/files/"):
                return self._send((shelf / path.removeprefix("/files/")).read_bytes())
            if path.rstrip("/") == "/api":
                return self._json({"available_versions": {"v3": "v3/"}})
            if path.startswith("/api/v3/collections/"):  # as galaxy.ansible.com does
                self.send_response(302)
                self.send_header("Location", path.replace("/api/v3/collections/", _INDEX))
                self.end_headers()
                return None
            if not path.startswith(_INDEX):
                return self.send_error(404)
            parts = path.removeprefix(_INDEX).strip("/").split("/")
            namespace, name = parts[:2]
            versions = sorted(f.name[:-7].rpartition("-")[2]
                              for f in shelf.glob(f"{namespace}-{name}-*.tar.gz"))  # fmt: skip
            if len(parts) == 4 and parts[3] in versions:
                return self._json(self._version(namespace, name, parts[3]))
            if versions and len(parts) == 3:
                data = [{"version": version} for version in versions]
                return self._json({"meta": {"count": 1}, "links": {"next": None}, "data": data})
            if versions:
                return self._json({"namespace": namespace, "name": name, "updated_at": "now"})
            self.send_error(404)
            return None

        def _version(self, namespace: str, name: str, version: str) -> dict[str, Any]:
            file = shelf / f"{namespace}-{name}-{version}.tar.gz"
            data = file.read_bytes()
            with tarfile.open(file) as archive:
                manifest = archive.extractfile("MANIFEST.json")
                assert manifest is not None
                info = json.load(manifest)["collection_info"]
            digest = hashlib.sha256(data).hexdigest()
            return {
                "namespace": {"name": namespace}, "collection": {"name": name}, "name": name,
                "version": version, "href": self.path, "download_url": f"/files/{file.name}",
                "artifact": {"filename": file.name, "size": len(data),
                             "sha256": state.lies.get(file.name, digest)},
                "metadata": {"dependencies": info["dependencies"]}, "signatures": [],
            }  # fmt: skip

        def _json(self, value: Any) -> None:
            self._send(json.dumps(value).encode(), "application/json")

        def _send(self, data: bytes, kind: str = "application/octet-stream") -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.uri = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
