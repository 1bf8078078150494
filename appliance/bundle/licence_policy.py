"""Which components of a bundle its supplier's licence policy forbids. Pure.

    found = judge(licensed_in(sbom), policy)      # one verdict for each component

A licence is an SPDX expression. ``A OR B`` is fine if one of them is: the choice is ours. ``A AND
B`` is fine if both are. A pattern fits a licence with or without the exception it is granted
``WITH``; a pattern that has ``WITH`` itself fits that combination only. Ids are compared without
case, and old ones by their new name (``GPL-3.0`` is ``GPL-3.0-only``).

The wheelhouse, a package repository and a set of collections are not judged as a whole; their
components are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal

from boolean.boolean import OR, Expression, Symbol
from license_expression import (
    LicenseSymbol,
    LicenseWithExceptionSymbol,
    Licensing,
    get_spdx_licensing,
)
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from appliance.bundle.licences import licence_named
from appliance.manifests.recipe import LicenceException, LicencePolicy

POLICY_PROPERTY = "sovctl:licence-policy"
"""Where the bill of materials carries the policy a bundle was built under, as JSON."""

_CONTAINERS = ("wheelhouse/", "packages/", "collections/")

Verdict = Literal["allowed", "denied", "excepted"]


@dataclass(frozen=True, slots=True)
class Licensed:
    """A component and its terms. ``expression`` is SPDX, or empty; then ``stated`` are its words.

    ``kind`` is how it comes: ``wheel``, ``model``, ``dataset``, ``adapter``, ``deb``, …
    """

    kind: str
    name: str
    version: str
    expression: str
    stated: str = ""

    @property
    def licence(self) -> str:
        """The terms as a person reads them."""
        return self.expression or self.stated or "not stated"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a policy says of a component. ``reason`` is the exception's, or what was denied."""

    component: Licensed
    verdict: Verdict
    reason: str = ""


def judge(components: Sequence[Licensed], policy: LicencePolicy) -> tuple[Judged, ...]:
    """A verdict for each of ``components``, in their order."""
    return tuple(_judge(component, policy) for component in components)


def _judge(component: Licensed, policy: LicencePolicy) -> Judged:
    culprit = _culprit(component, policy)
    if not culprit:
        return Judged(component, "allowed")
    for exception in policy.exceptions:
        if _is_meant(component, exception) and not _culprit(component, _widened(policy, exception)):
            return Judged(component, "excepted", exception.reason)
    return Judged(component, "denied", culprit)


def _is_meant(component: Licensed, exception: LicenceException) -> bool:
    if exception.kind is not None and exception.kind != component.kind:
        return False
    known = {component.name.casefold(), f"{component.name}=={component.version}".casefold()}
    return exception.component is None or exception.component.casefold() in known


def _widened(policy: LicencePolicy, exception: LicenceException) -> LicencePolicy:
    """The policy as it is for what an exception means."""
    if not exception.licences:
        return LicencePolicy()
    return policy.model_copy(update={"allow": (*policy.allow, *exception.licences)})


def _culprit(component: Licensed, policy: LicencePolicy) -> str:
    """The part of its terms that is denied; empty if none is."""
    try:
        expression = canonicalize_license_expression(component.expression)
    except InvalidLicenseExpression:
        return component.licence if policy.unknown == "deny" else ""
    return _denied(_licensing().parse(str(expression)), policy)


def _denied(node: Expression, policy: LicencePolicy) -> str:
    if isinstance(node, Symbol):
        return str(node.render()) if _is_denied(node, policy) else ""
    parts = [_denied(part, policy) for part in node.args]
    if isinstance(node, OR):
        return " OR ".join(parts) if all(parts) else ""
    return next((part for part in parts if part), "")


def _is_denied(licence: Symbol, policy: LicencePolicy) -> bool:
    whole = licence.render()
    bare = licence.license_symbol.key if isinstance(licence, LicenseWithExceptionSymbol) else whole

    def fits(patterns: Sequence[str]) -> bool:
        return any(_fits(whole if " WITH " in p else bare, p) for p in patterns)

    return fits(policy.deny) and not fits(policy.allow)


def _fits(licence: str, pattern: str) -> bool:
    if not set(pattern) & set("*?"):
        pattern = str(_licensing().parse(pattern).render())
    return fnmatchcase(licence.casefold(), pattern.casefold())


@cache
def _licensing() -> Licensing:
    """The SPDX list. Without aliases that are ``LicenseRef-…``: those mean what their user says."""
    return Licensing(
        LicenseSymbol(
            symbol.key,
            aliases=tuple(a for a in symbol.aliases if not a.startswith("LicenseRef-")),
            is_exception=symbol.is_exception,
        )
        for symbol in get_spdx_licensing().known_symbols.values()
    )


# --- what a bill of materials says ------------------------------------------------------------


def licensed_in(sbom: bytes) -> tuple[Licensed, ...]:
    """The components that are judged, from ``sbom.cdx.json``. Raises ``ValueError``."""
    return tuple(_licensed(_document(sbom)))


def policy_in(sbom: bytes) -> LicencePolicy | None:
    """The policy a bundle was built under, from ``sbom.cdx.json``. Raises ``ValueError``."""
    for item in _document(sbom).get("metadata", {}).get("properties", []):
        if item.get("name") == POLICY_PROPERTY:
            return LicencePolicy.model_validate_json(item["value"])
    return None


def as_property(policy: LicencePolicy) -> str:
    """The value that :func:`policy_in` reads."""
    tree = policy.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _document(sbom: bytes) -> dict[str, Any]:
    document = json.loads(sbom)
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    return document


def _licensed(document: Mapping[str, Any]) -> Iterator[Licensed]:
    for component in document.get("components", []):
        ref = str(component["bom-ref"])
        if not ref.startswith(_CONTAINERS):
            expression, stated = _terms(component.get("licenses", []))
            yield Licensed(
                kind=ref.partition("/")[0],
                name=str(component["name"]),
                version=str(component.get("version", "")),
                expression=expression,
                stated=stated,
            )


def _terms(licences: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """One expression for all of them, or what they say in their own words."""
    said = []
    for item in licences:
        named = item.get("license", {})
        said.append(str(item.get("expression") or named.get("id") or named.get("name") or ""))
    # CycloneDX has an id for what is on the SPDX list only; a LicenseRef is a name there.
    known = [licence_named(text).expression for text in said]
    if known and all(known):
        return (known[0] if len(known) == 1 else " AND ".join(f"({k})" for k in known)), ""
    return "", ", ".join(said)
