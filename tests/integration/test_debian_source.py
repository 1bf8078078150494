"""Debian packages into an offline repository: through the real apt on both sides of the gap."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from debian_mirror import Gpg, Mirror, served
from securesystemslib.signer import CryptoSigner

from appliance.bundle import locking
from appliance.bundle.build import build
from appliance.bundle.cache import BuildCache
from appliance.bundle.locking import LockUse
from appliance.bundle.making import lock
from appliance.bundle.package_facts import deb_facts
from appliance.bundle.sources import debian
from appliance.bundle.sources.desk import Desk, Made
from appliance.errors import (
    ApplianceError,
    AptMissing,
    ArchiveUntrusted,
    DownloadMismatch,
    PackageRefused,
    PackagesUnresolved,
    SourceMissing,
    SourceRefused,
    SourceUnreachable,
)
from appliance.manifests.bundle import Platform
from appliance.manifests.bundle_lock import BundleLock, LockedArtefact, LockedFile
from appliance.manifests.recipe import ArtefactRecipe, DebianSource
from appliance.progress import Silent
from appliance.trust.keys import new_tuf_key
from appliance.trust.repository import Repository, Threshold

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("apt-get", "dpkg-deb", "gpg", "gpgv")),
    reason="apt-get, dpkg-deb, gpg and gpgv are needed",
)

EPOCH = 1_700_000_000
LINUX = Platform(python="3.11", system="linux", machine="x86_64")
SIGNER = CryptoSigner(new_tuf_key())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gpg, Gpg]]:
    folder = tmp_path_factory.mktemp("gpg")
    both = Gpg(folder / "one"), Gpg(folder / "other")
    yield both
    for each in both:
        each.close()


@pytest.fixture
def mirror(tmp_path: Path, keys: tuple[Gpg, Gpg]) -> Mirror:
    made = Mirror(tmp_path / "mirror", keys[0])
    made.add("libbase", "1.0")
    made.add("libfoo", "1:1.9")
    made.add("libfoo", "1:2.1~rc1+b1", Depends="libbase (>= 1.0)")
    made.add("big-httpd", "1.0", Depends="not-in-the-archive", Provides="httpd")
    made.add("mini-httpd", "0.9", "all", Provides="httpd")
    made.add("app", "3.0", Depends="libfoo (>= 1:2.0), big-httpd | mini-httpd",
             Pre_Depends="libbase", Recommends="unwanted")  # fmt: skip
    made.add("unwanted", "1.0")
    made.publish()
    keys[0].keyring(tmp_path / "archive.gpg")
    return made


class Site:
    """A desk, and what its artefact becomes on a node."""

    def __init__(self, folder: Path, uri: str, **source: Any) -> None:
        self.folder = folder
        self.repository = folder / "node" / "packages"
        part = {
            "type": "debian",
            "release": "stable",
            "packages": ["app"],
            "sources": [{"uri": uri, "keyring": "archive.gpg"} | source.pop("archive", {})],
            "location": str(self.repository),
            **source,
        }
        self.recipe = ArtefactRecipe.model_validate(
            {"kind": "packages", "name": "os", "version": "1", "licence": "GPL-2.0-or-later",
             "source": part}
        )  # fmt: skip
        self.desk = Desk(
            folder / "bundle.yaml", LINUX, BuildCache(folder / "cache"), EPOCH, Silent(),
            release_signer=lambda: SIGNER,
        )  # fmt: skip

    def make(self) -> Made:
        assert isinstance(self.recipe.source, DebianSource)
        return debian.make(self.recipe, self.recipe.source, self.desk)

    def lay_out(self, made: Made) -> None:
        for file in made.files:
            target = self.repository / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.content.location, target)

    def apt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """apt of a node that has nothing but this repository, through the sources file in it."""
        root = self.folder / "node" / "root"
        for name in (
            "etc/apt/sources.list.d", "etc/apt/preferences.d", "etc/apt/apt.conf.d",
            "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt",
            "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers",
        ):  # fmt: skip
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("var/lib/dpkg/status", "var/lib/dpkg/available"):
            (root / name).touch()
        shutil.copyfile(
            self.repository / "sovctl.sources", root / "etc/apt/sources.list.d/sovctl.sources"
        )
        conf = root / "apt.conf"
        conf.write_text(
            f'Dir "{root}/";\nDir::State::status "{root}/var/lib/dpkg/status";\n'
            'APT::Architecture "amd64";\nAPT::Architectures {"amd64";};\n'
            'APT::Sandbox::User "root";\nAPT::Update::Error-Mode "any";\n'
            f'DPkg::Options {{"--root={root}"; "--force-not-root"; "--log=/dev/null";}};\n'
            'Acquire::Languages "none";\n'
        )
        environment = {**os.environ, "APT_CONFIG": str(conf), "LC_ALL": "C.UTF-8",
                       "DEBIAN_FRONTEND": "noninteractive"}  # fmt: skip
        return subprocess.run(
            ["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False
        )

    def dpkg_status(self) -> dict[str, str]:
        text = (self.folder / "node/root/var/lib/dpkg/status").read_text()
        found = re.findall(r"^Package: (\S+)\nStatus: (\S+ \S+ \S+)$", text, re.MULTILINE)
        return dict(found)


def paths(made: Made) -> list[str]:
    return [file.path for file in made.files]


def content(made: Made) -> dict[str, str]:
    return {file.path: file.content.hex for file in made.files}


SET = [
    "pool/app_3.0_amd64.deb",
    "pool/libbase_1.0_amd64.deb",
    "pool/libfoo_2.1~rc1+b1_amd64.deb",
    "pool/mini-httpd_0.9_all.deb",
]


def test_a_node_without_a_network_installs_from_it(mirror: Mirror, tmp_path: Path) -> None:
    with served(mirror.folder) as (uri, _asked):
        site = Site(tmp_path, uri)
        made = site.make()
    assert paths(made) == [
        "dists/stable/InRelease",
        "dists/stable/Release",
        "dists/stable/Release.gpg",
        "dists/stable/main/binary-amd64/Packages",
        *SET,
        "sovctl-archive.asc",
        "sovctl.sources",
    ]
    assert [f.origin for f in made.files if f.path == SET[0]] == [f"{uri}/pool/app_3.0_amd64.deb"]
    assert made.attributes == {"release": "stable", "architecture": "amd64", "packages": "4"}
    site.lay_out(made)
    assert "rusted" not in (site.repository / "sovctl.sources").read_text()
    done = site.apt("update")
    assert done.returncode == 0 and "W:" not in done.stderr, done.stderr
    done = site.apt("install", "--yes", "app")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.dpkg_status() == dict.fromkeys(
        ("app", "libbase", "libfoo", "mini-httpd"), "install ok installed"
    )


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("dists/stable/InRelease", "update"),
        ("dists/stable/main/binary-amd64/Packages", "update"),
        ("pool/app_3.0_amd64.deb", "install"),
    ],
)
def test_apt_takes_nothing_that_was_changed(
    mirror: Mirror, tmp_path: Path, path: str, step: str
) -> None:
    with served(mirror.folder) as (uri, _asked):
        site = Site(tmp_path, uri)
        site.lay_out(site.make())
    changed = site.repository / path
    data = changed.read_bytes()
    where = data.index(b"stable") if "InRelease" in path else len(data) // 2
    changed.write_bytes(data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :])
    done = site.apt("update")
    assert (done.returncode == 0) == (step == "install"), done.stderr
    if step == "install":
        done = site.apt("install", "--yes", "app")
        assert done.returncode != 0 and "Hash Sum mismatch" in done.stderr
    assert not site.dpkg_status()


def test_apt_takes_nothing_another_key_has_signed(mirror: Mirror, tmp_path: Path) -> None:
    with served(mirror.folder) as (uri, _asked):
        site = Site(tmp_path, uri)
        site.lay_out(site.make())
        other = CryptoSigner(new_tuf_key())
        site.desk = replace(site.desk, release_signer=lambda: other)
        foreign = site.make()
    for file in foreign.files:
        if file.path.endswith(("InRelease", "Release.gpg")):
            shutil.copyfile(file.content.location, site.repository / file.path)
    done = site.apt("update")
    assert done.returncode != 0 and "NO_PUBKEY" in done.stderr


# --- upstream -------------------------------------------------------------------------------------


def wrong_key(mirror: Mirror, other: Gpg) -> None:
    mirror.publish(signer=other)


def unsigned(mirror: Mirror, other: Gpg) -> None:
    inrelease = mirror.folder / "dists/stable/InRelease"
    text = inrelease.read_text().partition("\n\n")[2].partition("-----BEGIN PGP")[0]
    inrelease.unlink()
    inrelease.with_name("Release").write_text(text)


def changed_index(mirror: Mirror, other: Gpg) -> None:
    index = mirror.folder / "dists/stable/main/binary-amd64/Packages"
    index.write_bytes(index.read_bytes().replace(b"Version: 3.0", b"Version: 4.0"))


def expired(mirror: Mirror, other: Gpg) -> None:
    mirror.publish(valid_until=1_600_100_000)


def changed_package(mirror: Mirror, other: Gpg) -> None:
    path = mirror.folder / SET[0]
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def no_release(mirror: Mirror, other: Gpg) -> None:
    shutil.rmtree(mirror.folder / "dists")


def foreign_architecture(mirror: Mirror, other: Gpg) -> None:
    """The index says amd64, the package itself something else."""
    mirror.add("trojan", "1.0", "arm64")
    mirror.stanzas[-1] = mirror.stanzas[-1].replace("arm64", "amd64", 1)
    index = next(n for n, s in enumerate(mirror.stanzas) if s.startswith("Package: app\n"))
    mirror.stanzas[index] = mirror.stanzas[index].replace(
        "Depends: libfoo", "Depends: trojan, libfoo"
    )
    mirror.publish()


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        (wrong_key, ArchiveUntrusted),
        (unsigned, ArchiveUntrusted),
        (changed_index, ArchiveUntrusted),
        (expired, ArchiveUntrusted),
        (changed_package, DownloadMismatch),
        (no_release, SourceRefused),
        (foreign_architecture, PackageRefused),
    ],
)
def test_an_archive_that_was_tampered_with_is_refused(
    mirror: Mirror,
    tmp_path: Path,
    keys: tuple[Gpg, Gpg],
    attack: Callable[[Mirror, Gpg], None],
    error: type[ApplianceError],
) -> None:
    attack(mirror, keys[1])
    with served(mirror.folder) as (uri, _asked), pytest.raises(error) as caught:
        Site(tmp_path, uri).make()
    assert caught.value.sentences()[1]
    if error is ArchiveUntrusted:
        assert caught.value.values["archive"] == uri


def test_a_snapshot_of_the_past_is_taken_if_the_recipe_says_so(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.publish(valid_until=1_600_100_000)
    with served(mirror.folder) as (uri, _asked):
        made = Site(tmp_path, uri, archive={"valid_until": "ignored"}).make()
    assert paths(made)[4:8] == SET


def test_what_cannot_be_installed_is_named(mirror: Mirror, tmp_path: Path) -> None:
    with served(mirror.folder) as (uri, _asked):
        with pytest.raises(PackagesUnresolved) as caught:
            Site(tmp_path, uri, packages=["big-httpd"]).make()
        assert "not-in-the-archive" in caught.value.values["reason"]
        with pytest.raises(PackagesUnresolved) as caught:
            Site(tmp_path, uri, packages=["app", "no.such"]).make()
        assert "no.such" in caught.value.values["reason"]
        with pytest.raises(SourceMissing, match="os"):
            Site(tmp_path, uri, archive={"keyring": "none.gpg"}).make()


def test_no_archive_and_no_apt_are_plain_errors(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(mirror.folder) as (uri, _asked):
        pass
    with pytest.raises(SourceUnreachable, match=r"127\.0\.0\.1"):
        Site(tmp_path, uri).make()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AptMissing):
        Site(tmp_path, uri).make()


# --- again ----------------------------------------------------------------------------------------


def test_the_same_set_is_the_same_bytes_and_needs_no_network_twice(
    mirror: Mirror, tmp_path: Path
) -> None:
    with served(mirror.folder) as (uri, asked):
        first = Site(tmp_path, uri)
        made = first.make()
        elsewhere = tmp_path / "else where"
        elsewhere.mkdir()
        shutil.copy(tmp_path / "archive.gpg", elsewhere)
        second = Site(elsewhere, uri, location=str(first.repository))
        assert content(second.make()) == content(made)
        before = len(asked)
        mirror.add("libfoo", "1:2.2", Depends="libbase")
        mirror.publish()
        assert content(first.make()) == content(made)
        assert len(asked) == before
    assert content(first.make()) == content(made)
    with served(mirror.folder) as (uri, _asked):
        moved = Site(tmp_path, uri)
        assert isinstance(moved.recipe.source, DebianSource)
        assert "pool/libfoo_2.2_amd64.deb" in paths(moved.make())


def lock_of(site: Site, made: Made) -> BundleLock:
    files = tuple(
        LockedFile(path=f.path, sha256=f.content.hex, size=f.content.size, origin=f.origin)
        for f in sorted(made.files, key=lambda f: f.path)
        if f.path not in made.unpinned
    )
    return BundleLock(
        schema_version=1,
        recipe="sha256:" + "0" * 64,
        created="2023-11-14T22:13:20Z",
        artefacts=(
            LockedArtefact(
                kind="packages", name="os", recipe=site.recipe.digest, inputs=dict(made.inputs),
                files=files,
            ),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("base", [[], ["libbase"]])
def test_a_lock_made_without_keys_is_followed_when_the_archive_moved_on(
    mirror: Mirror, tmp_path: Path, base: list[str]
) -> None:
    with served(mirror.folder) as (uri, _asked):
        site = Site(tmp_path, uri, base=base)
        site.desk = replace(site.desk, release_signer=None)
        made = site.make()
        lock = lock_of(site, made)
        assert not [path for path in paths(made) if "InRelease" in path or path.endswith(".asc")]
        mirror.add("libfoo", "1:2.2", Depends="libbase")
        mirror.publish()
        site.desk = replace(
            site.desk, cache=BuildCache(tmp_path / "empty"), lock=lock,
            release_signer=lambda: SIGNER,
        )  # fmt: skip
        again = site.make()
        assert isinstance(site.recipe.source, DebianSource)
    pinned = {file.path: file.sha256 for file in lock.artefacts[0].files}
    assert {p: h for p, h in content(again).items() if p in pinned} == pinned
    assert set(paths(again)) - set(pinned) == again.unpinned
    assert again.inputs == made.inputs


def test_forgetting_asks_the_archive_again(mirror: Mirror, tmp_path: Path) -> None:
    with served(mirror.folder) as (uri, _asked):
        site = Site(tmp_path, uri)
        site.make()
        mirror.add("libfoo", "1:2.2", Depends="libbase")
        mirror.publish()
        assert isinstance(site.recipe.source, DebianSource)
        debian.forget(site.recipe, site.recipe.source, site.desk)
        assert "pool/libfoo_2.2_amd64.deb" in paths(site.make())


def test_what_the_target_has_is_left_out_and_named(mirror: Mirror, tmp_path: Path) -> None:
    with served(mirror.folder) as (uri, _asked):
        site = Site(tmp_path, uri, base=["libfoo"])
        made = site.make()
    assert [path for path in paths(made) if path.endswith(".deb")] == [SET[0], SET[3]]
    site.lay_out(made)
    assumed = (site.repository / "assumed-packages").read_text()
    assert assumed == "libbase 1.0\nlibfoo 1:2.1~rc1+b1\n"


RECIPE = """
name: node
version: 1.0.0
platform: {python: "3.11", system: linux, machine: x86_64}
artefacts:
  - kind: packages
    name: os
    version: "1"
    licence: GPL-2.0-or-later
    source:
      type: debian
      release: stable
      packages: [app]
      base: [libbase]
      sources: [{uri: "URI", keyring: ../archive.gpg}]
