"""What changed between two bundles: artefacts, packages, models, licences. Reads fronts only.

    difference = compare(side_of(old), side_of(new))

Packages are the SBOM's components with a package URL. A version that changed is what a
vulnerability scanner is asked about, so both URLs are given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from packageurl import PackageURL
from packaging.version import InvalidVersion, Version

from appliance.errors import BundleTampered
from appliance.manifests.bundle import Artefact, BundleManifest

if TYPE_CHECKING:
    from appliance.bundle.reader import BundleReader

Kind = Literal["added", "removed", "upgraded", "downgraded", "changed"]


@dataclass(frozen=True)
class Package:
    """A package in a bundle; ``purl`` is its package URL, with the version."""

    name: str
    version: str
    purl: str
    licence: str


@dataclass(frozen=True)
class Side:
    """One of the two bundles. ``packages`` by their package URL without version."""

    manifest: BundleManifest
    packages: Mapping[str, tuple[Package, ...]]


@dataclass(frozen=True)
class ArtefactChange:
    """An artefact on one side only, or on both with another digest or version."""

    change: Kind
    kind: str
    name: str
    before: str
    after: str
    bytes_before: int
    bytes_after: int
    files_changed: int


@dataclass(frozen=True)
class PackageChange:
    """A package on one side only, or on both with another version; purls empty where absent."""

    change: Kind
    name: str
    before: str
    after: str
    purl_before: str
    purl_after: str


@dataclass(frozen=True)
class LicenceChange:
    """An artefact or package whose licence is another one."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Difference:
    """All that changed from ``before`` to ``after``; ``new_bytes`` is what a delta would carry."""

    before: str
    after: str
    artefacts: tuple[ArtefactChange, ...]
    packages: tuple[PackageChange, ...]
    licences: tuple[LicenceChange, ...]
    new_bytes: int

    @property
    def models(self) -> tuple[ArtefactChange, ...]:
        """The changes of models."""
        return tuple(change for change in self.artefacts if change.kind == "model")


def side_of(bundle: BundleReader) -> Side:
    """Read one side. Raises :class:`BundleTampered` for an SBOM that is none."""
    try:
        document = json.loads(bundle.sbom)
        return Side(bundle.manifest, packages_of(document))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reason = "it is not a CycloneDX document"
        raise BundleTampered(bundle=bundle.path, member="sbom.cdx.json", reason=reason) from error


def packages_of(document: Mapping[str, Any]) -> dict[str, tuple[Package, ...]]:
    """The components of a CycloneDX document that have a package URL. Raises ``ValueError`` …"""
    found: dict[str, list[Package]] = {}
    for component in document.get("components", []):
        if "purl" not in component or component.get("type") in {"data", "machine-learning-model"}:
            continue
        purl = PackageURL.from_string(component["purl"])
        key = PackageURL(purl.type, purl.namespace, purl.name).to_string()
        package = Package(
            str(component["name"]),
            str(purl.version or component.get("version", "")),
            component["purl"],
            _licence(component),
        )
        found.setdefault(key, []).append(package)
    return {key: tuple(sorted(each, key=lambda p: p.purl)) for key, each in sorted(found.items())}


def _licence(component: Mapping[str, Any]) -> str:
    names = []
    for entry in component.get("licenses", []):
        licence = entry.get("license", {})
        names.append(entry.get("expression") or licence.get("id") or licence.get("name") or "")
    return " AND ".join(sorted(name for name in names if name))


def compare(before: Side, after: Side) -> Difference:
    """What changed. Pure."""
    there = {blob.digest for blob in before.manifest.blobs()}
    return Difference(
        before=before.manifest.release_id,
        after=after.manifest.release_id,
        artefacts=_artefacts(before.manifest, after.manifest),
        packages=_packages(before.packages, after.packages),
        licences=_licences(before, after),
        new_bytes=sum(b.size for b in after.manifest.blobs() if b.digest not in there),
    )


def _artefacts(before: BundleManifest, after: BundleManifest) -> tuple[ArtefactChange, ...]:
    old = {(a.kind, a.name): a for a in before.artefacts}
    new = {(a.kind, a.name): a for a in after.artefacts}
    changes = []
    for key in sorted(old.keys() | new.keys()):
        one, two = old.get(key), new.get(key)
        if one == two:
            continue
        change: Kind = "changed" if one and two else "added" if two else "removed"
        if one and two and one.version != two.version:
            change = _direction("", one.version, two.version)
        changes.append(
            ArtefactChange(
                change=change,
                kind=key[0],
                name=key[1],
                before=one.version if one else "",
                after=two.version if two else "",
                bytes_before=one.size if one else 0,
                bytes_after=two.size if two else 0,
                files_changed=len(_files(one) ^ _files(two)),
            )
        )
    return tuple(changes)


def _files(artefact: Artefact | None) -> set[str]:
    """Paths with digests: those on one side only are new, gone or changed."""
    return {f"{f.path}\0{f.digest}" for f in artefact.files} if artefact else set()


def _packages(
    before: Mapping[str, tuple[Package, ...]], after: Mapping[str, tuple[Package, ...]]
) -> tuple[PackageChange, ...]:
    changes = []
    for key in sorted(before.keys() | after.keys()):
        old = {p.version: p for p in before.get(key, ())}
        new = {p.version: p for p in after.get(key, ())}
        gone = [p for version, p in old.items() if version not in new]
        come = [p for version, p in new.items() if version not in old]
        for one, two in zip_longest(gone, come):  # a package may be there in several versions
            kind: Kind = "removed" if two is None else "added"
            if one is not None and two is not None:
                kind = _direction(PackageURL.from_string(key).type, one.version, two.version)
            changes.append(
                PackageChange(
                    change=kind,
                    name=(two or one).name,
                    before=one.version if one else "",
                    after=two.version if two else "",
                    purl_before=one.purl if one else "",
                    purl_after=two.purl if two else "",
                )
            )
    return tuple(changes)


def _licences(before: Side, after: Side) -> tuple[LicenceChange, ...]:
    def licences(side: Side) -> dict[str, str]:
        artefacts = {f"{a.kind} {a.name}": a.licence for a in side.manifest.artefacts}
        packages = {
            key: ", ".join(sorted({package.licence for package in each}))
            for key, each in side.packages.items()
        }
        return {**artefacts, **packages}

    old, new = licences(before), licences(after)
    return tuple(
        LicenceChange(name, old[name], new[name])
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name]
    )


def _direction(ecosystem: str, before: str, after: str) -> Kind:
    """Whether ``after`` is the later version."""
    if ecosystem == "deb":
        return "upgraded" if _debian(before) < _debian(after) else "downgraded"
    try:
        return "upgraded" if Version(before) < Version(after) else "downgraded"
    except InvalidVersion:
        return "changed"


def _debian(version: str) -> tuple[object, ...]:
    """A sort key in Debian's order (deb-version(7)): epoch, upstream version, revision."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _dash, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (int(epoch) if epoch.isdigit() else 0, _piecewise(upstream), _piecewise(revision))


def _piecewise(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Non-digits and digits in turn. Letters sort before the rest, ``~`` before the end of all."""

    def weigh(character: str) -> int:
        if character == "~":
            return -1
        return ord(character) if character.isalpha() else ord(character) + 256

    pairs = re.findall(r"([^0-9]*)([0-9]*)", text)
    # The closing 0 stands for "nothing more", which is after ~ and before everything else.
    return tuple(((*(weigh(c) for c in word), 0), int(number or 0)) for word, number in pairs)
