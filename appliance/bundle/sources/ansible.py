"""Ansible collections and roles, for a control machine that reaches no Galaxy server.

    collections/<namespace>-<name>-<version>.tar.gz
    roles/<name>.tar.gz
    requirements.yml

In the artefact's folder, ``ansible-galaxy collection install --offline -r requirements.yml -p DIR``
and ``ansible-galaxy role install -r requirements.yml -p DIR`` install from these files alone. The
server is asked where a pinned version lies (Galaxy's v3 API) and is believed nothing else: the
digest is the recipe's, and what a collection is called and needs is read from the archive itself.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import yaml
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from appliance.bundle.cache import Digested
from appliance.bundle.package_facts import CollectionFacts, collection_facts, open_archive
from appliance.bundle.sources.desk import Desk, Made, MadeFile, digest_all
from appliance.bundle.sources.download import Sha256, Wanted, Web
from appliance.errors import CollectionsIncomplete, PackageRefused, SourceRefused
from appliance.i18n import _
from appliance.manifests.bundle import check_path
from appliance.manifests.recipe import AnsibleSource, ArtefactRecipe, CollectionPin

REQUIREMENTS = "requirements.yml"
_INDEX = "api/v3/plugin/ansible/content/published/collections/index"

MAX_MEMBERS = 50_000  # tarfile keeps a record of each in memory
MAX_UNPACKED = 4 << 30  # bytes


def make(recipe: ArtefactRecipe, source: AnsibleSource, desk: Desk) -> Made:
    """Fetch what the cache lacks, check every archive, write the requirements.

    Raises :class:`PackageRefused` (an archive that is unsafe or another than its pin says),
    :class:`CollectionsIncomplete`, and what fetching raises.
    """
    origins = _origins(recipe, source, desk)
    names = [f"collections/{file_name(pin)}" for pin in source.collections]
    names += [f"roles/{role.name}.tar.gz" for role in source.roles]
    pins = [pin.sha256 for pin in source.collections] + [role.sha256 for role in source.roles]
    wanted = [Wanted(n, origins[n], Sha256(p)) for n, p in zip(names, pins, strict=True)]
    title = _("Fetching {count} files of {name}").format(count=len(wanted), name=recipe.name)
    with Web(desk.cache) as web:
        contents = web.fetch_all(wanted, desk, title)
    found = dict(zip(names, contents, strict=True))
    title = _("Checking {count} archives").format(count=len(names))
    with desk.progress.task(title, len(names), "items") as task:
        for name in names:
            check_archive(recipe, name, found[name].location)
            task.advance(1)
    facts = [_facts(recipe, pin, found) for pin in source.collections]
    if lacking := unmet(facts):
        reason = _("{list}.").format(list="; ".join(lacking))
        raise CollectionsIncomplete(artefact=recipe.name, reason=reason, recipe=desk.recipe)
    text = requirements(source)
    folder = desk.cache.make(
        "ansible-requirements", {"text": text}, lambda out: _write(out / REQUIREMENTS, text)
    )
    listed = digest_all(
        [(REQUIREMENTS, folder / REQUIREMENTS)], desk, _("Digesting the requirements")
    )
    files = [MadeFile(name, found[name], origins[name]) for name in names]
    attributes = {"collections": str(len(source.collections)), "roles": str(len(source.roles))}
    return Made(tuple(sorted((*files, *listed), key=lambda file: file.path)), attributes)


def file_name(pin: CollectionPin) -> str:
    """What ansible-galaxy calls a collection's archive."""
    return f"{pin.name.replace('.', '-')}-{pin.version}.tar.gz"


def requirements(source: AnsibleSource) -> str:
    """``requirements.yml``: every file of the artefact, in the recipe's order."""
    document: dict[str, list[dict[str, str]]] = {}
    if source.collections:
        document["collections"] = [
            {"name": f"collections/{file_name(pin)}", "type": "file"} for pin in source.collections
        ]
    if source.roles:
        document["roles"] = [
            {"name": role.name, "src": f"roles/{role.name}.tar.gz"} for role in source.roles
        ]
    text: str = yaml.safe_dump(document, explicit_start=True, sort_keys=False)
    return (
        text.replace("\n- ", "\n  - ")
        .replace("\n  type:", "\n    type:")
        .replace("\n  src:", "\n    src:")
    )