"""


def test_one_lock_is_one_bundle(mirror: Mirror, tmp_path: Path) -> None:
    supplier = Repository.create_demo(tmp_path / "keys", Threshold(1, 1))
    digests = set()
    with served(mirror.folder) as (uri, _asked):
        for name in ("desk", "an other desk"):
            folder = tmp_path / name
            folder.mkdir()
            recipe, cache = folder / "bundle.yaml", BuildCache(folder / "cache")
            recipe.write_text(RECIPE.replace("URI", uri))
            if not digests:
                found = lock(recipe, None, cache, Silent())
                mirror.add("libfoo", "1:2.2", Depends="libbase")
                mirror.publish()
            locking.write(found, locking.place(recipe))
            out = folder / "node.tar"
            built = build(recipe, supplier, out, cache, Silent(), use=LockUse.DEMANDED)
            digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
        assert len(digests) == 1 and built.as_locked
        files = {file.path for file in built.manifest.of_kind("packages")[0].files}
        assert {SET[2], "assumed-packages", "sovctl.sources"} <= files
        renewed = lock(recipe, None, cache, Silent())  # what 'bundle lock --upgrade' does
    upgraded = renewed.find("packages", "os")
    assert upgraded and "pool/libfoo_2.2_amd64.deb" in {file.path for file in upgraded.files}


# --- keys and facts -------------------------------------------------------------------------------


def test_the_supplier_s_key_is_made_once_and_kept_encrypted(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "keys", Threshold(1, 1), lambda: b"secret")
    first = repository.release_signer().public_key
    path = tmp_path / "keys" / "keys" / "apt.pem"
    assert b"ENCRYPTED" in path.read_bytes() and path.stat().st_mode & 0o777 == 0o600
    again = Repository.open(tmp_path / "keys", lambda: b"secret")
    assert again.release_signer().public_key == first


def test_a_package_tells_the_bill_what_it_is(mirror: Mirror) -> None:
    facts = deb_facts(mirror.folder / SET[2], "bookworm")
    assert (facts.name, facts.version) == ("libfoo", "1:2.1~rc1+b1")
    assert facts.architecture == "amd64"
    assert facts.licences == ("Expat", "GPL-2+")
    assert facts.summary == "the package libfoo"
    assert facts.copyright.startswith("Format: ")
    assert str(facts.purl) == ("pkg:deb/debian/libfoo@1:2.1~rc1%2Bb1?arch=amd64&distro=bookworm")
    with pytest.raises(ValueError, match="archive"):
        deb_facts(mirror.folder / "dists/stable/InRelease")
