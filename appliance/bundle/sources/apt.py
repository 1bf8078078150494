"""apt with a root folder of its own: its resolver and its verifier, none of the desk's sources.

    with AptRoot.below(scratch, "amd64", status=b"", desk=desk) as apt:
        apt.add(AptSource("https://deb.debian.org/debian", ("bookworm",), ("main",), keyring))
        apt.update()                       # the archive's signature is required
        apt.plan(["nginx", "chrony"])      # what an install would fetch, with digests
        apt.simulate(["nginx=1.22.1-9"])   # raises unless everything it needs is there

The list of installed packages is what ``status`` says (nothing, by default), so a plan is closed.
Of the desk's configuration only its way out (proxy, certificate authorities) holds. apt.conf(5),
apt-secure(8) and sources.list(5) are the reference; apt 2.4 (Debian 12, Ubuntu 22.04) or newer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from appliance.errors import (
    AptMissing,
    ArchiveUntrusted,
    PackagesUnresolved,
    SourceRefused,
    SourceUnreachable,
)
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.bundle.sources.desk import Desk

_URI_LINE = re.compile(r"'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})")
_INSTALL_LINE = re.compile(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+) ", re.MULTILINE)
_WAY_OUT = re.compile(r"^Acquire::https?::(?:Proxy|CaInfo)\b.*$", re.MULTILINE | re.IGNORECASE)
_UNTRUSTED = re.compile(
    r"NO_PUBKEY|not signed|invalid signature|signatures? (?:couldn't|were invalid)|EXPKEYSIG"
    r"|REVKEYSIG|BADSIG|ERRSIG|NODATA|Clearsigned file|is expired|not valid yet|Hash Sum mismatch"
    r"|has no Hash entry|Weak|weak security|unexpected size|splits up|Sub-process /usr/bin/sqv",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class AptSource:
    """An archive apt may use, and the keyring that its signature must be by."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keyring: Path
    dated: bool = True  # whether its Valid-Until is heeded


@dataclass(frozen=True, slots=True)
class PlannedDeb:
    """A package file apt would fetch. ``size`` in bytes."""

    url: str
    sha256: str
    size: int


