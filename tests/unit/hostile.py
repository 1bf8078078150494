"""Bundles nobody should make: any members, any bytes, any headers; signed for real where wanted."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785
from bundle_samples import artefacts_of

from appliance.bundle.format import (
    END,
    front_order,
    header_of,
    metadata_members,
    padding,
    place,
    ustar_header,
)
from appliance.manifests.bundle import BlobRef
from appliance.trust.repository import Repository

SBOM = b"{}"
DATA = b"rows of data\n" * 40
HEX = hashlib.sha256(DATA).hexdigest()


def manifest(**changes: Any) -> dict[str, Any]:
    """A good manifest of one data set of one file, as a tree to be spoilt."""
    tree = {
        "artefacts": [artefact()],
        "created": "2026-11-01T00:00:00Z",
        "name": "sample",
        "platform": {"machine": "x86_64", "python": "3.11", "system": "linux"},
        "schema_version": 1,
        "version": "1.0",
    }
    return {**tree, **changes}


def artefact(*paths: str, **changes: Any) -> dict[str, Any]:
    """One data set whose files all are the one blob there is."""
    files = [file(path) for path in paths or ("rows.jsonl",)]
    tree = {
        "attributes": {},
        "description": "",
        "files": files,
        "kind": "dataset",
        "licence": "MIT",
        "name": "d",
        "version": "1",
    }
    return {**tree, **changes}


def file(path: str, **changes: Any) -> dict[str, Any]:
    return {"digest": f"sha256:{HEX}", "path": path, "size": len(DATA), **changes}


def canonical(tree: object) -> bytes:
    """RFC 8785 where it can say it, else what a sloppy writer would make of it."""
    try:
        return rfc8785.dumps(tree)  # type: ignore[arg-type]
    except (ValueError, rfc8785.CanonicalizationError):
        text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return text.encode()


@dataclass(frozen=True)
class Parts:
    """A bundle taken apart: members before the blobs by name, and blobs by hex digest."""

    front: dict[str, bytes]
    blobs: dict[str, bytes]

    def tar(self) -> bytes:
        """The canonical tar of it."""
        refs = [BlobRef(path="p", digest=f"sha256:{h}", size=len(d)) for h, d in self.blobs.items()]
        refs.sort(key=lambda ref: ref.digest)
        layout = place([(name, len(data)) for name, data in self.front.items()], refs)
        out = bytearray()
        for member, data in zip(layout.front, self.front.values(), strict=True):
            out += header_of(member) + data + bytes(padding(len(data)))
        for member in layout.blobs:
            data = self.blobs[member.name.rpartition("/")[2]]
            out += header_of(member) + data + bytes(padding(len(data)))
        return bytes(out + END)


def signed(
    repository: Repository,
    manifest_bytes: bytes,
    others: Mapping[str, bytes] | None = None,
    blobs: Mapping[str, bytes] | None = None,
) -> Parts:
    """Whatever it is, signed with the real keys of the bundle ``sample``."""
    members = {"bundle.json": manifest_bytes, "sbom.cdx.json": SBOM, **(others or {})}
    members = {name: members[name] for name in sorted(members, key=front_order)}
    metadata = metadata_members(
        repository.sign("sample", members, artefacts=artefacts_of(manifest_bytes))
    )
    return Parts({**metadata, **members}, dict(blobs if blobs is not None else {HEX: DATA}))


def header(name: str, size: int = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header with any fields replaced (``size``, ``link``, ``magic``, ``mode`` …) and a right
    checksum."""
    block = bytearray(ustar_header("x", 0, kind))
    block[0:100] = name.encode("utf-8", "surrogateescape")[:100].ljust(100, b"\0")
    block[124:136] = f"{size:011o}\0".encode() if 0 <= size < 8**11 else block[124:136]
    spots = {
        "mode": (100, 8), "uid": (108, 8), "size_field": (124, 12), "mtime": (136, 12),
        "link": (157, 100), "magic": (257, 8), "uname": (265, 32), "prefix": (345, 155),
    }  # fmt: skip
    for field, value in fields.items():
        start, length = spots[field]
        block[start : start + length] = value.ljust(length, b"\0")[:length]
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def member(name: str, data: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    """A whole member with such a header."""
    return header(name, len(data), kind, **fields) + data + bytes(padding(len(data)))


def pax(records: Mapping[str, str], kind: bytes = b"x", name: str = "pax/x") -> bytes:
    """A pax header member (``kind`` ``g``: a global one)."""
    body = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        size = len(text) + 1
        while len(str(size)) + len(text) != size:
            size += 1
        body += str(size).encode() + text
    return member(name, body, kind)


def by_tarfile(folder: Path, style: int, **fields: Any) -> bytes:
    """A member as Python's ``tarfile`` writes it."""
    info = tarfile.TarInfo("bundle.json")
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(style, "utf-8", "surrogateescape")
