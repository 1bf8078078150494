"""Trust in words: what a request asks, who may sign, what a fingerprint is on paper."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from appliance.i18n import _
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.keys import holder_of
from appliance.trust.requests import Request
from appliance.trust.revocations import Revocations


def request_in_words(request: Request) -> str:
    """What a holder must read before signing."""
    signed = request.metadata.signed
    if isinstance(signed, Root):
        lines = _root_in_words(signed, request.previous.signed if request.previous else None)
    else:
        lines = [
            _("The role '{role}' vouches for what the bundle '{bundle}' brings, until {until}:")
            .format(role=request.role, bundle=request.bundle, until=f"{signed.expires:%Y-%m-%d}")
        ]  # fmt: skip
        for name, target in signed.targets.items():
            lines.append(f"  {name}  sha256:{target.hashes.get('sha256', '?')}")
        if not signed.targets:
            lines.append(_("  nothing of its kind"))
    for quorum in request.quorums():
        have = len(quorum.keys.keys() & request.metadata.signatures.keys())
        lines.append(
            _("Signatures of {title}: {have} of {needed} needed ({names})").format(
                title=quorum.title, have=have, needed=quorum.threshold, names=quorum.names()
            )
        )
    return "\n".join(lines)


def _root_in_words(root: Root, before: Root | None) -> list[str]:
    lines = [
        _("Root {version} holds until {until}.").format(
            version=root.version, until=f"{root.expires:%Y-%m-%d}"
        ),
        _("Fingerprint: {fingerprint}").format(fingerprint=Fingerprint.of(root)),
    ]
    for name, role in root.roles.items():
        old = before.roles[name] if before else None
        title = _("{role}: {threshold} of {keys} keys").format(
            role=name, threshold=role.threshold, keys=len(role.keyids)
        )
        if old is not None and old.threshold != role.threshold:
            title += _(" (before: {threshold})").format(threshold=old.threshold)
        lines.append(f"  {title}")
        past = set(old.keyids) if old else set(role.keyids)
        for keyid in role.keyids:
            mark = " " if keyid in past else "+"
            lines.append(f"    {mark} {key_in_words(root.keys[keyid])}")
        for keyid in sorted(past - set(role.keyids)):
            assert before is not None  # or past had only the role's own
            lines.append(f"    - {key_in_words(before.keys[keyid])}")
    return lines


def key_in_words(key: Key) -> str:
    """Holder, kind and id of a key."""
    return f"{holder_of(key) or '–':<12} {key.keytype:<8} {key.keyid}"


def request_as_json(request: Request) -> dict[str, Any]:
    """A request for machines."""
    signed = request.metadata.signed
    return {
        "role": request.role,
        "version": signed.version,
        "expires": signed.expires.isoformat(),
        "fingerprint": Fingerprint.of(signed).hex if isinstance(signed, Root) else None,
        "signed_by": sorted(request.metadata.signatures),
        "missing": sum(count for _quorum, count in request.missing()),
    }


def roles_as_json(root: Root, delegator: Targets | None) -> dict[str, Any]:
    """Roles, thresholds and keys, of the root and of the targets role."""
    roles = {name: (role, root.keys) for name, role in root.roles.items()}
    if delegator is not None and delegator.delegations is not None:
        delegations = delegator.delegations
        roles |= {name: (r, delegations.keys) for name, r in (delegations.roles or {}).items()}
    return {
        name: {
            "threshold": role.threshold,
            "keys": [
                {"id": k, "holder": holder_of(keys[k]), "type": keys[k].keytype}
                for k in role.keyids
            ],
        }
        for name, (role, keys) in roles.items()
    }


def roles_in_words(roles: dict[str, Any]) -> list[str]:
    """The same as lines."""
    lines = []
    for name, role in roles.items():
        keys = ", ".join(f"{k['holder'] or '–'} {k['id'][:16]}… {k['type']}" for k in role["keys"])
        lines.append(f"  {name:<10} {role['threshold']}/{len(role['keys'])}  {keys}")
    return lines


def revocations_as_json(revocations: Revocations) -> list[dict[str, Any]]:
    """The list for machines."""
    return [each.model_dump(mode="json") for each in revocations.revoked]


def revocations_in_words(revocations: Revocations) -> list[str]:
    """The list as lines."""
    return [f"  {each}" for each in revocations.revoked] or [_("  nothing")]


def fingerprint_on_paper(fingerprint: Fingerprint) -> str:
    """A fingerprint in digits, in words to be read out, and as a QR code of its digits."""
    import segno

    out = io.StringIO()
    segno.make(fingerprint.hex.upper(), micro=False).terminal(out, compact=True, border=2)
    return "\n".join([str(fingerprint), "", *words_in_rows(fingerprint.words), "", out.getvalue()])


def words_in_rows(words: Iterable[str]) -> list[str]:
    """Eight numbered rows of four words."""
    spoken = list(words)
    rows = [spoken[i : i + 4] for i in range(0, len(spoken), 4)]
    return [
        f"  {n}  " + " ".join(f"{word:<12}" for word in row).rstrip()
        for n, row in enumerate(rows, start=1)
    ]
