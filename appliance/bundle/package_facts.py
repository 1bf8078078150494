"""What packages say about themselves, for the bill of materials: .deb files and collections.

facts = deb_facts(path, "bookworm")      # name, version, architecture, licences, package URL
facts = collection_facts(path)           # the same, and what it depends on
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from packageurl import PackageURL

_CAP = 8 << 20  # bytes of one text that is read from an archive


@dataclass(frozen=True)
class DebFacts:
    """A Debian package.

    ``licences`` are the short names of a machine-readable ``debian/copyright`` (DEP 5), empty if it
    is prose; ``copyright`` is that file, "" if the package has none of its own.
    """

    name: str
    version: str
    architecture: str
    summary: str
    licences: tuple[str, ...]
    copyright: str
    purl: PackageURL


@dataclass(frozen=True)
class CollectionFacts:
    """An Ansible collection: ``name`` is ``namespace.name``, ``dependencies`` name → range.

    ``licences`` are SPDX expressions as its publisher wrote them. The package URL is ``generic``:
    the registered types have none for Ansible.
    """

    name: str
    version: str
    summary: str
    licences: tuple[str, ...]
    dependencies: Mapping[str, str]
    purl: PackageURL


def deb_facts(path: Path, release: str = "", distribution: str = "debian") -> DebFacts:
    """Read a .deb with ``dpkg-deb``. Raises ``ValueError`` if that cannot, saying why.

    ``release`` ("bookworm") becomes the package URL's ``distro``.
    """
    fields = {
        name: _dpkg_deb("--field", str(path), name).strip()
        for name in ("Package", "Version", "Architecture", "Description")
    }
    name = fields["Package"]
    text = _copyright(path, name)
    qualifiers = {"arch": fields["Architecture"]} | ({"distro": release} if release else {})
    return DebFacts(
        name,
        fields["Version"],
        fields["Architecture"],
        fields["Description"].partition("\n")[0],
        licences_of(text),
        text,
        PackageURL("deb", distribution, name, fields["Version"], qualifiers),
    )


def licences_of(copyright_text: str) -> tuple[str, ...]:
    """The licence short names of a ``debian/copyright`` in the form of DEP 5, sorted."""
    head = copyright_text.lstrip("\ufeff\n")[:400]
    if not re.match(r"Format(?:-Specification)?:\s*\S*copyright-format", head, re.IGNORECASE):
        return ()
    found = re.findall(r"^License:[ \t]*(\S[^\n]*)$", copyright_text, re.MULTILINE | re.IGNORECASE)
    return tuple(sorted({name.strip() for name in found}))


def collection_facts(path: Path) -> CollectionFacts:
    """Read a collection's ``MANIFEST.json``. Raises ``ValueError``, saying what is wrong."""
    try:
        with open_archive(path) as archive:
            document = json.loads(_text(archive, "MANIFEST.json"))
        info: Any = document["collection_info"]
        name, version = f"{info['namespace']}.{info['name']}", info["version"]
        dependencies = info.get("dependencies") or {}
        licences = info.get("license") or []
        if isinstance(licences, str):
            licences = [licences]
        texts = [name, version, *licences, *dependencies, *dependencies.values()]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("its MANIFEST.json has values of other types than text")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its MANIFEST.json does not describe a collection") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    return CollectionFacts(
        name,
        version,
        str(info.get("description") or ""),
        tuple(licences),
        dict(dependencies),
        PackageURL("generic", info["namespace"], info["name"], version),
    )


class _Bounded(gzip.GzipFile):
    """tarfile reads a name or a pax header at once, however large it says it is."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _CAP:
            raise ValueError(f"one of its headers has {size} bytes")
        return super().read(size)


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """A ``.tar.gz`` that cannot fill the memory. Reading raises ``ValueError`` where it would."""
    with _Bounded(path) as file, tarfile.open(fileobj=file) as archive:
        yield archive


def _text(archive: tarfile.TarFile, wanted: str) -> bytes:
    for member in archive:
        if member.name.removeprefix("./") == wanted and member.isreg():
            return _read(archive, member)
    raise ValueError(f"it has no {wanted}")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _CAP:
        raise ValueError(f"its {member.name} has {member.size} bytes")
    file: IO[bytes] | None = archive.extractfile(member)
    assert file is not None
    return file.read(_CAP)


def _copyright(path: Path, name: str) -> str:
    """The package's copyright file, read as its contents stream by; "" if there is none."""
    wanted = f"usr/share/doc/{name}/copyright"
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                return _text(archive, wanted).decode(errors="replace")
        except (tarfile.TarError, ValueError):
            return ""
        finally:
            process.kill()


def _dpkg_deb(*arguments: str) -> str:
    done = subprocess.run(["dpkg-deb", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip() or f"dpkg-deb ended with {done.returncode}")
    return done.stdout
