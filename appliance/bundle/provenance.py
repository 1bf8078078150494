"""How a bundle came to be: an in-toto Statement v1 with a SLSA v1 provenance predicate.

    payload = statement(manifest, build)                     # canonical JSON
    signed = repository.statement(payload, IN_TOTO)          # provenance.dsse.json
    document = check(data, manifest, keys, threshold)        # on the other side

Its subjects are the manifest and every artefact, by the digests that TUF signs; its resolved
dependencies are what the recipe took from outside, by digest. It names no machine, no user and no
time but the bundle's own, so the same inputs give the same statement. All of it is pure but
:func:`inputs_of`, which digests the recipe and its locks. ``docs/formats.md`` has the prose.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import rfc8785
from packageurl import PackageURL
from packaging.utils import parse_wheel_filename
from securesystemslib.signer import Key

from appliance import __version__
from appliance.bundle.format import MANIFEST
from appliance.manifests.bundle import Artefact, BundleManifest
from appliance.manifests.recipe import ArtefactRecipe, Recipe
from appliance.trust.statement import IN_TOTO, StatementInvalid
from appliance.trust.statement import verify as verify_statement

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "tag:sovereign-appliance,2026:bundle-build/v1"
BUILDER = "tag:sovereign-appliance,2026:sovctl"
"""Names, not addresses (RFC 4151): nothing behind an air gap could look one up."""

BUNDLE_LOCK = "bundle.lock"

Resource = dict[str, Any]
"""A ``ResourceDescriptor`` of in-toto: ``name``, ``uri``, ``digest`` and so on."""


class ProvenanceInvalid(ValueError):
    """It is not signed by whom it must be, or it is not about this bundle."""


@dataclass(frozen=True)
class BuildInputs:
    """What a build was given. ``dependencies`` are in-toto resource descriptors, sorted by name."""

    recipe: str
    recipe_sha256: str
    dependencies: tuple[Resource, ...]


def inputs_of(recipe_path: Path, recipe: Recipe, artefacts: Sequence[Artefact]) -> BuildInputs:
    """Digest the recipe and its locks and list every source; ``artefacts`` are what came of it."""
    folder = recipe_path.parent
    found = {
        f"{part.name}/{item['name']}": item
        for part, artefact in zip(recipe.artefacts, artefacts, strict=True)
        for item in _sources(part, artefact, folder)
    }
    for lock in _locks(recipe, folder):
        found[lock["name"]] = lock
    dependencies = tuple({**found[name], "name": name} for name in sorted(found))
    return BuildInputs(recipe_path.name, _digest_of(recipe_path), dependencies)


def statement(
    manifest: BundleManifest,
    inputs: BuildInputs,
    byproducts: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """The statement about a bundle, as canonical JSON (RFC 8785).

    ``byproducts`` are what else the build wrote: name → SHA-256, 64 hexadecimal digits.
    """
    document: dict[str, Any] = {
        "_type": STATEMENT,
        "subject": subjects(manifest),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "recipe": {
                        "name": inputs.recipe,
                        "digest": {"sha256": inputs.recipe_sha256},
                    },
                    "bundle": manifest.name,
                    "version": manifest.version,
                },
                "internalParameters": {"platform": str(manifest.platform)},
                "resolvedDependencies": list(inputs.dependencies),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"sovctl": __version__}},
                "metadata": {
                    "invocationId": manifest.digest,
                    "startedOn": manifest.created,
                    "finishedOn": manifest.created,
                },
                "byproducts": [
                    {"name": name, "digest": {"sha256": byproducts[name]}}
                    for name in sorted(byproducts)
                ],
            },
        },
    }
    return rfc8785.dumps(document)


def subjects(manifest: BundleManifest) -> list[Resource]:
    """The manifest and each artefact, by the names and bytes they are signed under."""
    listed = {
        MANIFEST: manifest.canonical(),
        **{a.target: a.canonical() for a in manifest.artefacts},
    }
    return [
        {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
        for name, data in listed.items()
    ]


def check(
    data: bytes, manifest: BundleManifest, keys: Mapping[str, Key], threshold: int
) -> dict[str, Any]:
    """The statement in ``provenance.dsse.json``, signed by ``threshold`` of ``keys``.

    Raises :class:`ProvenanceInvalid` if it is not, or is about another bundle.
    """
    try:
        document = json.loads(verify_statement(data, IN_TOTO, keys, threshold))
    except (StatementInvalid, ValueError, RecursionError) as error:
        raise ProvenanceInvalid(str(error)) from error
    return _about(document, manifest)


def read(data: bytes, manifest: BundleManifest) -> dict[str, Any]:
    """The statement as it is, its signature not judged: for a machine that trusts nobody yet."""
    try:
        payload = base64.b64decode(json.loads(data)["payload"])
        return _about(json.loads(payload), manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProvenanceInvalid(str(error) or "it is not a DSSE envelope") from error


def _about(document: object, manifest: BundleManifest) -> dict[str, Any]:
    if not isinstance(document, dict) or document.get("_type") != STATEMENT:
        raise ProvenanceInvalid("it is not an in-toto statement")
    if document.get("predicateType") != PREDICATE:
        raise ProvenanceInvalid("it is not a statement of provenance")
    if document.get("subject") != subjects(manifest):
        raise ProvenanceInvalid("it is about something else than this bundle")
    return document


# --- sources ------------------------------------------------------------------------------------


def _sources(part: ArtefactRecipe, artefact: Artefact, folder: Path) -> Iterator[Resource]:
    """What an artefact's source takes, by the fields sources have in common."""
    said = part.source.model_dump(mode="json")
    kind = str(said["type"])
    if "wheel" in said:
        name, _equals, version = str(said["wheel"]).partition("==")
        yield _resource(str(said["wheel"]), _pypi(name, version), str(said["sha256"]))
    for file in said.get("files") or ():
        if isinstance(file, dict) and "url" in file:
            yield _resource(str(file["path"]), str(file["url"]), str(file["sha256"]))
    if kind == "huggingface":
        yield _hub(artefact.attributes.get("source", ""), str(said["repo"]))
    for lock in _lock_paths(said):
        yield {"name": lock, "digest": {"sha256": _digest_of(folder / lock)}}
    for blob in artefact.files:
        if artefact.kind == "wheelhouse" and blob.path.endswith(".whl"):
            wheel_name, wheel_version, _build, _tags = parse_wheel_filename(blob.path)
            yield _resource(blob.path, _pypi(wheel_name, str(wheel_version)), blob.hex)
    if kind == "path":
        # Its path is this desk's business; what it held is in the artefact, file by file.
        digest = hashlib.sha256(artefact.canonical()).hexdigest()
        yield {"name": kind, "digest": {"sha256": digest}, "annotations": {"of": artefact.target}}


