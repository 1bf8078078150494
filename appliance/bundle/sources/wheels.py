"""Fetch pinned wheels into the cache, with pip, for a platform that need not be this one.

pip does the fetching because it obeys what the desk has configured (indexes, find-links, proxies,
certificates). Each file is checked against its pin by pip and again here before it enters the
cache; a wheel that is there already is never asked for.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from appliance.bundle.sources.desk import Desk
from appliance.bundle.sources.pins import PinnedPackage
from appliance.errors import (
    ApplianceError,
    BuildToolMissing,
    DownloadMismatch,
    DownloadUnreachable,
    WheelUnavailable,
)
from appliance.i18n import _
from appliance.manifests.bundle import Platform
from appliance.manifests.bundle_lock import LockedArtefact

if TYPE_CHECKING:
    from appliance.progress import Task

GLIBC_MINOR = 28  # the oldest glibc a bundle is for: 2.28 (Debian 10, RHEL 8)
_BATCH = 8  # packages a pip run: few enough that an interruption loses little
_AT_ONCE = 3


def fetch(pins: Sequence[PinnedPackage], desk: Desk) -> dict[PinnedPackage, Path]:
    """The wheel of every pin, from the cache or fetched into it.

    Raises :class:`DownloadUnreachable`, :class:`DownloadMismatch`, :class:`WheelUnavailable` or
    :class:`BuildToolMissing` (no pip). What was fetched before that is kept.
    """
    chooser = _Chooser(desk)
    found = {pin: path for pin in pins if (path := chooser.cached(pin))}
    lacking = [pin for pin in pins if pin not in found]
    if not lacking:
        return found
    if find_spec("pip") is None:
        raise BuildToolMissing(tool="pip", reason=_("It fetches the wheels the lock names."))
    batches = [lacking[i : i + _BATCH] for i in range(0, len(lacking), _BATCH)]
    title = _("Fetching {count} wheels").format(count=len(lacking))
    with (
        desk.progress.task(title, len(lacking), "items") as task,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        jobs = [pool.submit(_fetch_batch, batch, chooser, desk, task) for batch in batches]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for pin in lacking:
        path = chooser.cached(pin)
        if path is None:
            reason = _("pip brought no file that fits the pin and the platform.")
            raise WheelUnavailable(package=pin, platform=desk.platform, reason=reason)
        found[pin] = path
    return found


def narrowed(pins: Iterable[PinnedPackage], locked: LockedArtefact | None) -> list[PinnedPackage]:
    """The pins with only the file of each that a lock has, where it has one.

    A pin lists the files of every platform, and which of several that fit is taken would otherwise
    depend on what is in the cache and on the index.
    """
    known = {file.sha256 for file in locked.files} if locked else set()
    return [PinnedPackage(pin.name, pin.version, pin.hashes & known or pin.hashes) for pin in pins]


def tags_of(platform: Platform) -> frozenset[Tag]:
    """Every wheel tag that runs on a platform, down to its oldest glibc."""
    version = tuple(int(part) for part in platform.python.split("."))
    names = list(_platform_names(platform))
    interpreter = f"cp{version[0]}{version[1]}"
    return frozenset(
        [
            *cpython_tags(version, platforms=names),
            *compatible_tags(version, interpreter=interpreter, platforms=names),
        ]
    )


def _platform_names(platform: Platform) -> Iterator[str]:
    machine = platform.machine
    for minor in range(GLIBC_MINOR, 4, -1):
        yield f"manylinux_2_{minor}_{machine}"
        if alias := {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}.get(minor):
            yield f"{alias}_{machine}"
    yield f"{platform.system}_{machine}"


class _Chooser:
    """Decides which file is the one for a pin on this desk's platform."""

    def __init__(self, desk: Desk) -> None:
        self._cache = desk.cache
        self._tags = tags_of(desk.platform)
        self._builds = {canonicalize_name(b.package): b for b in desk.local_builds}

    def label(self, pin: PinnedPackage) -> str | None:
        """The local version label wanted of this package (``cpu``), if the recipe wants one."""
        build = self._builds.get(pin.name)
        return build.label if build else None

    def index(self, pin: PinnedPackage) -> str | None:
        """Where that build is published, if the recipe says so."""
        build = self._builds.get(pin.name)
        return build.index if build else None

    def cached(self, pin: PinnedPackage) -> Path | None:
        """The cached wheel for ``pin``, if there is one that fits."""
        for value in sorted(pin.hashes):
            for path in self._cache.wheels.joinpath(value).glob("*.whl"):
                if self.fits(path.name, pin):
                    return path
        return None

    def fits(self, file_name: str, pin: PinnedPackage) -> bool:
        """Whether a wheel of this name is the package, version, build and platform wanted."""
        name, version, _build, tags = parse_wheel_filename(file_name)
        label = self.label(pin)
        return (
            name == pin.name
            and version.public == pin.version.public
            and version.local == (label or pin.version.local)
            and not self._tags.isdisjoint(tags)
        )


