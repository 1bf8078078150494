"""A small Debian archive made with dpkg-deb and gpg, and a web server that gives out a folder."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2020 Somebody
License: GPL-2+
 On Debian systems the full text is in /usr/share/common-licenses.

Files: debian/*
License: Expat
"""


class Handler(SimpleHTTPRequestHandler):
    """Static files, and a record of what was asked for."""

    def __init__(self, *arguments: Any, asked: list[str], **keywords: Any) -> None:
        self.asked = asked
        super().__init__(*arguments, **keywords)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        self.asked.append(self.path)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a server on loopback, and the paths it was asked for."""
    asked: list[str] = []
    handler = partial(Handler, asked=asked, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Gpg:
    """A real GnuPG key."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        self.home = home
        self.run("--passphrase", "", "--quick-generate-key", "archive@example.invalid", "ed25519",
                 "sign", "never")  # fmt: skip

    def run(self, *arguments: str) -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def keyring(self, path: Path) -> Path:
        path.write_bytes(self.run("--export"))
        return path

    def close(self) -> None:
        subprocess.run(
            ["gpgconf", "--homedir", str(self.home), "--kill", "all"],
            check=False,
            capture_output=True,
        )


@dataclass
class Mirror:
    """An archive below ``folder``, suite ``stable``, architecture amd64."""

    folder: Path
    gpg: Gpg
    stanzas: list[str] = field(default_factory=list)

    def add(self, name: str, version: str, architecture: str = "amd64", **fields: str) -> Path:
        """Build a package with dpkg-deb. Fields are given with ``_`` for ``-``."""
        tree = self.folder.parent / "trees" / f"{name}-{version.replace(':', '-')}"
        (tree / "DEBIAN").mkdir(parents=True)
        lines = {
            "Package": name,
            "Version": version,
            "Architecture": architecture,
            "Maintainer": "Nobody <nobody@example.invalid>",
            **{field.replace("_", "-"): value for field, value in fields.items()},
            "Description": f"the package {name}\n Of many words.",
        }
        control = "".join(f"{key}: {value}\n" for key, value in lines.items())
        (tree / "DEBIAN" / "control").write_text(control)
        documents = tree / "usr/share/doc" / name
        documents.mkdir(parents=True)
        (documents / "copyright").write_text(COPYRIGHT)
        pool = self.folder / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        path = pool / f"{name}_{version.partition(':')[2] or version}_{architecture}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(path)],
            check=True,
            capture_output=True,
        )
        data = path.read_bytes()
        self.stanzas.append(
            f"{control}Filename: pool/{path.name}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
        return path

    def publish(self, valid_until: int | None = None, signer: Gpg | None = None) -> None:
        """Write the index and sign the Release."""
        index = "\n".join(self.stanzas).encode()
        packages = self.folder / "dists/stable/main/binary-amd64/Packages"
        packages.parent.mkdir(parents=True, exist_ok=True)
        packages.write_bytes(index)
        expiry = f"Valid-Until: {formatdate(valid_until, usegmt=True)}\n" if valid_until else ""
        release = self.folder / "dists/stable/Release"
        release.write_text(
            "Origin: Test\nSuite: stable\nCodename: stable\n"
            f"Date: {formatdate(1_600_000_000, usegmt=True)}\n{expiry}"
            "Architectures: amd64\nComponents: main\nSHA256:\n"
            f" {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-amd64/Packages\n"
        )
        (signer or self.gpg).run(
            "--yes", "--output", str(release.with_name("InRelease")), "--clear-sign", str(release)
        )
        release.unlink()
