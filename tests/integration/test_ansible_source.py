"""Ansible collections and roles: built, downloaded and installed by the real ansible-galaxy."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from galaxy_server import GALAXY, Galaxy, build_collection, build_role, galaxy
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.cache import BuildCache
from appliance.bundle.package_facts import collection_facts
from appliance.bundle.sources import ansible
from appliance.bundle.sources.desk import Desk, Made
from appliance.errors import (
    CollectionsIncomplete,
    DownloadMismatch,
    PackageRefused,
    SourceRefused,
)
from appliance.manifests.bundle import Platform
from appliance.manifests.recipe import AnsibleSource, ArtefactRecipe
from appliance.progress import Silent

pytestmark = pytest.mark.skipif(not GALAXY.is_file(), reason="ansible-core is not installed")

LINUX = Platform(python="3.11", system="linux", machine="x86_64")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("galaxy")
    build_collection(folder, "acme.base", "1.2.0")
    build_collection(folder, "acme.web", "2.0.1", acme__base=">=1.1.0,<2.0.0")
    build_role(folder / "shelf" / "clock.tar.gz")
    return folder / "shelf"


def collection(shelf: Path, name: str, version: str) -> dict[str, str]:
    path = shelf / f"{name.replace('.', '-')}-{version}.tar.gz"
    return {"name": name, "version": version, "sha256": sha256(path)}


def recipe_of(server: Galaxy, *collections: dict[str, str], **more: Any) -> ArtefactRecipe:
    source = {"type": "ansible", "server": server.uri, "collections": collections, **more}
    return ArtefactRecipe.model_validate(
        {"kind": "collections", "name": "playbooks", "version": "1", "licence": "GPL-3.0-or-later",
         "source": source}
    )  # fmt: skip


def make(recipe: ArtefactRecipe, folder: Path) -> Made:
    assert isinstance(recipe.source, AnsibleSource)
    desk = Desk(folder / "bundle.yaml", LINUX, BuildCache(folder / "cache"), 0, Silent())
    return ansible.make(recipe, recipe.source, desk)


def run_galaxy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ANSIBLE_HOME": str(folder / ".ansible"), "HOME": str(folder),
                   "NO_PROXY": "127.0.0.1"}  # fmt: skip
    return subprocess.run(
        [GALAXY, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_real_client_takes_the_test_s_server_for_a_galaxy(shelf: Path, tmp_path: Path) -> None:
    with galaxy(shelf) as server:
        done = run_galaxy(
            tmp_path, "collection", "download", "-s", server.uri, "-p", "got", "acme.web:2.0.1"
        )
    assert done.returncode == 0, done.stderr
    for name in ("acme-base-1.2.0.tar.gz", "acme-web-2.0.1.tar.gz"):
        assert sha256(tmp_path / "got" / name) == sha256(shelf / name)


def test_a_machine_without_a_network_installs_from_it(shelf: Path, tmp_path: Path) -> None:
    with galaxy(shelf) as server:
        role = {"name": "clock", "url": f"{server.uri}/files/clock.tar.gz",
                "sha256": sha256(shelf / "clock.tar.gz")}  # fmt: skip
        pins = [collection(shelf, "acme.web", "2.0.1"), collection(shelf, "acme.base", "1.2.0")]
        recipe = recipe_of(server, *pins, roles=[role])
        made = make(recipe, tmp_path)
        asked = len(server.asked)
        again = make(recipe, tmp_path)
        assert len(server.asked) == asked
        (tmp_path / "other").mkdir()
        elsewhere = make(recipe, tmp_path / "other")
    for other in (again, elsewhere):
        assert [(f.path, f.content.hex, f.origin) for f in other.files] == [
            (f.path, f.content.hex, f.origin) for f in made.files
        ]
    assert {file.path: file.origin.removeprefix(server.uri) for file in made.files} == {
        "collections/acme-base-1.2.0.tar.gz": "/files/acme-base-1.2.0.tar.gz",
        "collections/acme-web-2.0.1.tar.gz": "/files/acme-web-2.0.1.tar.gz",
        "requirements.yml": "",
        "roles/clock.tar.gz": "/files/clock.tar.gz",
    }
    artefact = tmp_path / "artefact"
    for file in made.files:
        target = artefact / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.content.location, target)
    done = run_galaxy(
        artefact, "collection", "install", "--offline", "-r", "requirements.yml", "-p", "installed"
    )
    assert done.returncode == 0, done.stderr
    installed = artefact / "installed" / "ansible_collections" / "acme"
    assert (installed / "web/MANIFEST.json").is_file() and (installed / "base/README.md").is_file()
    done = run_galaxy(
        artefact, "role", "install", "-r", "requirements.yml", "-p", "roles-installed"
    )
    assert done.returncode == 0, done.stderr
    assert (artefact / "roles-installed" / "clock" / "tasks" / "main.yml").is_file()
    lint = subprocess.run(
        [sys.executable, "-m", "ansiblelint", "--offline", "-q", "requirements.yml"],
        cwd=artefact, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_what_is_not_closed_is_refused_with_the_list(shelf: Path, tmp_path: Path) -> None:
    with galaxy(shelf) as server, pytest.raises(CollectionsIncomplete) as caught:
        make(recipe_of(server, collection(shelf, "acme.web", "2.0.1")), tmp_path)
    assert "acme.web 2.0.1 → acme.base >=1.1.0,<2.0.0" in caught.value.values["reason"]


def test_another_digest_than_the_pinned_one_is_refused(shelf: Path, tmp_path: Path) -> None:
    pin = collection(shelf, "acme.base", "1.2.0") | {"sha256": "0" * 64}
    with galaxy(shelf) as server:
        with pytest.raises(SourceRefused) as caught:
            make(recipe_of(server, pin), tmp_path)
        assert "not the one pinned" in caught.value.values["reason"]
        server.lies["acme-base-1.2.0.tar.gz"] = "0" * 64  # the server agrees; the file does not
        with pytest.raises(DownloadMismatch):
            make(recipe_of(server, pin), tmp_path)


def test_an_archive_of_another_collection_is_refused(shelf: Path, tmp_path: Path) -> None:
    other = tmp_path / "shelf"
    other.mkdir()
    shutil.copy(shelf / "acme-base-1.2.0.tar.gz", other / "acme-base-9.9.9.tar.gz")
    pin = collection(other, "acme.base", "9.9.9")
    with galaxy(other) as server, pytest.raises(PackageRefused) as caught:
        make(recipe_of(server, pin), tmp_path)
    assert "acme.base 1.2.0" in caught.value.values["reason"]


# --- archives -------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def archive_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path


ROLE = ArtefactRecipe.model_validate(
    {
        "kind": "collections", "name": "playbooks", "version": "1", "licence": "MIT",
        "source": {
            "type": "ansible",
            "roles": [{"name": "r", "url": "https://example.invalid/r", "sha256": "0" * 64}],
        },
    }
)  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        member("/etc/passwd"),
        member("../outside"),
        member("a/../../outside"),
        member("a", tarfile.SYMTYPE, "/etc/passwd"),
        member("a/b", tarfile.SYMTYPE, "../../outside"),
        member("a/b", tarfile.SYMTYPE, "c/../../../outside"),
        member("a/b", tarfile.LNKTYPE, "../outside"),
        member("a", tarfile.FIFOTYPE),
        member("a", tarfile.CHRTYPE),
        member("a\\b"),
    ],
    ids=lambda bad: f"{bad.name}-{bad.linkname}",
)
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    path = archive_of(tmp_path / "a.tar.gz", member("fine"), bad)
    with pytest.raises(PackageRefused) as caught:
        ansible.check_archive(ROLE, "roles/r.tar.gz", path)
    assert caught.value.values["file"] == "roles/r.tar.gz"


def test_links_that_stay_inside_are_fine_and_truncation_is_not(tmp_path: Path) -> None:
    path = archive_of(
        tmp_path / "a.tar.gz",
        member("./", tarfile.DIRTYPE),
        member("./a/b/c"),
        member("./a/b/d", tarfile.SYMTYPE, "../../a/b/c"),
        member("a/e", tarfile.LNKTYPE, "a/b/c"),
    )
    ansible.check_archive(ROLE, "roles/r.tar.gz", path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PackageRefused):
        ansible.check_archive(ROLE, "roles/r.tar.gz", path)


def test_an_archive_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ansible, "MAX_UNPACKED", 1 << 20)
    big = member("big")
    big.size = (1 << 20) + 1
    with pytest.raises(PackageRefused, match=r"r\.tar\.gz"):
        ansible.check_archive(ROLE, "roles/r.tar.gz", archive_of(tmp_path / "a.tar.gz", big))


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    header = member("pax", tarfile.XHDTYPE)
    header.size = 1 << 33
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    with pytest.raises(PackageRefused) as caught:
        ansible.check_archive(ROLE, "roles/r.tar.gz", path)
    assert "8589934592 bytes" in caught.value.values["reason"]


# --- versions and facts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "good"),
    [
        ("1.2.0", "*", True),
        ("1.2.0", ">=1.1.0,<2.0.0", True),
        ("2.0.0", ">=1.1.0,<2.0.0", False),
        ("1.2.0", "1.2.0", True),
        ("1.2.1", "1.2.0", False),
        ("1.2.0", "=1.2.0", True),
        ("1.2.0", "!=1.2.0", False),
        ("2.0.0-beta.1", ">=1.0.0", True),
        ("1.0.0", "~weird", False),
        ("not", ">=1.0.0", False),
    ],
)
def test_ranges_are_read_as_ansible_reads_them(version: str, wanted: str, good: bool) -> None:
    assert ansible.satisfies(version, wanted) is good


@given(st.tuples(*[st.integers(0, 9)] * 3), st.tuples(*[st.integers(0, 9)] * 3),
       st.sampled_from([">=", "<=", ">", "<", "==", "!="]))  # fmt: skip
def test_ranges_agree_with_ansible_s_own(
    have: tuple[int, int, int], want: tuple[int, int, int], operator: str
) -> None:
    from ansible.galaxy.dependency_resolution.versioning import meets_requirements

    version, bound = (".".join(map(str, v)) for v in (have, want))
    expected = meets_requirements(version, f"{operator}{bound}")
    assert ansible.satisfies(version, f"{operator}{bound}") is expected


def test_a_collection_tells_the_bill_what_it_is(shelf: Path, tmp_path: Path) -> None:
    facts = collection_facts(shelf / "acme-web-2.0.1.tar.gz")
    assert (facts.name, facts.version) == ("acme.web", "2.0.1")
    assert facts.licences == ("GPL-3.0-or-later",)
    assert facts.dependencies == {"acme.base": ">=1.1.0,<2.0.0"}
    assert str(facts.purl) == "pkg:generic/acme/web@2.0.1"
    with pytest.raises(ValueError, match=r"MANIFEST\.json"):
        collection_facts(archive_of(tmp_path / "a.tar.gz", member("x")))
