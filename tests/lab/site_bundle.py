"""The bundle of ``bundles/site``, built once for every state of this tree.

    bundle = site_bundle()
    bundle.path, bundle.fingerprint

It is built as a supplier builds it (``sovctl bundle build``) and kept below
``~/.cache/sovctl-tests/site-bundle`` under a digest of all that enters it, for every test that
installs a site. Fetching and converting takes minutes once; with a warm build cache a change of
our own code costs some 20 s. The keys are demo keys and stay, so the fingerprint does too.
``python -m tests.lab.site_bundle`` builds it and prints where it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPE = CHECKOUT / "bundles" / "site" / "bundle.yaml"

_PARTS = ("pyproject.toml", "README.md", "LICENSE", "appliance", "playbooks", "bundles")
_KEPT = 2
"""Bundles of earlier states that stay: about 870 MB each, and branches take turns."""


@dataclass(frozen=True)
class SiteBundle:
    """A built bundle. ``keys`` is the folder of the supplier's (demo) keys."""

    path: Path
    fingerprint: str
    keys: Path

    @property
    def pyz(self) -> Path:
        """``sovctl`` for a controller that has none."""
        return self.path.with_suffix(".sovctl.pyz")


def site_bundle() -> SiteBundle:
    """The bundle for this tree, from the cache or built now. Two callers build it once."""
    cache = Path.home() / ".cache" / "sovctl-tests" / "site-bundle"
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / "lock"):
        keys = cache / "keys"
        if not keys.is_dir():
            _sovctl("trust", "init", "--demo", "--out", str(keys))
        fingerprint = json.loads(_sovctl("trust", "show", "--keys", str(keys), "--json"))
        folder = cache / _digest()
        if not (folder / "site.tar").is_file():
            partial = cache / ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _sovctl("bundle", "build", str(RECIPE), "--keys", str(keys),
                    "--out", str(partial / "site.tar"))  # fmt: skip
            partial.rename(folder)
        os.utime(folder)
        _drop_old(cache, folder)
        return SiteBundle(folder / "site.tar", fingerprint["fingerprint"], keys)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest() -> str:
    """Of every file that enters the bundle, and the month: what is signed runs out."""
    tree = hashlib.sha256(time.strftime("%Y-%m").encode())
    for part in _PARTS:
        top = CHECKOUT / part
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                tree.update(f"{path.relative_to(CHECKOUT)}\0{content}\n".encode())
    return tree.hexdigest()[:32]


def _drop_old(cache: Path, current: Path) -> None:
    made = [f for f in cache.iterdir() if f != current and (f / "site.tar").is_file()]
    for folder in sorted(made, key=lambda f: f.stat().st_mtime, reverse=True)[_KEPT:]:
        if time.time() - folder.stat().st_mtime > 3600:  # a test may be reading it
            shutil.rmtree(folder)


def _sovctl(*arguments: str) -> str:
    """Run this tree's ``sovctl``, whichever tree the environment was made for."""
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli.main", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"sovctl {' '.join(arguments[:2])}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    print(site_bundle())