def _hub(source: str, repository: str) -> Resource:
    """A hub repository at the commit that was taken, as the source wrote it down."""
    where, _at, commit = source.removeprefix("huggingface:").rpartition("@")
    owner, _slash, name = (where or repository).rpartition("/")
    purl = PackageURL("huggingface", owner or None, name, commit or None).to_string()
    resource: Resource = {"name": "huggingface", "uri": purl}
    return {**resource, "digest": {"gitCommit": commit}} if commit else resource


def _locks(recipe: Recipe, folder: Path) -> Iterator[Resource]:
    bootstrap = [recipe.bootstrap.lock] if recipe.bootstrap else []
    for lock in (*bootstrap, BUNDLE_LOCK):
        if (folder / lock).is_file():
            yield {"name": lock, "digest": {"sha256": _digest_of(folder / lock)}}


def _lock_paths(said: Mapping[str, Any]) -> Iterator[str]:
    """The requirements locks a source names."""
    if isinstance(lock := said.get("lock"), str):
        yield lock
    if isinstance(lock := said.get("environment"), str):
        yield lock
    for environment in said.get("environments") or ():
        yield str(environment["lock"])


def _resource(name: str, uri: str, sha256: str) -> Resource:
    return {"name": name, "uri": uri, "digest": {"sha256": sha256}}


def _pypi(name: str, version: str) -> str:
    return PackageURL("pypi", name=name.lower(), version=version).to_string()


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
