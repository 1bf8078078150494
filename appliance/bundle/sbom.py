"""The bill of materials: CycloneDX 1.6, with what a bundle's models and data are made of.

Every wheel is a ``library`` with package URL, digest and licence; every model a
``machine-learning-model`` with a model card; every data set ``data``. The serial number follows
from the manifest's digest and the timestamp is the manifest's, so one bundle has one bill.

cyclonedx-python-lib builds and checks the components; ``modelCard`` and ``data``, which it does not
know yet, are added to its JSON (ECMA-424, sections "Machine Learning Model Card" and "Data").
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from appliance import __version__
from appliance.bundle.licences import Licence, WheelFacts, read_wheel
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest

_SERIAL = uuid.UUID("7d2e2e6a-3a0c-5c2b-9a51-2b6f6d0e8c11")  # our namespace for serial numbers
_TYPES = {"model": ComponentType.MACHINE_LEARNING_MODEL, "dataset": ComponentType.DATA}


def bill_of(manifest: BundleManifest, where: Mapping[str, Path]) -> bytes:
    """``sbom.cdx.json`` of a bundle. ``where`` maps ``sha256:<hex>`` to the file that holds it."""
    bundle = Component(
        type=ComponentType.PLATFORM,
        name=manifest.name,
        version=manifest.version,
        bom_ref="bundle",
        hashes=[_sha256(manifest.digest)],
    )
    bill = Bom(
        serial_number=uuid.uuid5(_SERIAL, manifest.digest),
        metadata=BomMetaData(
            component=bundle,
            timestamp=datetime.fromisoformat(manifest.created),
            tools=[],
            properties=[Property(name="sovctl:version", value=__version__)],
        ),
    )
    cards: dict[str, dict[str, Any]] = {}
    for artefact in manifest.artefacts:
        component = _component(artefact)
        bill.components.add(component)
        cards[str(component.bom_ref.value)] = _card(artefact, manifest)
        for file in artefact.files:
            if artefact.kind == "wheelhouse" and file.path.endswith(".whl"):
                bill.components.add(_wheel(file, read_wheel(where[file.digest])))
    bill.register_dependency(bundle, bill.components)
    document = json.loads(JsonV1Dot6(bill).output_as_string())
    for component in document["components"]:
        component.update(cards.get(component["bom-ref"], {}))
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _component(artefact: Artefact) -> Component:
    """An artefact as a whole; its files are in the manifest, by digest."""
    return Component(
        type=_TYPES.get(artefact.kind, ComponentType.FILE),
        name=artefact.name,
        version=artefact.version,
        description=artefact.description or None,
        bom_ref=f"{artefact.kind}/{artefact.name}",
        licenses=[_licence(Licence(_spdx(artefact.licence), artefact.licence))],
        purl=_purl(artefact.attributes.get("source", "")),
        properties=[
            Property(name=f"sovctl:file:{file.path}", value=file.digest)
            for file in artefact.files
            if artefact.kind != "wheelhouse"
        ]
        + [
            Property(name=f"sovctl:{name}", value=value)
            for name, value in sorted(artefact.attributes.items())
        ],
    )


def _wheel(file: BlobRef, facts: WheelFacts) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=facts.name,
        version=facts.version,
        description=facts.summary or None,
        bom_ref=f"wheel/{file.path}",
        hashes=[_sha256(file.digest)],
        licenses=[_licence(facts.licence)],
        purl=PackageURL("pypi", name=facts.name.lower().replace("_", "-"), version=facts.version),
        properties=[
            Property(name="sovctl:wheel", value=file.path),
            *(Property(name="sovctl:licence-file", value=name) for name in facts.licence_files),
        ],
    )


def _card(artefact: Artefact, manifest: BundleManifest) -> dict[str, Any]:
    """What CycloneDX has for models and data and the library has not."""
    if artefact.kind == "model":
        properties = [
            {"name": f"sovctl:{name}", "value": value}
            for name, value in sorted(artefact.attributes.items())
        ]
        return {
            "modelCard": {
                "modelParameters": {
                    "task": "text-generation",
                    "inputs": [{"format": "text"}],
                    "outputs": [{"format": "text"}],
                },
                "considerations": {
                    "technicalLimitations": [
                        "Answers can be wrong; a person must check them before they are acted on."
                    ]
                },
                "properties": properties,
            }
        }
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


def _licence(licence: Licence) -> License:
    if licence.expression:
        return LicenseFactory().make_from_string(licence.expression)
    return DisjunctiveLicense(name=licence.name)


def _spdx(text: str) -> str:
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        return ""


def _purl(source: str) -> PackageURL | None:
    """``pypi:name==version`` as a package URL."""
    scheme, _colon, pin = source.partition(":")
    name, _equals, version = pin.partition("==")
    return PackageURL(scheme, name=name, version=version) if version else None


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))
