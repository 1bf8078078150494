"""An apt repository's text files, from the control data of its packages. Nothing here does I/O.

    dists/<release>/Release, InRelease, Release.gpg
    dists/<release>/main/binary-<architecture>/Packages
    pool/<package>_<version>_<architecture>.deb
    sovctl-archive.asc          the public key
    sovctl.sources              for /etc/apt/sources.list.d

``Packages`` is not compressed: what zlib and liblzma write changes with their versions, and one
set of packages is to have one sequence of bytes. deb-control(5) and Debian's repository format
(wiki.debian.org/DebianRepository/Format) are the reference.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate

KEY_FILE = "sovctl-archive.asc"
SOURCES_FILE = "sovctl.sources"
ASSUMED_FILE = "assumed-packages"
COMPONENT = "main"

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"(?:\d+:)?[0-9][A-Za-z0-9.+~-]*")
# The index says these about a file; a package that says them about itself is not believed.
_OURS = frozenset({"filename", "size", "md5sum", "sha1", "sha256", "sha512", "status"})


@dataclass(frozen=True, slots=True)
class Control:
    """A package's control data: ``text`` as the package has it, and what names the package."""

    name: str
    version: str
    architecture: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Control:
        """From ``dpkg-deb --field``. Raises ``ValueError``, saying what is wrong."""
        kept: list[str] = []
        fields: dict[str, str] = {}
        keep = True
        if any(char < " " and char not in "\t\n" for char in text):
            raise ValueError("its control data has a control character")
        for line in text.rstrip("\n").split("\n"):
            if not line.strip():  # it would end the stanza in the index
                raise ValueError("its control data has an empty line")
            if line[:1] not in {" ", "\t"}:
                field, colon, value = line.partition(":")
                if not colon or not field or field.lower() in fields:
                    raise ValueError(f"its control data has the line {line[:60]!r}")
                fields[field.lower()] = value.strip()
                keep = field.lower() not in _OURS
            elif not fields:
                raise ValueError("its control data starts in the middle")
            if keep:
                kept.append(line)
        name, version, architecture = (
            fields.get(field, "") for field in ("package", "version", "architecture")
        )
        for what, value, pattern in (
            ("package name", name, _NAME),
            ("version", version, _VERSION),
            ("architecture", architecture, _NAME),
        ):
            if not pattern.fullmatch(value):
                raise ValueError(f"its control data has the {what} {value!r}")
        return cls(name, version, architecture, "\n".join(kept))

    @property
    def path(self) -> str:
        """Where the package is in the repository (the epoch is not part of a file's name)."""
        version = self.version.partition(":")[2] or self.version
        return f"pool/{self.name}_{version}_{self.architecture}.deb"


@dataclass(frozen=True, slots=True)
class Entry:
    """A package in the repository. ``size`` in bytes."""

    control: Control
    sha256: str
    size: int


def packages_index(entries: Iterable[Entry]) -> str:
    """``Packages``: a stanza for each package, sorted. Raises ``ValueError`` on a double."""
    stanzas: dict[str, str] = {}
    for entry in entries:
        control = entry.control
        if control.path in stanzas:
            raise ValueError(f"{control.name} {control.version} is there twice")
        stanzas[control.path] = (
            f"{control.text}\nFilename: {control.path}\nSize: {entry.size}\n"
            f"SHA256: {entry.sha256}\n"
        )
    return "\n".join(stanzas[path] for path in sorted(stanzas))


def pool_of(index: str) -> dict[str, str]:
    """Of an index that :func:`packages_index` wrote: SHA-256 → path."""
    paths = re.findall(r"^Filename: (\S+)$", index, re.MULTILINE)
    digests = re.findall(r"^SHA256: ([0-9a-f]{64})$", index, re.MULTILINE)
    return dict(zip(digests, paths, strict=True))


def release_file(label: str, release: str, architecture: str, at: int, index: str) -> bytes:
    """``Release``, dated ``at`` (seconds since 1970).

    It has no ``Valid-Until``: how long a bundle may be used is what its TUF metadata says.
    """
    data = index.encode()
    return (
        f"Origin: sovctl\nLabel: {label}\nSuite: {release}\nCodename: {release}\n"
        f"Date: {formatdate(at, usegmt=True).replace('GMT', 'UTC')}\n"
        f"Architectures: {architecture}\nComponents: {COMPONENT}\nAcquire-By-Hash: no\n"
        f"SHA256:\n {hashlib.sha256(data).hexdigest()} {len(data)} "
        f"{COMPONENT}/binary-{architecture}/Packages\n"
    ).encode()


def sources_file(location: str, release: str, architecture: str, certificate: bytes) -> str:
    """``sovctl.sources`` (deb822) for a repository at ``location``, with its key in it."""
    key = "".join(f" {line or '.'}\n" for line in certificate.decode().splitlines())
    return (
        "# An offline repository. Only what the key below has signed is taken from it.\n"
        f"Types: deb\nURIs: file:{location}\nSuites: {release}\nComponents: {COMPONENT}\n"
        f"Architectures: {architecture}\nSigned-By:\n{key}"
    )


def installed(stanzas: Iterable[str]) -> bytes:
    """A dpkg status file in which the packages of these index entries are installed."""
    return "".join(f"{stanza}\nStatus: install ok installed\n\n" for stanza in stanzas).encode()


def assumed_file(assumed: Mapping[str, str]) -> str:
    """``assumed-packages``: ``name version`` of what the target is taken to have already."""
    return "".join(f"{name} {assumed[name]}\n" for name in sorted(assumed))
