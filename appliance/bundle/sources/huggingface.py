"""A snapshot of a hub repository at one commit, over the hub's HTTP API.

* ``GET /api/models/{repo}/revision/{revision}``: the commit a branch or tag stands for (``sha``).
* ``GET /api/models/{repo}/tree/{commit}?recursive=true``: its files, in pages that ``Link`` names
  (RFC 8288); each has the git object id, and a file kept by LFS its SHA-256 and true size.
* ``GET /{repo}/resolve/{commit}/{path}``: a file; the large ones redirect to a content network.

Every file is fetched against one of those digests, and its SHA-256 goes into the lock: from then on
neither the API nor the commit's name is believed, or asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from appliance.bundle.sources.desk import Desk, Made, MadeFile
from appliance.bundle.sources.download import (
    GitBlob,
    Sha256,
    Wanted,
    Web,
    origin_of,
)
from appliance.bundle.sources.tokens import token_for
from appliance.bundle.sources.urls import refuse
from appliance.bundle.sources.weights import refusal_of_content, refusal_of_name
from appliance.errors import SourceRefused
from appliance.i18n import _
from appliance.manifests.bundle import check_path
from appliance.manifests.bundle_lock import LockedArtefact
from appliance.manifests.recipe import ArtefactRecipe, HuggingfaceSource

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PAGES = 1000


def make(recipe: ArtefactRecipe, source: HuggingfaceSource, desk: Desk) -> Made:
    """Resolve (unless locked), fetch what the cache lacks, check the weights.

    Raises what :meth:`Web.fetch_all` raises, ``WeightsRefused``, ``TokenMissing``, and
    ``SourceMissing`` if the patterns leave nothing.
    """
    locked = desk.locked(recipe)
    with Web(desk.cache, token_for(recipe, source, source.endpoint, desk)) as web:
        if locked is not None and _COMMIT.fullmatch(locked.inputs.get("commit", "")):
            commit = locked.inputs["commit"]
            wanted = list(_as_locked(source, commit, locked))
        else:
            commit = _commit(source, web)
            desk.progress.say(
                _("{repo} at {revision} is commit {commit}").format(
                    repo=source.repo, revision=source.revision, commit=commit
                )
            )
            wanted = selected(_listed(source, commit, web), source.allow, source.deny)
        if not wanted:
            where = desk.recipe
            raise desk.missing(recipe.name, where, _("the patterns leave no file to take."))
        for file in wanted:
            refuse(recipe, file.name, refusal_of_name(file.name, recipe.kind), desk)
        title = _("Fetching {count} files of {name}").format(count=len(wanted), name=source.repo)
        contents = web.fetch_all(wanted, desk, title)
    made = tuple(
        MadeFile(file.name, content, file.url)
        for file, content in zip(wanted, contents, strict=True)
    )
    for each in made:
        reason = refusal_of_content(each.path, each.content.location, recipe.kind)
        refuse(recipe, each.path, reason, desk)
    attributes = {"source": f"huggingface:{source.repo}@{commit}"}
    return Made(made, attributes, {"commit": commit})


def selected(files: Iterable[Wanted], allow: Sequence[str], deny: Sequence[str]) -> list[Wanted]:
    """The files one of ``allow`` (if there is any) and none of ``deny`` fits, sorted by path.

    A pattern that ends in ``/`` means all below that folder, as the hub's own client has it.
    """
    allow, deny = ([f"{p}*" if p.endswith("/") else p for p in each] for each in (allow, deny))
    return sorted(
        (
            file
            for file in files
            if (not allow or any(fnmatchcase(file.name, pattern) for pattern in allow))
            and not any(fnmatchcase(file.name, pattern) for pattern in deny)
        ),
        key=lambda file: file.name,
    )


def _as_locked(source: HuggingfaceSource, commit: str, locked: LockedArtefact) -> Iterator[Wanted]:
    # The address is made anew, not taken from the lock: the token goes to the recipe's endpoint.
    for file in locked.files:
        url = _address(source, commit, file.path)
        yield Wanted(file.path, url, Sha256(file.sha256), file.size)


def _api(source: HuggingfaceSource) -> str:
    return f"{source.endpoint.rstrip('/')}/api/{source.repo_type}s/{source.repo}"


def _address(source: HuggingfaceSource, commit: str, path: str) -> str:
    folder = "datasets/" if source.repo_type == "dataset" else ""
    base = source.endpoint.rstrip("/")
    return f"{base}/{folder}{source.repo}/resolve/{commit}/{quote(path)}"


def _commit(source: HuggingfaceSource, web: Web) -> str:
    url = f"{_api(source)}/revision/{quote(source.revision, safe='')}"
    answer = web.read_json(url, source.repo).value
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _not_a_hub(source, _("It names no commit for {rev}.").format(rev=source.revision))
    return commit


def _listed(source: HuggingfaceSource, commit: str, web: Web) -> Iterator[Wanted]:
    url: str | None = f"{_api(source)}/tree/{commit}?recursive=true"
    for _page in range(_PAGES):
        if url is None:
            return
        answer = web.read_json(url, source.repo)
        if not isinstance(answer.value, list):
            raise _not_a_hub(source, _("Its list of files is none."))
        for entry in answer.value:
            if not isinstance(entry, dict) or entry.get("type") != "directory":
                yield _wanted(source, commit, entry)
        url = answer.next
        if url is not None and origin_of(url) != origin_of(source.endpoint):
            raise _not_a_hub(source, _("Its list of files goes on elsewhere."))
    raise _not_a_hub(source, _("Its list of files does not end."))


def _wanted(source: HuggingfaceSource, commit: str, entry: Any) -> Wanted:
    """One entry of the tree as a file to fetch. Raises :class:`SourceRefused`."""
    match entry:
        case {"type": "file", "path": str(path), "lfs": {"oid": str(oid), "size": int(size)}}:
            digest = oid.removeprefix("sha256:")
            content: Sha256 | GitBlob | None = Sha256(digest) if _SHA256.fullmatch(digest) else None
        case {"type": "file", "path": str(path), "size": int(size), "oid": str(oid)}:
            content = GitBlob(oid, size) if _COMMIT.fullmatch(oid) else None
        case _:
            raise _not_a_hub(source, _("It lists something that is no file."))
    try:
        check_path(path)
    except ValueError as error:
        raise _not_a_hub(source, f"{error}.") from error
    if content is None or size < 0:
        raise _not_a_hub(source, _("It does not say what is in {path}.").format(path=path))
    return Wanted(path, _address(source, commit, path), content, size)


def _not_a_hub(source: HuggingfaceSource, reason: str) -> SourceRefused:
    host = origin_of(source.endpoint).partition("://")[2]
    return SourceRefused(file=source.repo, host=host, reason=reason)
