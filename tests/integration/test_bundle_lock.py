"""``bundle.lock`` through the real command: written, demanded, the same bytes from it anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, hub
from small_bundle import tiny_wheel

from appliance.bundle import locking
from appliance.bundle.cache import BuildCache
from appliance.bundle.making import manifest_of
from appliance.bundle.reader import BundleReader
from appliance.bundle.sources import wheelhouse
from appliance.bundle.sources.desk import Desk, Made
from appliance.errors import EnvironmentUnfit
from appliance.install.runtime import install_runtime, is_complete, pick
from appliance.layout import Home
from appliance.manifests.bundle import Platform
from appliance.manifests.bundle_lock import BundleLock
from appliance.manifests.document import load
from appliance.manifests.recipe import ArtefactRecipe, LocalBuild, PypiSource, Recipe
from appliance.progress import Silent
from appliance.store.releases import Release
from appliance.trust.repository import Repository, Threshold

CHECKOUT = Path(__file__).parents[2]

RECIPE = """
# {comment}
name: pinned
version: 1.0.0
platform: {{python: "3.11", system: linux, machine: x86_64}}
artefacts:
  - kind: model
    name: toy
    version: "1"
    licence: Apache-2.0
    source: {{type: huggingface, repo: acme/toy, endpoint: "{url}"}}
  - kind: wheelhouse
    name: runtime
    version: "1"
    licence: MIT
    source: {{type: pypi, lock: runtime.lock}}
  - kind: dataset
    name: rows
    version: "1"
    licence: CC0-1.0
    source: {{type: path, path: rows}}
  - kind: dataset
    name: more
    version: "1"
    licence: CC0-1.0
    source:
      type: url
      files: [{{url: "{url}/more.jsonl", sha256: {sha256}, path: more.jsonl}}]
