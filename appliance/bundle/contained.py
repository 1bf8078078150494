"""The components inside an artefact that is a collection of them: wheels, .deb files, collections.

    for part in parts_of(artefact, where): …      # one for each file that is a component

What a wheel says is in its METADATA (:mod:`appliance.bundle.licences`), what a collection says in
its ``MANIFEST.json``; a file that says nothing is listed by its name. Nothing is unpacked.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packageurl import PackageURL

from appliance.bundle.licences import Licence, licence_named, licence_of_debian, read_wheel
from appliance.bundle.package_facts import deb_facts
from appliance.manifests.bundle import Artefact, BlobRef

_MANIFEST = 1 << 20  # bytes of a collection's MANIFEST.json that are read
_MEMBERS = 64  # members of a collection that are looked at to find it


@dataclass(frozen=True)
class Part:
    """One component: what it is, its terms, and the file of the artefact that it is.

    ``kind`` is ``wheel``, ``deb`` or ``collection``.
    """

    kind: str
    file: BlobRef
    name: str
    version: str
    licence: Licence
    purl: PackageURL
    summary: str = ""
    supplier: str = ""
    licence_files: tuple[str, ...] = ()


def parts_of(artefact: Artefact, where: Mapping[str, Path]) -> Iterator[Part]:
    """The components in an artefact, in its files' order; none if it is not made of components.

    ``where`` maps ``sha256:<hex>`` to the file that holds it. Raises ``ValueError`` for a wheel
    without metadata.
    """
    if artefact.kind not in _READERS:
        return
    suffix, read = _READERS[artefact.kind]
    for file in artefact.files:
        if file.path.endswith(suffix):
            yield read(file, where[file.digest])


def _wheel(file: BlobRef, at: Path) -> Part:
    facts = read_wheel(at)
    name = facts.name.lower().replace("_", "-")
    return Part(
        "wheel", file, facts.name, facts.version, facts.licence,
        PackageURL("pypi", name=name, version=facts.version),
        facts.summary, facts.supplier, facts.licence_files,
    )  # fmt: skip


def _deb(file: BlobRef, at: Path) -> Part:
    """By its control data, or by its name where ``dpkg-deb`` is not here or cannot read it.

    The name is ``<package>_<version>_<architecture>.deb``, with ``%3a`` for a colon.
    """
    try:
        facts = deb_facts(at)
    except ValueError:
        return _deb_by_name(file)
    return Part(
        "deb", file, facts.name, facts.version, licence_of_debian(facts.licences), facts.purl,
        facts.summary,
    )  # fmt: skip


def _deb_by_name(file: BlobRef) -> Part:
    stem = file.path.rpartition("/")[2].removesuffix(".deb")
    package, _underscore, rest = stem.partition("_")
    version, _underscore, architecture = rest.partition("_")
    version = version.replace("%3a", ":")
    return Part(
        "deb", file, package, version, Licence("", "not stated"),
        PackageURL("deb", "debian", package, version, {"arch": architecture or "all"}),
    )  # fmt: skip


def _collection(file: BlobRef, at: Path) -> Part:
    """By its MANIFEST.json, or by its name where it has none (a role)."""
    info = _collection_info(at)
    stem = file.path.rpartition("/")[2].removesuffix(".tar.gz")
    namespace, _dash, rest = stem.partition("-")
    name, _dash, version = rest.rpartition("-")
    namespace = str(info.get("namespace") or namespace)
    name, version = str(info.get("name") or name or stem), str(info.get("version") or version)
    stated = info.get("license")
    return Part(
        "collection", file, f"{namespace}.{name}" if namespace != name else name, version,
        licence_named(" AND ".join(map(str, stated if isinstance(stated, list) else []))),
        PackageURL("generic", namespace, name, version),
        str(info.get("description") or "")[:500],
    )  # fmt: skip


def _collection_info(at: Path) -> dict[str, Any]:
    try:
        with tarfile.open(at, "r|gz") as archive:
            for _number, member in zip(range(_MEMBERS), archive, strict=False):
                if member.name.removeprefix("./") == "MANIFEST.json" and member.isfile():
                    content = archive.extractfile(member)
                    tree = json.loads(content.read(_MANIFEST)) if content else {}
                    info = tree.get("collection_info")
                    return info if isinstance(info, dict) else {}
    except (tarfile.TarError, OSError, EOFError, ValueError, AttributeError, RecursionError):
        pass
    return {}


_Reader = Callable[[BlobRef, Path], Part]

_READERS: dict[str, tuple[str, _Reader]] = {
    "wheelhouse": (".whl", _wheel),
    "packages": (".deb", _deb),
    "collections": (".tar.gz", _collection),
}
