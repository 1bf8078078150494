"""The bill of materials: CycloneDX 1.6, with what a bundle's models and data are made of.

Every wheel, .deb and collection is a component with package URL, digest and licence; every model
and adapter a ``machine-learning-model`` with a model card; every data set ``data``. The serial
number follows from the manifest's digest and the timestamp is the manifest's, so one bundle has one
bill.

cyclonedx-python-lib builds and checks the components; ``modelCard`` and ``data``, which it does not
know yet, are added to its JSON (ECMA-424, sections "Machine Learning Model Card" and "Data"), which
is then held against the schema where the library that does so is installed.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.exception import MissingOptionalDependencyException
from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from appliance import __version__
from appliance.bundle.contained import Part, parts_of
from appliance.bundle.licence_policy import POLICY_PROPERTY, as_property
from appliance.bundle.licences import Licence, licence_named
from appliance.bundle.model_facts import ModelFacts, read_model
from appliance.errors import SbomInvalid
from appliance.manifests.bundle import Artefact, BundleManifest
from appliance.manifests.recipe import LicencePolicy

_SERIAL = uuid.UUID("7d2e2e6a-3a0c-5c2b-9a51-2b6f6d0e8c11")  # our namespace for serial numbers
_TYPES = {
    "model": ComponentType.MACHINE_LEARNING_MODEL,
    "adapter": ComponentType.MACHINE_LEARNING_MODEL,
    "dataset": ComponentType.DATA,
}


def bill_of(
    manifest: BundleManifest, where: Mapping[str, Path], policy: LicencePolicy | None = None
) -> bytes:
    """``sbom.cdx.json`` of a bundle. ``where`` maps ``sha256:<hex>`` to the file that holds it.

    ``policy`` is written down in it, so that the other side can hold the bundle against it. Raises
    ``SbomInvalid``.
    """
    bundle = Component(
        type=ComponentType.PLATFORM,
        name=manifest.name,
        version=manifest.version,
        bom_ref="bundle",
        hashes=[_sha256(manifest.digest)],
    )
    properties = [Property(name="sovctl:version", value=__version__)]
    if policy is not None:
        properties.append(Property(name=POLICY_PROPERTY, value=as_property(policy)))
    bill = Bom(
        serial_number=uuid.uuid5(_SERIAL, manifest.digest),
        metadata=BomMetaData(
            component=bundle,
            timestamp=datetime.fromisoformat(manifest.created),
            tools=[],
            properties=properties,
        ),
    )
    facts = {a.folder: read_model(_located(a, where)) for a in _models(manifest)}
    wholes = {a.folder: _component(a, facts.get(a.folder)) for a in manifest.artefacts}
    for artefact in manifest.artefacts:
        whole = wholes[artefact.folder]
        parts = [_part(part) for part in parts_of(artefact, where)]
        bill.components.update([whole, *parts])
        base = _base(artefact, facts.get(artefact.folder))
        below = [wholes[a.folder] for a in manifest.of_kind("model") if a.name == base]
        bill.register_dependency(whole, [*parts, *(w for w in below if w is not whole)])
    bill.register_dependency(bundle, wholes.values())
    document = json.loads(JsonV1Dot6(bill).output_as_string())
    cards = {
        f"{a.kind}/{a.name}": _card(a, facts.get(a.folder, ModelFacts()))
        for a in manifest.artefacts
    }
    for component in document["components"]:
        component.update(cards.get(component["bom-ref"], {}))
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    _validate(text, manifest.name)
    return text.encode()


def _validate(text: str, bundle: str) -> None:
    """Hold it against the schema; a desk without the validator has a test suite that has it."""
    try:
        fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except MissingOptionalDependencyException:
        return
    if fault is not None:
        raise SbomInvalid(bundle=bundle, version="1.6", reason=str(fault)[:500])


def _models(manifest: BundleManifest) -> tuple[Artefact, ...]:
    return (*manifest.of_kind("model"), *manifest.of_kind("adapter"))


def _located(artefact: Artefact, where: Mapping[str, Path]) -> dict[str, Path]:
    return {file.path: where[file.digest] for file in artefact.files}


def _base(artefact: Artefact, facts: ModelFacts | None) -> str:
    """The model an adapter or a derived model was made from: the recipe's word, then its own."""
    return artefact.attributes.get("base_model", "") or (facts.base if facts else "")


