"""The bundle's Debian packages for a lab's hosts, made by its own source and laid out there.

    lay_out(os_packages("bookworm"), host.root / "var/lib/sovctl/releases/r1/packages/os")

The packages are those that ``bundles/site`` names, as its lock has them; for another release of
Debian the same names are asked of its archive. Both stay in the build cache.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from appliance.bundle.cache import BuildCache
from appliance.bundle.sources import debian
from appliance.bundle.sources.desk import Desk, Made
from appliance.manifests.bundle_lock import BundleLock
from appliance.manifests.document import load
from appliance.manifests.recipe import DebianSource, Recipe
from appliance.progress import Silent
from appliance.trust.keys import new_tuf_key

RECIPE = Path(__file__).resolve().parents[2] / "bundles" / "site" / "bundle.yaml"
_SIGNER = CryptoSigner(new_tuf_key())


@cache
def os_packages(release: str) -> Made:
    """A closed, signed repository for ``release``."""
    recipe = load(Recipe, RECIPE)
    (part,) = (part for part in recipe.artefacts if part.kind == "packages")
    lock: BundleLock | None = BundleLock.parse(RECIPE.with_name("bundle.lock").read_bytes())
    if release != "bookworm":
        text = part.model_dump_json().replace("bookworm", release)
        part, lock = type(part).model_validate_json(text), None
    assert isinstance(part.source, DebianSource)
    root = os.environ.get("SOVCTL_CACHE") or Path.home() / ".cache" / "sovctl"
    desk = Desk(
        RECIPE, recipe.platform, BuildCache(Path(root)), 1_780_000_000, Silent(), lock=lock,
        release_signer=lambda: _SIGNER,
    )  # fmt: skip
    return debian.make(part, part.source, desk)


def lay_out(made: Made, folder: Path) -> None:
    """Put the repository into a folder, as the files of a release are: readable, not writable."""
    for file in made.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.content.location, target)
        target.chmod(0o444)