def unmet(collections: Sequence[CollectionFacts]) -> list[str]:
    """What the collections need and is not among them, a sentence for each."""
    versions = {facts.name: facts.version for facts in collections}
    lacking = []
    for facts in collections:
        for name, wanted in sorted(facts.dependencies.items()):
            have = versions.get(name)
            if have is None:
                lacking.append(f"{facts.name} {facts.version} → {name} {wanted}")
            elif not satisfies(have, wanted):
                reason = _("{name} {version} → {other} {wanted}, not {have}")
                lacking.append(
                    reason.format(
                        name=facts.name, version=facts.version, other=name, wanted=wanted, have=have
                    )
                )
    return lacking


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version is in a collection's range (``>=1.0.0,<2.0.0``, ``1.2.3``, ``*``)."""
    parts = [part.strip() for part in wanted.split(",")]
    exact = {part: f"=={part}" for part in parts if part[:1].isdigit()}
    kept = [exact.get(part, part) for part in parts if part not in {"", "*"}]
    kept = ["=" + part if part[:1] == "=" and part[:2] != "==" else part for part in kept]
    try:
        return SpecifierSet(",".join(kept)).contains(Version(version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return False


def check_archive(recipe: ArtefactRecipe, name: str, path: Path) -> None:
    """Raise :class:`PackageRefused` if unpacking the archive could write outside its folder."""
    try:
        with open_archive(path) as archive:
            total = 0
            for count, member in enumerate(archive, 1):
                total += member.size
                _check_member(member)
                if count > MAX_MEMBERS or total > MAX_UNPACKED:
                    raise ValueError("it unpacks to more than any collection has")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        reason = f"{error or type(error).__name__}."
        raise PackageRefused(artefact=recipe.name, file=name, reason=reason) from error


def _check_member(member: tarfile.TarInfo) -> None:
    name = member.name.removeprefix("./").rstrip("/")
    if name in {"", "."} and member.isdir():
        return
    check_path(name)
    if member.isdir() or member.isreg():
        return
    if not (member.issym() or member.islnk()):
        raise ValueError(f"{name!r} is a device or another special file")
    # A symbolic link starts where it lies, a hard link at the top; neither may pass the top.
    depth = name.count("/") if member.issym() else 0
    target = member.linkname
    if not target or target.startswith("/") or "\\" in target:
        raise ValueError(f"{name!r} links to {target!r}")
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            raise ValueError(f"{name!r} links out of its folder, to {target!r}")


def _facts(
    recipe: ArtefactRecipe, pin: CollectionPin, found: Mapping[str, Digested]
) -> CollectionFacts:
    name = f"collections/{file_name(pin)}"
    try:
        facts = collection_facts(found[name].location)
    except ValueError as error:
        raise PackageRefused(artefact=recipe.name, file=name, reason=f"{error}.") from error
    if (facts.name, facts.version) != (pin.name, pin.version):
        reason = _("It is {name} {version}.").format(name=facts.name, version=facts.version)
        raise PackageRefused(artefact=recipe.name, file=name, reason=reason)
    return facts


def _origins(recipe: ArtefactRecipe, source: AnsibleSource, desk: Desk) -> dict[str, str]:
    """Where each file of the artefact is to be had: from the recipe, the lock, or the server.

    The server is not asked for a file that the cache has.
    """
    origins = {f"roles/{role.name}.tar.gz": role.url for role in source.roles}
    locked = desk.locked(recipe)
    if locked:
        origins |= {file.path: file.origin for file in locked.files if file.path not in origins}
    title = _("Asking {server}").format(server=source.server)
    with (
        Web(desk.cache) as web,
        desk.progress.task(title, len(source.collections), "items") as task,
    ):
        for pin in source.collections:
            path = f"collections/{file_name(pin)}"
            namespace, _dot, name = pin.name.partition(".")
            page = f"{source.server.rstrip('/')}/{_INDEX}/{namespace}/{name}"
            if path not in origins:
                answered = desk.cache.make(
                    "galaxy",
                    {"page": page, "version": pin.version, "sha256": pin.sha256},
                    lambda out, page=page, pin=pin: _write(  # type: ignore[misc]
                        out / "url", _ask(web, source, pin, f"{page}/versions/{pin.version}/")
                    ),
                )
                origins[path] = (answered / "url").read_text()
            task.advance(1)
    return origins


def _ask(web: Web, source: AnsibleSource, pin: CollectionPin, page: str) -> str:
    """A version's ``download_url``. Raises ``SourceRefused`` if the answer is another's."""
    answer: Any = web.read_json(page, f"{pin.name} {pin.version}").value
    try:
        url, digest = answer["download_url"], answer["artifact"]["sha256"]
    except (KeyError, TypeError):
        url, digest = None, None
    if not isinstance(url, str):
        reason = _("Its answer names no archive.")
    elif digest != pin.sha256:
        reason = _("There it has the SHA-256 {digest}, not the one pinned.").format(digest=digest)
    else:
        return urljoin(page, url)
    raise SourceRefused(file=f"{pin.name} {pin.version}", host=source.server, reason=reason)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
