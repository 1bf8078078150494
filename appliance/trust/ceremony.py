"""Publish what holders signed elsewhere: the end of a ceremony, on the supplier's machine.

    published = publish(folder, passphrase, [Request.parse(path.read_bytes(), path), …])

Copies of one request that were signed side by side are merged. Nothing is written before every
signature and every threshold, the predecessor's too, was checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rfc8785
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from appliance.errors import RequestInvalid, RequestUnsigned, TrustKeysMissing
from appliance.i18n import _
from appliance.trust.files import replace_file
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.passphrase import Passphrase
from appliance.trust.repository import Lifetimes, Repository, published_roots
from appliance.trust.requests import Request, merge

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,72}")


@dataclass(frozen=True)
class Published:
    """What is in force now: a root (then with its fingerprint) or a role's word for a bundle."""

    role: str
    version: int
    fingerprint: Fingerprint | None
    bundle: str | None


def publish(folder: Path, passphrase: Passphrase, copies: Sequence[Request]) -> Published:
    """Merge signed copies of one request and take it into the repository.

    Raises :class:`RequestInvalid` if it does not follow from what is there, and
    :class:`RequestUnsigned`, naming whose signatures are missing.
    """
    if not (folder / "delegations.json").is_file():
        raise TrustKeysMissing(folder=folder, reason=_("It holds no roles to sign with."))
    repository = Repository(folder, passphrase, Lifetimes())
    request = merge(copies)
    data = rfc8785.dumps(request.metadata.to_dict())
    if request.role == Root.type:
        _check_follows(folder, request)
        _check_thresholds(request)
        repository.publish_root(data)
        fingerprint = Fingerprint.of(request.metadata.signed)
    else:
        fingerprint = None
        _publish_role(repository, request, data)
    for waiting in (folder / "requests").glob("*.json"):
        if _asks_the_same(waiting, request):
            waiting.unlink()
    version = request.metadata.signed.version
    return Published(request.role, version, fingerprint, request.bundle)


def _check_thresholds(request: Request) -> None:
    missing = request.missing()
    if missing:
        said = [
            _("{count} more of {title} ({names})").format(
                count=count, title=quorum.title, names=quorum.names()
            )
            for quorum, count in missing
        ]
        raise RequestUnsigned(request=request.label, reason="; ".join(said) + ".")


def _check_follows(folder: Path, request: Request) -> None:
    """The request is for the root after the newest one here."""
    roots = published_roots(folder)
    before = rfc8785.dumps(request.previous.to_dict()) if request.previous else None
    if (
        before != (roots[-1] if roots else None)
        or request.metadata.signed.version != len(roots) + 1
    ):
        reason = _("It does not follow from the newest root in {0}.").format(folder)
        raise RequestInvalid(request=request.label, reason=reason)


def _publish_role(repository: Repository, request: Request, data: bytes) -> None:
    if request.bundle is None or not _NAME.fullmatch(request.bundle):
        raise RequestInvalid(request=request.label, reason=_("It names no bundle."))
    delegator = Targets(delegations=repository.delegations)
    metadata = request.metadata
    try:
        delegator.verify_delegate(request.role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        reason = _("It lacks signatures of whom the targets role delegates to.")
        raise RequestUnsigned(request=request.label, reason=reason) from error
    path = repository.folder / "bundles" / request.bundle / f"{request.role}.json"
    if path.is_file():
        there = Metadata[Targets].from_bytes(path.read_bytes()).signed.version
        if there >= metadata.signed.version:
            reason = _("Version {0} of it was published before.").format(there)
            raise RequestInvalid(request=request.label, reason=reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)


def _asks_the_same(waiting: Path, request: Request) -> bool:
    try:
        other = Request.parse(waiting.read_bytes(), waiting)
    except (OSError, RequestInvalid):
        return False
    return other.metadata.signed_bytes == request.metadata.signed_bytes