"""


def safetensors(seed: int) -> bytes:
    size = 5000
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with hub() as running:
        running.repo("acme/toy").commit({"config.json": b"{}", "model.safetensors": safetensors(1)})
        running.files["/more.jsonl"] = b'{"prompt": "a", "completion": "b"}\n' * 100
        yield running


class Site:
    """A recipe's folder, a cache, and the command run in a process of its own."""

    def __init__(self, root: Path, server: Hub, keys: Path) -> None:
        self.root = root
        self.keys = keys
        self.folder = root / "recipe"
        self.recipe = self.folder / "bundle.yaml"
        self.lock = self.folder / "bundle.lock"
        (self.folder / "rows").mkdir(parents=True)
        shelf = root / "shelf"
        shelf.mkdir()
        for name in ("b.jsonl", "a.jsonl", "é.jsonl"):
            (self.folder / "rows" / name).write_text(f'{{"prompt": "{name}", "completion": "b"}}\n')
        lines = ["# locked: 2026-11-02T00:00:00Z"]
        for name in ("tinyone", "tinytwo"):
            file_name, data = tiny_wheel(name, "1.0")
            (shelf / file_name).write_bytes(data)
            lines.append(f"{name}==1.0 --hash=sha256:{hashlib.sha256(data).hexdigest()}")
        (self.folder / "runtime.lock").write_text("\n".join(lines) + "\n")
        self.url = server.url
        self.sha256 = hashlib.sha256(server.files["/more.jsonl"]).hexdigest()
        self.write_recipe()

    def write_recipe(self, comment: str = "a recipe", old: str = "", new: str = "") -> None:
        text = RECIPE.format(comment=comment, url=self.url, sha256=self.sha256)
        self.recipe.write_text(text.replace(old, new))

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "appliance.cli.main", "bundle", *arguments, "--json"],
            env={
                "PATH": os.environ["PATH"], "HOME": str(self.root), "PYTHONPATH": str(CHECKOUT),
                "SOVCTL_CACHE": str(self.root / "cache"), "SOVCTL_HOME": str(self.root / "home"),
                "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.root / "shelf"),
                "PIP_CONFIG_FILE": "/dev/null", **environment,
            },
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def locked(self, *options: str) -> BundleLock:
        done = self.run("lock", str(self.recipe), *options)
        assert done.returncode == 0, done.stderr
        return BundleLock.parse(self.lock.read_bytes())

    def build(self, out: str = "a.tar", *options: str) -> subprocess.CompletedProcess[str]:
        target = str(self.root / out)
        keys = str(self.keys)
        return self.run("build", str(self.recipe), "--keys", keys, "--out", target, *options)

    def refused(self, *says: str) -> str:
        done = self.build("refused.tar", "--locked")
        error = json.loads(done.stderr.strip().splitlines()[-1] if done.stderr else done.stdout)
        told = json.dumps(error, ensure_ascii=False)
        assert done.returncode != 0
        assert all(word in told for word in says), told
        assert not (self.root / "refused.tar").exists()
        return str(error.get("error", error).get("code"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    Repository.create_demo(folder, Threshold(1, 1))
    return folder


@pytest.fixture
def site(tmp_path: Path, server: Hub, keys: Path) -> Site:
    return Site(tmp_path, server, keys)


def test_a_lock_holds_every_file_and_a_warm_cache_needs_no_network(site: Site, server: Hub) -> None:
    lock = site.locked()
    assert [(a.kind, a.name, len(a.files)) for a in lock.artefacts] == [
        ("dataset", "more", 1), ("dataset", "rows", 3), ("model", "toy", 2),
        ("wheelhouse", "runtime", 3),
    ]  # fmt: skip
    assert lock.created == "2026-11-02T00:00:00Z"
    assert lock.artefacts[2].inputs == {"commit": server.repo("acme/toy").refs["main"]}
    server.stop()
    shutil.rmtree(site.root / "shelf")
    done = site.build("a.tar", "--locked")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["as_locked"] is True
    before = site.lock.stat().st_mtime_ns
    assert site.locked() == lock  # so does locking again
    assert site.lock.stat().st_mtime_ns == before


def test_a_branch_that_moved_moves_the_lock_only_when_asked_to(site: Site, server: Hub) -> None:
    first = site.locked()
    moved = server.repo("acme/toy").commit({"model.safetensors": safetensors(2)})
    assert site.locked() == first
    assert site.build().returncode == 0
    with BundleReader(site.root / "a.tar") as reader:
        assert len(reader.manifest.of_kind("model")[0].files) == 2
    upgraded = site.locked("--upgrade")
    assert upgraded.artefacts[2].inputs == {"commit": moved}
    assert upgraded.artefacts[:2] == first.artefacts[:2]


def test_what_is_not_as_locked_is_refused_by_name(site: Site) -> None:
    assert site.refused("bundle lock") == "bundle-lock-missing"
    site.locked()
    site.write_recipe(comment="another remark")
    assert site.build("a.tar", "--locked").returncode == 0
    site.write_recipe(old='name: rows\n    version: "1"', new='name: rows\n    version: "2"')
    assert site.refused("'rows' was changed") == "bundle-lock-stale"
    site.write_recipe(old="version: 1.0.0", new="version: 1.0.1")
    assert site.refused() == "bundle-lock-stale"
    site.write_recipe()
    with (site.folder / "runtime.lock").open("a") as file:
        file.write("# another remark\n")
    assert site.refused("runtime.lock") == "bundle-lock-stale"
    site.locked()
    row = site.folder / "rows" / "a.jsonl"
    content = row.read_bytes()
    row.write_bytes(content + b"\n")
    assert site.refused("'a.jsonl' of 'rows'") == "bundle-lock-differs"
    assert site.build("a.tar").returncode == 0  # said, but not refused, where it is not demanded
    row.unlink()
    assert site.refused("a.jsonl", "was not made") == "bundle-lock-differs"
    row.write_bytes(content)
    (site.folder / "rows" / "new.jsonl").write_bytes(b"{}\n")
    assert site.refused("new.jsonl", "not in the lock") == "bundle-lock-differs"
    site.lock.write_bytes(site.lock.read_bytes().replace(b"\n", b"\r\n"))
    assert site.refused() == "bundle-lock-invalid"


def test_a_file_that_changed_at_its_source_is_refused(site: Site, server: Hub) -> None:
    site.locked()
    shutil.rmtree(site.root / "cache")
    repo = server.repo("acme/toy")
    repo.commits[repo.refs["main"]]["config.json"] = b"[]"
    assert site.refused("config.json") == "download-mismatch"


def test_no_token_gets_into_the_lock_or_the_log(site: Site, server: Hub) -> None:
    server.token = "hf_SECRET"
    site.write_recipe(
        old=f'endpoint: "{server.url}"', new=f'endpoint: "{server.url}", token_env: T'
    )
    server.files = {}
    text = site.recipe.read_text()
    site.recipe.write_text(text[: text.index("  - kind: dataset\n    name: more")])
    done = site.run("lock", str(site.recipe), T="hf_SECRET")
    assert done.returncode == 0, done.stderr
    assert "hf_SECRET" not in done.stdout + done.stderr + site.lock.read_text()
    denied = site.run("lock", str(site.recipe), "--upgrade", T="hf_WRONG")
    assert denied.returncode == 7 and "hf_WRONG" not in denied.stdout + denied.stderr


# --- the same lock, the same bytes ----------------------------------------------------------------

ELSEWHERE = """
import datetime, os, sys, time
os.umask(int(sys.argv[1], 8))
real_listdir, real_scandir, real_time = os.listdir, os.scandir, time.time
shift = float(sys.argv[2])
time.time = lambda: real_time() + shift
class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(time.time(), tz)
datetime.datetime = Clock
os.listdir = lambda *a: list(reversed(sorted(real_listdir(*a))))
from appliance.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


def elsewhere(site: Site, out: str, shift: float, keys: Path, **environment: str) -> Any:
    """Build from a copy of the recipe in another folder, at another time, with an empty cache."""
    root = site.root / f"elsewhere-{out}"
    shutil.copytree(site.folder, root / "deep" / "copy")
    for path in (root / "deep" / "copy" / "rows").iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    (root / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, "077", str(shift), "bundle", "build",
         "deep/copy/bundle.yaml", "--locked", "--json", "--keys", str(keys),
         "--out", str(site.root / out)],
        env={
            "PATH": os.environ["PATH"], "HOME": str(root), "PYTHONPATH": str(CHECKOUT),
            "SOVCTL_CACHE": str(root / "cache"), "TMPDIR": str(root / "tmp"),
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(site.root / "shelf"),
            "PIP_CONFIG_FILE": "/dev/null", "LC_ALL": "C", "TZ": "Asia/Kathmandu",
            "PYTHONHASHSEED": "4711", "SOURCE_DATE_EPOCH": "1700000000", **environment,
        },
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def front(path: Path) -> dict[str, bytes]:
    """The front members that carry no signature of a moment: bundle, bill, evidence."""
    with BundleReader(path) as reader:
        return {n: d for n, d in reader.members.items() if n in {"bundle.json", "sbom.cdx.json"}}


def test_one_lock_gives_one_bundle_anywhere_at_any_time(
    site: Site, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site.locked()
    here = site.build("a.tar", "--locked")
    assert here.returncode == 0, here.stderr
    original = (site.root / "a.tar").read_bytes()

    # The same keys within half of what their signatures hold: the whole file, byte for byte. The
    # OMS signature, too, is the one made before, which the build cache keeps.
    model_signatures = site.root / "cache" / "made"
    soon = elsewhere_with(site, "b.tar", 3 * 86_400, keys, model_signatures)
    assert soon["digest"] == json.loads(here.stdout)["digest"]
    assert (site.root / "b.tar").read_bytes() == original

    # Later, or with other keys: everything that is not a signature.
    for name, shift in (("c.tar", 200 * 86_400), ("d.tar", 0)):
        others = tmp_path_factory.mktemp("others")
        Repository.create_demo(others, Threshold(1, 1))
        later = elsewhere(site, name, shift, keys if shift else others)
        assert later["digest"] == soon["digest"]
        assert later["size"] == pytest.approx(len(original), abs=8192)
        assert front(site.root / name) == front(site.root / "a.tar")
        with BundleReader(site.root / name) as again, BundleReader(site.root / "a.tar") as first:
            assert again.manifest.canonical() == first.manifest.canonical()


def elsewhere_with(site: Site, out: str, shift: float, keys: Path, made: Path) -> Any:
    root = site.root / f"elsewhere-{out}"
    for folder in made.glob("oms-*"):
        shutil.copytree(folder, root / "cache" / "made" / folder.name)
    return elsewhere(site, out, shift, keys)


# --- several environments -------------------------------------------------------------------------


def test_one_wheelhouse_serves_several_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    digests = {}
    for name, version in (("engine", "2.0"), ("engine", "2.0+cpu"), ("tiny", "1.0")):
        file_name, data = tiny_wheel(name, version)
        (shelf / file_name).write_bytes(data)
        digests[f"{name}=={version}"] = hashlib.sha256(data).hexdigest()
    hashes = [f"--hash=sha256:{digests[f'engine==2.0{label}']}" for label in ("", "+cpu")]
    tiny = f"tiny==1.0 --hash=sha256:{digests['tiny==1.0']}\n"
    (tmp_path / "cpu.lock").write_text(f"engine==2.0 {' '.join(hashes)}\n{tiny}")
    (tmp_path / "cuda.lock").write_text(f"engine==2.0 {hashes[0]}\n{tiny}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    label = (LocalBuild(package="engine", label="cpu"),)
    kinds: list[dict[str, Any]] = [
        {"name": "cpu", "lock": "cpu.lock", "local_builds": label, "machine": "x86_64"},
        {"name": "cuda", "lock": "cuda.lock", "accelerator": "cuda", "machine": "x86_64"},
        {"name": "arm", "lock": "cuda.lock", "machine": "aarch64"},
    ]
    environments = tuple({**kind, "python": python} for kind in kinds)
    source = PypiSource.model_validate({"type": "pypi", "environments": environments})
    recipe = ArtefactRecipe(
        kind="wheelhouse", name="runtime", version="1", licence="MIT", source=source
    )
    platform = Platform(python=python, system="linux", machine="x86_64")
    cache = BuildCache(tmp_path / "cache")
    made = wheelhouse.make(
        recipe, source, Desk(tmp_path / "bundle.yaml", platform, cache, 1, Silent())
    )
    assert [file.path for file in made.files] == [
        "engine-2.0+cpu-py3-none-any.whl", "engine-2.0-py3-none-any.whl",
        "tiny-1.0-py3-none-any.whl", "requirements-cpu.lock", "requirements-cuda.lock",
        "requirements-arm.lock",
    ]  # fmt: skip
    assert made.attributes["environment.cuda"] == f"1 {python} linux x86_64 cuda"

    for name, version in (("cpu", "2.0+cpu"), ("cuda", "2.0")):
        release = released(tmp_path / name, made, recipe, platform)
        monkeypatch.setenv("SOVCTL_ENVIRONMENT", name)
        found = pick(release.manifest())
        assert found is not None and found.environment.name == name
        home = Home(tmp_path / f"home-{name}")
        install_runtime(release, found.interpreter, home, Silent())
        shown = subprocess.check_output(
            [release.venv / "bin/python", "-c", "import engine, tiny; print(engine.VERSION)"],
            text=True,
        )
        assert shown.strip() == version
        monkeypatch.delenv("SOVCTL_ENVIRONMENT")
        assert is_complete(release)  # whichever would be chosen now
    monkeypatch.setenv("SOVCTL_ENVIRONMENT", "arm")
    with pytest.raises(EnvironmentUnfit, match="arm"):
        pick(release.manifest())


def released(folder: Path, made: Made, recipe: ArtefactRecipe, platform: Platform) -> Release:
    """A release that has this wheelhouse and nothing else."""
    (folder / "wheelhouse").mkdir(parents=True)
    for file in made.files:
        shutil.copyfile(file.content.location, folder / "wheelhouse" / file.path)
    whole = Recipe(name="several", version="1", platform=platform, artefacts=(recipe,))
    cache = BuildCache(folder.parent / "cache")
    desk = Desk(folder / "bundle.yaml", platform, cache, 1, Silent())
    manifest = manifest_of(whole, [made], desk)
    (folder / "bundle.json").write_bytes(manifest.canonical())
    return Release(manifest.release_id, folder)


def test_the_demo_is_locked() -> None:
    """Stale? ``sovctl bundle lock bundles/demo/bundle.yaml``."""
    path = CHECKOUT / "bundles/demo/bundle.yaml"
    recipe, lock = load(Recipe, path), locking.read(path)
    assert lock is not None
    assert lock.recipe == recipe.digest, locking.changed(lock, recipe)
    files = [file.path for artefact in lock.artefacts for file in artefact.files]
    assert not [path for path in files if path.startswith("sovereign_appliance-")]
