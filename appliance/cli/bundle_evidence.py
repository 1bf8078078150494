"""``sovctl bundle licences`` and ``sovctl bundle provenance``: what a bundle says about itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.options import with_console
from appliance.i18n import N_, _
from appliance.layout import Home

if TYPE_CHECKING:
    from appliance.bundle.licence_policy import Judged
    from appliance.bundle.reader import BundleReader
    from appliance.cli.console import Console

_VERDICTS = {"allowed": N_("allowed"), "denied": N_("DENIED"), "excepted": N_("excepted")}

_file = click.argument("file", type=click.Path(path_type=Path))
_trust = click.option(
    "--trust",
    "fingerprint",
    metavar="FINGERPRINT",
    help=_("Judge by this root; nothing is pinned."),
)


@click.command(help=_("List the licence of every component, and what a policy says of it."))
@with_console
@_file
@_trust
@click.option(
    "--deny", multiple=True, metavar="PATTERN",
    help=_("Judge by this instead of the bundle's own policy: 'AGPL-3.0-only', 'GPL-*'; repeat."),
)  # fmt: skip
@click.option(
    "--deny-unknown", is_flag=True, help=_("Deny what has no SPDX licence as well.")
)  # fmt: skip
def licences(
    console: Console, *, file: Path, fingerprint: str | None, deny: tuple[str, ...],
    deny_unknown: bool,
) -> int:  # fmt: skip
    """Report licences; the exit status is a verdict."""
    from pydantic import ValidationError

    from appliance.bundle.licence_policy import judge, licensed_in, policy_in
    from appliance.bundle.reader import BundleReader
    from appliance.errors import BundleTampered, ExitCode
    from appliance.manifests.recipe import LicencePolicy

    try:
        given = LicencePolicy(deny=deny, unknown="deny" if deny_unknown else "allow")
    except ValidationError as error:
        raise click.BadParameter(str(error.errors()[0]["msg"]), param_hint="--deny") from error
    with BundleReader(file) as reader:
        trusted = _judge(reader, fingerprint)
        try:
            carried = policy_in(reader.sbom) or LicencePolicy()
            policy = given if deny or deny_unknown else carried
            judged = judge(licensed_in(reader.sbom), policy)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = "it is not a bill of materials"
            raise BundleTampered(bundle=file, member="sbom.cdx.json", reason=reason) from error
    denied = [each for each in judged if each.verdict == "denied"]
    value = {
        "bundle": str(file),
        "trusted": trusted,
        "policy": policy.model_dump(mode="json", by_alias=True),
        "denied": len(denied),
        "components": [_as_json(each) for each in judged],
    }
    console.result(value, _as_text(judged))
    return int(ExitCode.VERDICT if denied else ExitCode.OK)


@click.command(help=_("Show how a bundle was built and from what (in-toto, SLSA provenance)."))
@with_console
@_file
@_trust
def provenance(console: Console, *, file: Path, fingerprint: str | None) -> None:
    """Print the statement; its signature is judged where a root is pinned or given."""
    from appliance.bundle.format import PROVENANCE
    from appliance.bundle.provenance import ProvenanceInvalid, read
    from appliance.bundle.reader import BundleReader
    from appliance.errors import BundleTampered, ProvenanceMissing

    with BundleReader(file) as reader:
        trusted = _judge(reader, fingerprint)
        data = reader.others.get(PROVENANCE)
        if data is None:
            raise ProvenanceMissing(bundle=file)
        try:
            document = read(data, reader.manifest)
        except ProvenanceInvalid as error:
            raise BundleTampered(bundle=file, member=PROVENANCE, reason=str(error)) from error
    signature = _("trusted") if trusted else _("not judged: no root is pinned here")
    text = json.dumps(document, indent=2, ensure_ascii=False)
    console.result(
        {"bundle": str(file), "trusted": trusted, "statement": document},
        _("{file}, signature {signature}\n\n{statement}").format(
            file=file, signature=signature, statement=text
        ),
    )


def _judge(reader: BundleReader, fingerprint: str | None) -> bool:
    """Judge all signatures by the given or the pinned root; False if there is neither."""
    from appliance.bundle.load import judge
    from appliance.trust.fingerprint import Fingerprint
    from appliance.trust.pin import load_state
    from appliance.trust.verifier import Verifier

    state = load_state(Home.from_environment().trust)
    if fingerprint is not None:
        state = state.pinned_to(Fingerprint.parse(fingerprint))
    if state.pin is None:
        return False
    judge(reader, Verifier(state))
    return True


def _as_json(judged: Judged) -> dict[str, Any]:
    component = judged.component
    return {
        "kind": component.kind,
        "name": component.name,
        "version": component.version,
        "licence": component.licence,
        "spdx": bool(component.expression),
        "verdict": judged.verdict,
        "reason": judged.reason,
    }


def _as_text(judged: Sequence[Judged]) -> str:
    lines = []
    for each in judged:
        component = each.component
        reason = f" ({each.reason})" if each.reason else ""
        what = f"{component.name} {component.version}"
        lines.append(
            f"  {component.kind:<11}{what:<40} {component.licence[:60]:<40} "
            f"{_(_VERDICTS[each.verdict])}{reason}"
        )
    counts = Counter(each.verdict for each in judged)
    summary = _("{total} components: {allowed} allowed, {excepted} excepted, {denied} denied.")
    lines.append(
        summary.format(
            total=len(judged),
            allowed=counts["allowed"],
            excepted=counts["excepted"],
            denied=counts["denied"],
        )
    )
    return "\n".join(lines)
