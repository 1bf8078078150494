"""A closed set of Debian packages as an offline apt repository with a signed ``Release``.

apt resolves the set against archives whose signature it verifies, with nothing installed but what
the recipe's ``base`` names (:mod:`~appliance.bundle.sources.apt`). Then apt is asked again: with
the finished repository as its only source, under our key, an install of every package of the set
has to succeed. So the set is closed because apt says so, not because we think so.

What a recipe resolved to is kept in the cache until :func:`forget` drops it, and a lock that has
the files is followed without resolving: an archive that moved on changes neither.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from appliance.bundle.cache import Digested, Inputs
from appliance.bundle.sources import archive
from appliance.bundle.sources.apt import AptRoot, AptSource, PlannedDeb, require
from appliance.bundle.sources.archive import Control, Entry
from appliance.bundle.sources.desk import Desk, Made, MadeFile, collect
from appliance.bundle.sources.download import Sha256, Wanted, Web
from appliance.errors import PackageRefused
from appliance.i18n import _
from appliance.manifests.recipe import ArtefactRecipe, DebianSource
from appliance.trust.keys import new_tuf_key
from appliance.trust.openpgp import ArchiveKey

FORMAT = 1  # part of the cache's keys: raise it when the files come out differently
USER_ID = "sovctl package archive"

_PER_KEY = 40  # assumed packages in one value of the lock


@dataclass(frozen=True)
class Resolution:
    """What a recipe stands for: files, and what is assumed to be installed (name → version).

    ``status`` is the dpkg status file of the latter; None where only a lock is known.
    """

    debs: tuple[PlannedDeb, ...]
    assumed: Mapping[str, str]
    status: bytes | None


def make(recipe: ArtefactRecipe, source: DebianSource, desk: Desk) -> Made:
    """Resolve, fetch, index, sign and prove.

    Raises :class:`AptMissing`, :class:`ArchiveUntrusted`, :class:`PackagesUnresolved`,
    :class:`PackageRefused`, ``SourceMissing`` (a keyring), and what fetching raises.
    """
    require("dpkg-deb", "dpkg")
    keyrings = {each.keyring: _keyring(recipe, each.keyring, desk) for each in source.sources}
    resolution = _locked(recipe, desk) or _resolved(source, keyrings, desk)
    title = _("Fetching {count} packages of {name}")
    wanted = [
        Wanted(deb.url.rpartition("/")[2], deb.url, Sha256(deb.sha256), deb.size)
        for deb in resolution.debs
    ]
    with Web(desk.cache) as web:
        contents = web.fetch_all(wanted, desk, title.format(count=len(wanted), name=recipe.name))
    repository = _repository(_Set(recipe, source, resolution, contents), desk)
    index = (repository / _index_path(source)).read_text(encoding="utf-8")
    pool = archive.pool_of(index)
    debs = tuple(
        MadeFile(pool[content.hex], content, deb.url)
        for deb, content in zip(resolution.debs, contents, strict=True)
    )
    texts = collect(repository, desk, _("Digesting {name}").format(name=recipe.name))
    return Made(
        tuple(sorted((*debs, *texts), key=lambda file: file.path)),
        {
            "release": source.release,
            "architecture": source.architecture,
            "packages": str(len(debs)),
        },
        _as_inputs(resolution.assumed)
        | {f"keyring.{n}": f"sha256:{keyrings[k][1]}" for n, k in enumerate(sorted(keyrings))},
        # These follow from the rest, the signing key and the date.
        frozenset(file.path for file in texts) - {_index_path(source), archive.ASSUMED_FILE},
    )


def forget(recipe: ArtefactRecipe, source: DebianSource, desk: Desk) -> None:
    """Drop what the recipe resolved to, so that the next :func:`make` asks the archives again."""
    keyrings = {each.keyring: _keyring(recipe, each.keyring, desk) for each in source.sources}
    desk.cache.forget("debian", _resolution_inputs(source, keyrings))


# --- which packages -------------------------------------------------------------------------------


def _locked(recipe: ArtefactRecipe, desk: Desk) -> Resolution | None:
    """What a lock says, if it says where every package is from."""
    locked = desk.locked(recipe)
    if locked is None:
        return None
    files = [file for file in locked.files if file.path.endswith(".deb")]
    if not files:
        return None
    debs = tuple(PlannedDeb(file.origin, file.sha256, file.size) for file in files)
    assumed: dict[str, str] = {}
    for key, value in locked.inputs.items():
        if key.startswith("assumed."):
            for pair in value.split():
                name, _equals, version = pair.partition("=")
                assumed[name] = version
    return Resolution(debs, assumed, None if assumed else b"")


def _as_inputs(assumed: Mapping[str, str]) -> dict[str, str]:
    pairs = [f"{name}={assumed[name]}" for name in sorted(assumed)]
    chunks = [pairs[i : i + _PER_KEY] for i in range(0, len(pairs), _PER_KEY)]
    return {f"assumed.{number:03}": " ".join(chunk) for number, chunk in enumerate(chunks)}


def _resolved(
    source: DebianSource, keyrings: Mapping[str, tuple[Path, str]], desk: Desk
) -> Resolution:
    """What the archives say, or said when they were asked for the same before."""

    def resolve(out: Path) -> None:
        with desk.cache.scratch() as scratch:
            resolution = _ask(source, keyrings, scratch, desk)
        debs = [asdict(deb) for deb in resolution.debs]
        said = {"debs": debs, "assumed": dict(resolution.assumed)}
        (out / "resolution.json").write_text(json.dumps(said, indent=1))
        (out / "status").write_bytes(resolution.status or b"")

    folder = desk.cache.make("debian", _resolution_inputs(source, keyrings), resolve)
    said = json.loads((folder / "resolution.json").read_text())
    debs = tuple(PlannedDeb(**deb) for deb in said["debs"])
    return Resolution(debs, said["assumed"], (folder / "status").read_bytes())


def _resolution_inputs(source: DebianSource, keyrings: Mapping[str, tuple[Path, str]]) -> Inputs:
    said = source.model_dump(mode="json", exclude={"location"})
    return {
        "format": FORMAT,
        "source": json.dumps(said, sort_keys=True),
        "keyrings": [digest for _path, digest in keyrings.values()],
    }


def _ask(
    source: DebianSource, keyrings: Mapping[str, tuple[Path, str]], scratch: Path, desk: Desk
) -> Resolution:
    archives = [
        AptSource(
            each.uri,
            each.suites or (source.release,),
            each.components,
            keyrings[each.keyring][0],
            each.valid_until == "enforced",
        )
        for each in source.sources
    ]
    status = b""
    assumed: dict[str, str] = {}
    if source.base:
        with AptRoot.below(scratch / "base", source.architecture, b"", desk) as apt:
            for each in archives:
                apt.add(each)
            apt.update()
            pins = apt.simulate([_selected(item) for item in source.base])
            assumed = dict(pins)
            status = archive.installed(apt.stanzas(pins))
    with AptRoot.below(scratch / "set", source.architecture, status, desk) as apt:
        for each in archives:
            apt.add(each)
        apt.update()
        debs = apt.plan(source.packages)
    return Resolution(tuple(sorted(debs, key=lambda deb: deb.url)), assumed, status)


def _selected(item: str) -> str:
    """A package's name, or ``priority:required`` as apt's pattern for it (apt-patterns(7))."""
    kind, colon, value = item.partition(":")
    return f"?{kind}({value})" if colon else item


def _keyring(recipe: ArtefactRecipe, name: str, desk: Desk) -> tuple[Path, str]:
    path = desk.path(name)
    try:
        with desk.progress.task(_("Reading a keyring"), None, "bytes") as task:
            return path, desk.cache.digest(path, task).hex
    except OSError as error:
        raise desk.missing(recipe.name, path, f"{error.strerror}.") from error


# --- the repository -------------------------------------------------------------------------------


def _index_path(source: DebianSource) -> str:
    component = f"{archive.COMPONENT}/binary-{source.architecture}"
    return f"dists/{source.release}/{component}/Packages"


@dataclass(frozen=True)
class _Set:
    """The packages of one artefact, fetched; ``contents`` are in the order of ``debs``."""

    recipe: ArtefactRecipe
    source: DebianSource
    resolution: Resolution
    contents: Sequence[Digested]


def _repository(packages: _Set, desk: Desk) -> Path:
    """The folder of everything but the packages themselves."""
    recipe, source, resolution = packages.recipe, packages.source, packages.resolution
    signer = desk.release_signer() if desk.release_signer else None
    inputs: Inputs = {
        "format": FORMAT,
        "name": recipe.name,
        "release": source.release,
        "architecture": source.architecture,
        "location": source.location,
        "epoch": desk.epoch,
        "key": signer.public_key.keyval["public"] if signer else "",
        "packages": sorted(content.hex for content in packages.contents),
        "assumed": [f"{name} {version}" for name, version in sorted(resolution.assumed.items())],
    }

    def publish(out: Path) -> None:
        index = archive.packages_index(_entries(packages, desk))
        release = archive.release_file(
            recipe.name, source.release, source.architecture, desk.epoch, index
        )
        # A lock is made without keys. The proof still goes the way a site goes: with a signature.
        key = ArchiveKey(signer or CryptoSigner(new_tuf_key()), USER_ID)
        dists = out / "dists" / source.release
        index_path = out / _index_path(source)
        index_path.parent.mkdir(parents=True)
        index_path.write_text(index, encoding="utf-8")
        (dists / "Release").write_bytes(release)
        (dists / "InRelease").write_bytes(key.clear_sign(release, desk.epoch))
        (dists / "Release.gpg").write_bytes(key.detach_sign(release, desk.epoch))
        certificate = key.certificate()
        (out / archive.KEY_FILE).write_bytes(certificate)
        (out / archive.SOURCES_FILE).write_text(
            archive.sources_file(source.location, source.release, source.architecture, certificate)
        )
        if resolution.assumed:
            (out / archive.ASSUMED_FILE).write_text(archive.assumed_file(resolution.assumed))
        _prove(source, resolution, index, out, desk)
        if signer is None:
            for path in (
                dists / "InRelease", dists / "Release.gpg",
                out / archive.KEY_FILE, out / archive.SOURCES_FILE,
            ):  # fmt: skip
                path.unlink()

    return desk.cache.make("apt-repository", inputs, publish)


def _entries(packages: _Set, desk: Desk) -> list[Entry]:
    recipe, source, contents = packages.recipe, packages.source, packages.contents
    entries = []
    title = _("Reading {count} packages").format(count=len(contents))
    with desk.progress.task(title, len(contents), "items") as task:
        for content in contents:
            done = subprocess.run(
                ["dpkg-deb", "--field", str(content.location)], capture_output=True, check=False
            )
            try:
                if done.returncode:
                    raise ValueError(done.stderr.decode(errors="replace").strip())
                control = Control.parse(done.stdout.decode())
                if control.architecture not in {source.architecture, "all"}:
                    raise ValueError(f"it is for {control.architecture}")
            except ValueError as error:
                raise PackageRefused(
                    artefact=recipe.name, file=content.location, reason=f"{error}."
                ) from error
            entries.append(Entry(control, content.hex, content.size))
            task.advance(1)
    return entries


def _prove(
    source: DebianSource, resolution: Resolution, index: str, folder: Path, desk: Desk
) -> None:
    """Have apt verify the repository and install all of it, with nothing else to take from."""
    status = resolution.status or b""
    key = folder / archive.KEY_FILE
    with (
        desk.cache.scratch() as scratch,
        AptRoot.below(scratch, source.architecture, status, desk) as apt,
    ):
        apt.add(AptSource(folder.as_uri(), (source.release,), (archive.COMPONENT,), key))
        apt.update()
        if resolution.status is not None:  # of a lock with a base, apt said so when it was made
            apt.simulate([f"{name}={version}" for name, version in _pins(index)])


def _pins(index: str) -> list[tuple[str, str]]:
    controls = [Control.parse(stanza) for stanza in index.split("\n\n") if stanza.strip()]
    return [(control.name, control.version) for control in controls]
