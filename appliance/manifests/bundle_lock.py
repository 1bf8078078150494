"""``bundle.lock``: what a recipe stood for when it was locked, file by file.

It lies beside the recipe and is committed with it. ``sovctl bundle lock`` writes it; nobody edits
it. One content has one text (a reader compares), with one file a line, so that a diff shows which
file of which artefact changed and nothing else. ``docs/formats.md`` section 6 describes it.

    lock = BundleLock.parse(data)          # ValueError unless valid *and* written as we write it
    lock.find("model", "smollm2").files    # sorted by path
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance.manifests.bundle import (
    ArtefactKind,
    Digest,
    Instant,
    Name,
    RelativePath,
    Size,
    check_paths_apart,
)

FILE_NAME = "bundle.lock"
MAX_BYTES = 64 << 20

_Key = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
_Text = Annotated[str, Field(max_length=4096)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LockedFile(_Frozen):
    """One file: its path in the artefact, its content, and where it came from.

    ``origin`` is for people and for fetching again: ``https://…``, ``pypi:name==version``,
    ``file:…`` (from the recipe's folder) or ``made:…`` (computed from the inputs).
    """

    path: RelativePath
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Size
    origin: _Text


class LockedArtefact(_Frozen):
    """What one artefact of the recipe stood for.

    ``recipe`` is the digest of its part of the recipe; ``inputs`` are what that left open and the
    lock decides (``commit``), or what lies outside it and must not change (a requirements lock's
    digest).
    """

    kind: ArtefactKind
    name: Name
    recipe: Digest
    inputs: dict[_Key, _Text]
    files: tuple[LockedFile, ...]

    @model_validator(mode="after")
    def _files_are_apart_and_sorted(self) -> LockedArtefact:
        paths = [file.path for file in self.files]
        check_paths_apart(paths)
        if paths != sorted(paths):
            raise ValueError("the files are not sorted by path")
        return self


class BundleLock(_Frozen):
    """The whole of ``bundle.lock``. ``created`` dates everything that is built from it."""

    schema_version: Literal[1]
    recipe: Digest
    created: Instant
    artefacts: tuple[LockedArtefact, ...]

    @model_validator(mode="after")
    def _artefacts_are_apart_and_sorted(self) -> BundleLock:
        keys = [(artefact.kind, artefact.name) for artefact in self.artefacts]
        if keys != sorted(set(keys)):
            raise ValueError("the artefacts are not sorted, or one is there twice")
        return self

    @classmethod
    def parse(cls, data: bytes) -> BundleLock:
        """Read a lock. Raises ``ValueError`` unless it is valid and written as :meth:`render`."""
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        lock = cls.model_validate_json(data)
        if lock.render() != data:
            raise ValueError("it is not laid out as it was written; was it edited or merged?")
        return lock

    def find(self, kind: str, name: str) -> LockedArtefact | None:
        """The artefact of that kind and name, if it is locked."""
        return next((a for a in self.artefacts if (a.kind, a.name) == (kind, name)), None)

    def render(self) -> bytes:
        """The one text of this lock: UTF-8, a file a line, a newline at the end."""
        return "".join(self._lines()).encode()

    def _lines(self) -> Iterator[str]:
        yield f'{{\n "schema_version": {self.schema_version},\n'
        yield f' "recipe": {_json(self.recipe)},\n "created": {_json(self.created)},\n'
        artefacts = ",\n".join(_artefact(artefact) for artefact in self.artefacts)
        yield f' "artefacts": {_listed(artefacts, " ")}\n}}\n'


def _artefact(artefact: LockedArtefact) -> str:
    pairs = sorted(artefact.inputs.items())
    inputs = ",\n".join(f"    {_json(key)}: {_json(value)}" for key, value in pairs)
    described = "{" + f"\n{inputs}\n   " + "}" if inputs else "{}"
    files = ",\n".join(f"    {_json(file.model_dump())}" for file in artefact.files)
    return (
        f'  {{\n   "kind": {_json(artefact.kind)},\n   "name": {_json(artefact.name)},\n'
        f'   "recipe": {_json(artefact.recipe)},\n'
        f'   "inputs": {described},\n'
        f'   "files": {_listed(files, "   ")}\n  }}'
    )


def _listed(lines: str, indent: str) -> str:
    return f"[\n{lines}\n{indent}]" if lines else "[]"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