class AptRoot:
    """A root folder for apt; use :meth:`below`."""

    def __init__(self, folder: Path, keys: Path, desk: Desk) -> None:
        self._folder = folder
        self._keys = keys
        self._desk = desk
        self._sources: list[AptSource] = []

    @classmethod
    @contextmanager
    def below(
        cls, scratch: Path, architecture: str, status: bytes, desk: Desk
    ) -> Iterator[AptRoot]:
        """Make one below ``scratch``. Raises :class:`AptMissing`."""
        require("apt-get", "apt")
        folder = scratch / "apt"
        for name in (
            "etc/apt/sources.list.d", "etc/apt/preferences.d", "etc/apt/apt.conf.d",
            "etc/apt/trusted.gpg.d", "var/lib/apt/lists/partial", "var/lib/dpkg",
            "var/cache/apt/archives/partial",
        ):  # fmt: skip
            (folder / name).mkdir(parents=True)
        dpkg_status = folder / "var/lib/dpkg/status"
        dpkg_status.write_bytes(status)
        configured = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, check=False
        ).stdout
        (folder / "apt.conf").write_text(
            f'Dir "{folder}/";\n'
            f'Dir::State::status "{dpkg_status}";\n'
            f'APT::Architecture "{architecture}";\n'
            f'APT::Architectures {{ "{architecture}"; }};\n'
            'APT::Install-Recommends "false";\n'
            'APT::Get::AllowUnauthenticated "false";\n'
            'APT::Cmd::Pattern-Only "true";\n'  # a name that is not there is no regular expression
            'APT::Sandbox::User "root";\n'  # its user cannot reach into the cache of this one
            'APT::Update::Error-Mode "any";\n'
            'Acquire::AllowInsecureRepositories "false";\n'
            'Acquire::AllowWeakRepositories "false";\n'
            'Acquire::AllowDowngradeToInsecureRepositories "false";\n'
            'Acquire::ForceHash "sha256";\n'
            'Acquire::Languages "none";\n'
            'Acquire::PDiffs "false";\n'
            'Acquire::Retries "2";\n' + "\n".join(_WAY_OUT.findall(configured)) + "\n"
        )
        # Signed-By takes no blanks, and the cache's path may have some.
        with tempfile.TemporaryDirectory(prefix="sovctl-keys-") as keys:
            yield cls(folder, Path(keys), desk)

    def add(self, source: AptSource) -> None:
        """Let apt use an archive."""
        number = len(self._sources)
        data = source.keyring.read_bytes()
        suffix = "asc" if data.lstrip().startswith(b"-----BEGIN") else "gpg"
        keyring = self._keys / f"{number}.{suffix}"
        keyring.write_bytes(data)
        (self._folder / f"etc/apt/sources.list.d/{number}.sources").write_text(
            f"Types: deb\nURIs: {source.uri}\nSuites: {' '.join(source.suites)}\n"
            f"Components: {' '.join(source.components)}\nSigned-By: {keyring}\n"
            + ("" if source.dated else "Check-Valid-Until: no\n")
        )
        self._sources.append(source)

    def update(self) -> None:
        """Fetch and verify the indexes.

        Raises :class:`ArchiveUntrusted`, :class:`SourceRefused`, :class:`SourceUnreachable`.
        """
        done = self._run("apt-get", "update")
        if done.returncode == 0:
            return
        lines = [line for line in done.stderr.splitlines() if line[:2] in {"E:", "W:"}]
        reason = " ".join(line[3:].strip() for line in lines[:3])[:600] or done.stderr[-300:]
        uri = next((s.uri for s in self._sources if s.uri in done.stderr), self._sources[0].uri)
        host = urlsplit(uri).netloc or uri
        if _UNTRUSTED.search(done.stderr):
            raise ArchiveUntrusted(archive=uri, reason=reason)
        if re.search(r"\b(?:403|404|410)\b|does not have a Release file", done.stderr):
            raise SourceRefused(file="InRelease", host=host, reason=reason)
        cache = self._desk.cache.root
        raise SourceUnreachable(file="InRelease", host=host, reason=reason, cache=cache)

    def plan(self, packages: Sequence[str]) -> list[PlannedDeb]:
        """The files an install would fetch. Raises :class:`PackagesUnresolved`."""
        text = self._install("--print-uris", packages)
        found = [PlannedDeb(m[1], m[4], int(m[3])) for m in map(_URI_LINE.match, text) if m]
        if len(found) != sum(line.startswith("'") for line in text):
            raise PackagesUnresolved(
                packages=_brief(packages), reason=_("The archive's index has no SHA-256 for them.")
            )
        return found

    def simulate(self, packages: Sequence[str]) -> list[tuple[str, str]]:
        """Name and version of all an install would unpack. Raises :class:`PackagesUnresolved`."""
        return _INSTALL_LINE.findall("\n".join(self._install("--simulate", packages)))

    def stanzas(self, pins: Sequence[tuple[str, str]]) -> list[str]:
        """The index entries of packages, given by name and version."""
        if not pins:
            return []
        done = self._run("apt-cache", "show", *(f"{name}={version}" for name, version in pins))
        return [stanza.strip("\n") for stanza in done.stdout.split("\n\n") if stanza.strip()]

    def _install(self, how: str, packages: Sequence[str]) -> list[str]:
        done = self._run("apt-get", "install", "-q", "--yes", how, *packages)
        if done.returncode:
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
            wrong = [line for line in said if "Depends:" in line or line.startswith("E:")]
            reason = "; ".join((wrong or said)[:6]).replace("E: ", "")[:600]
            raise PackagesUnresolved(packages=_brief(packages), reason=reason)
        return done.stdout.splitlines()

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "APT_CONFIG": str(self._folder / "apt.conf"),
            "LC_ALL": "C.UTF-8",
            "LANGUAGE": "C",
        }
        with self._desk.progress.task(" ".join(command[:2]), None, "steps"):
            return subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )


def require(program: str, package: str) -> None:
    """Raise :class:`AptMissing` unless a program is there."""
    if shutil.which(program) is None:
        raise AptMissing(tool=program, package=package)


def _brief(packages: Sequence[str]) -> str:
    return ", ".join(packages[:8]) + (", …" if len(packages) > 8 else "")