def _component(artefact: Artefact, facts: ModelFacts | None) -> Component:
    """An artefact as a whole; its files are in the manifest, by digest."""
    contained = artefact.folder == "wheelhouse" or artefact.kind in {"packages", "collections"}
    base = _base(artefact, facts)
    source = artefact.attributes.get("source", "")
    single = artefact.files[0] if len(artefact.files) == 1 else None
    return Component(
        type=_TYPES.get(artefact.kind, ComponentType.FILE),
        name=artefact.name,
        version=artefact.version,
        description=artefact.description or None,
        bom_ref=f"{artefact.kind}/{artefact.name}",
        hashes=[_sha256(single.digest)] if single else [],
        licenses=[_licence(licence_named(artefact.licence))],
        purl=_purl(source),
        external_references=[
            ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(address))
            for address in _addresses(source)
        ],
        pedigree=Pedigree(ancestors=[_ancestor(base, artefact)]) if base else None,
        properties=[
            Property(name=f"sovctl:file:{file.path}", value=file.digest)
            for file in artefact.files
            if not contained
        ]
        + [
            Property(name=f"sovctl:{name}", value=value)
            for name, value in sorted(artefact.attributes.items())
        ],
    )


def _ancestor(name: str, artefact: Artefact) -> Component:
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        bom_ref=f"base-of/{artefact.kind}/{artefact.name}",
    )


def _part(part: Part) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=part.name,
        version=part.version or None,
        description=part.summary or None,
        bom_ref=f"{part.kind}/{part.file.path}",
        hashes=[_sha256(part.file.digest)],
        licenses=[_licence(part.licence)],
        purl=part.purl,
        supplier=OrganizationalEntity(name=part.supplier) if part.supplier else None,
        properties=[
            Property(name=f"sovctl:{part.kind}", value=part.file.path),
            *(Property(name="sovctl:licence-file", value=name) for name in part.licence_files),
        ],
    )


def _card(artefact: Artefact, facts: ModelFacts) -> dict[str, Any]:
    """What CycloneDX has for models and data and the library has not."""
    if artefact.kind in {"model", "adapter"}:
        return {"modelCard": _model_card(artefact, facts)}
    if artefact.kind == "dataset":
        return {
            "data": [
                {
                    "type": "dataset",
                    "name": artefact.name,
                    "description": artefact.description or artefact.name,
                    "classification": "public",
                    "contents": {
                        "properties": [
                            {"name": file.path, "value": file.digest} for file in artefact.files
                        ]
                    },
                }
            ]
        }
    return {}


def _model_card(artefact: Artefact, facts: ModelFacts) -> dict[str, Any]:
    said = {
        "parameter-count": str(facts.parameters) if facts.parameters else "",
        "model-languages": ", ".join(facts.languages),
        **artefact.attributes,
    }
    text = artefact.attributes.get("task", facts.task) or "text-generation"
    parameters: dict[str, Any] = {
        "task": text,
        "architectureFamily": facts.family,
        "modelArchitecture": facts.architecture,
        "datasets": [{"type": "dataset", "name": name} for name in facts.datasets],
    }
    if text == "text-generation":
        parameters |= {"inputs": [{"format": "text"}], "outputs": [{"format": "text"}]}
    return {
        "modelParameters": {name: value for name, value in parameters.items() if value},
        "considerations": {
            "technicalLimitations": [
                "Answers can be wrong; a person must check them before they are acted on."
            ]
        },
        "properties": [
            {"name": f"sovctl:{name}", "value": value}
            for name, value in sorted(said.items())
            if value
        ],
    }


def _licence(licence: Licence) -> License:
    if licence.expression:
        return LicenseFactory().make_from_string(licence.expression)
    return DisjunctiveLicense(name=licence.name)


def _purl(source: str) -> PackageURL | None:
    """``pypi:name==version`` or ``huggingface:owner/name@commit`` as a package URL."""
    scheme, _colon, pin = source.partition(":")
    if scheme == "pypi" and "==" in pin:
        name, _equals, version = pin.partition("==")
        return PackageURL("pypi", name=name, version=version)
    if scheme == "huggingface" and "@" in pin:
        where, _at, commit = pin.rpartition("@")
        owner, _slash, name = where.rpartition("/")
        return PackageURL("huggingface", owner or None, name, commit)
    return None


def _addresses(source: str) -> list[str]:
    """Where it was published, for people."""
    scheme, _colon, pin = source.partition(":")
    if scheme == "huggingface":
        return [f"https://huggingface.co/{pin.rpartition('@')[0] or pin}"]
    if scheme == "pypi":
        name, _equals, version = pin.partition("==")
        return [f"https://pypi.org/project/{name}/{version}/"]
    return [source] if scheme == "https" else []


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))