def _fetch_batch(batch: Iterable[PinnedPackage], chooser: _Chooser, desk: Desk, task: Task) -> None:
    """Fetch a batch; packages wanted in a local build go by themselves, to their own index."""
    plain = [pin for pin in batch if chooser.label(pin) is None]
    if plain:
        _download(plain, [pin.requirement() for pin in plain], [], desk, task)
    for pin in (pin for pin in batch if chooser.label(pin)):
        wanted = [pin.requirement(chooser.label(pin))]
        index = chooser.index(pin)
        try:
            _download([pin], wanted, [], desk, task)
        except (WheelUnavailable, DownloadUnreachable):
            if index is None:
                raise
            task.note(_("{package} from {index}").format(package=pin, index=index))
            _download([pin], wanted, ["--index-url", index], desk, task)


def _download(
    pins: Sequence[PinnedPackage], lines: list[str], options: list[str], desk: Desk, task: Task
) -> None:
    with desk.cache.scratch() as folder:
        requirements = folder / "requirements.txt"
        requirements.write_text("\n".join(lines))
        target = folder / "wheels"
        output = _run_pip(requirements, target, options, desk.platform, task)
        _keep(target, pins, desk)
    if output is not None:
        raise _diagnose(output, pins, desk)


def _run_pip(
    requirements: Path, target: Path, options: list[str], platform: Platform, task: Task
) -> str | None:
    """Run pip; return what it printed if it failed, else None."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--require-hashes", "--no-input", "--disable-pip-version-check", "--progress-bar=off",
        "--retries=3", "--implementation=cp", f"--python-version={platform.python}",
        f"--abi=cp{platform.python.replace('.', '')}", "--abi=abi3", "--abi=none",
        *(f"--platform={name}" for name in _platform_names(platform)),
        *options, "--dest", str(target), "-r", str(requirements),
    ]  # fmt: skip
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if re.match(r"(Saved|File was already downloaded) ", line):
                task.advance(1)
            if fetched := re.match(r"\s+Downloading (\S+) \(([^)]+)\)", line):
                task.note(f"{fetched[1].rpartition('/')[2]} ({fetched[2]})")
    return "".join(lines) if process.returncode else None


def _keep(folder: Path, pins: Iterable[PinnedPackage], desk: Desk) -> None:
    """Move every file whose digest is pinned into the cache; the others are not looked at again."""
    wanted = {value for pin in pins for value in pin.hashes}
    for path in sorted(folder.glob("*.whl")):
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
        if value in wanted:
            desk.cache.add_wheel(path, value)


def _diagnose(output: str, pins: Sequence[PinnedPackage], desk: Desk) -> ApplianceError:
    """What a failed pip run means, from what it printed."""
    named = re.search(r"(?:satisfies the requirement|found for|in) (\S+==\S+)", output)
    package = named[1] if named else ", ".join(map(str, pins[:3]))
    if mismatch := re.search(r"Expected sha256.*?Got\s+([0-9a-f]{64})", output, re.DOTALL):
        culprit = re.search(r"^\s*(\S+==\S+)[^\n]*:\s*\n\s*Expected", output, re.MULTILINE)
        reason = _("Its SHA-256 is {got}.").format(got=mismatch[1])
        return DownloadMismatch(package=culprit[1] if culprit else package, reason=reason)
    unreachable = re.search(
        r"(NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|SSLError"
        r"|ReadTimeoutError|Connection(?:Refused|Reset)Error|Network is unreachable)[^\n]*",
        output,
    )
    if unreachable:
        cause = re.search(r"\[Errno -?\d+\] ([A-Za-z ]+)", unreachable[0])
        reason = f"{cause[1] if cause else unreachable[1]}."
        return DownloadUnreachable(package=package, reason=reason, cache=desk.cache.root)
    errors = re.findall(r"^ERROR: (.*)$", output, re.MULTILINE)
    reason = errors[0][:300] if errors else output.strip()[-300:]
    return WheelUnavailable(package=package, platform=desk.platform, reason=reason)
