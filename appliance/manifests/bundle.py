"""``bundle.json``: what a bundle holds, and the rules its names and paths obey.

The manifest is canonical JSON (RFC 8785), so one content has one digest; that digest names the
bundle and the release made from it. The manifest's own digest is what the TUF targets role signs,
and the manifest's digests cover every blob, so a bundle of 100,000 files has four signatures.

    manifest = BundleManifest.parse(data)      # ValueError unless valid *and* canonical
    manifest.digest                            # "sha256:…" of those very bytes
    manifest.blobs()                           # unique blobs, sorted by digest

Paths in here become paths on disk, so they are checked here, once, before anything uses them:
relative POSIX paths in NFC, no ``.`` or ``..``, no backslash, no control characters, no two paths
that one file system could take for the same (case folding), no file that is also a folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform as _platform
import sys
import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, model_validator

from appliance.manifests.json_shape import check_shape

SCHEMA_VERSION = 1
"""Raised when an older reader could misread a newer bundle."""

MAX_PATH_BYTES = 1024
MAX_COMPONENT_BYTES = 255  # NAME_MAX of every Linux file system in use

PICKLES = (
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".pt2",
    ".nemo", ".model.tar", ".mar", ".ptl",
)  # fmt: skip
"""Ends of names, in lower case, of files that may be pickles: loading one runs what is in it."""


def check_path(path: str) -> str:
    """Return ``path`` if it may become a path below a folder of ours; else raise ``ValueError``."""
    if not path or path.startswith("/"):
        raise ValueError(f"{path!r} is not a relative path")
    if len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise ValueError(f"a path is longer than {MAX_PATH_BYTES} bytes")
    if "\\" in path or has_control_characters(path):
        raise ValueError(f"{path!r} has a backslash or a control character")
    if not path.isascii() and unicodedata.normalize("NFC", path) != path:
        raise ValueError(f"{path!r} is not in Unicode normal form C")
    for component in path.split("/"):
        if component in {"", ".", ".."}:
            raise ValueError(f"{path!r} has an empty, '.' or '..' component")
        if len(component.encode()) > MAX_COMPONENT_BYTES:
            raise ValueError(f"{path!r} has a component longer than {MAX_COMPONENT_BYTES} bytes")
    return path


def has_control_characters(text: str) -> bool:
    """Whether a terminal, or an eye, could be led astray by it (Unicode categories C*)."""
    if text.isascii():
        return not text.isprintable()
    return any(unicodedata.category(c)[0] == "C" for c in text)


def check_text(text: str) -> str:
    """Return ``text`` if it can be shown to a person; line breaks are fine. Else ``ValueError``."""
    if has_control_characters(text.replace("\n", "").replace("\t", "")):
        raise ValueError(f"{text[:80]!r} has a control character")
    return text


def check_paths_apart(paths: list[str]) -> None:
    """Raise ``ValueError`` if two ``paths`` collide, or one is the folder of the other.

    With NUL (which no path has) for the slash, what lies in a folder sorts right behind it: looking
    at neighbours is enough, however many paths there are and however deep they go.
    """
    folded = sorted((_folded(path).replace("/", "\0"), path) for path in paths)
    for (before, first), (after, second) in itertools.pairwise(folded):
        if before == after:
            raise ValueError(f"{second!r} and {first!r} are the same file on some systems")
        if after.startswith(before + "\0"):
            raise ValueError(f"{first!r} is both a file and the folder of {second!r}")


def _folded(path: str) -> str:
    folded = path.casefold()
    return folded if folded.isascii() else unicodedata.normalize("NFC", folded)


# At most 73, so that signatures/<name>.oms.json fits a tar header.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,72}$")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, le=2**53 - 1)]  # what JSON numbers hold exactly
RelativePath = Annotated[str, AfterValidator(check_path)]
Text = Annotated[str, AfterValidator(check_text)]
Instant = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Attribute = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
EnvironmentName = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$")]
Accelerator = Literal["cpu", "cuda"]
ArtefactKind = Literal["model", "adapter", "dataset", "wheelhouse", "packages", "collections"]
"""``packages``: an offline apt repository; ``collections``: Ansible collections and roles."""

Role = Literal["models", "adapters", "datasets", "platform"]
"""Who signs an artefact besides the one who signs the bundle: a role the targets role delegates."""

ROLES: tuple[Role, ...] = ("adapters", "datasets", "models", "platform")

_ROLE_OF: dict[ArtefactKind, Role] = {
    "model": "models",
    "adapter": "adapters",
    "dataset": "datasets",
    "wheelhouse": "platform",
    "packages": "platform",
    "collections": "platform",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _canonical(model: BaseModel) -> bytes:
    # With ASCII keys, strings and whole numbers only, this is RFC 8785 (a test compares), and takes
    # a tenth of the time of the library, which counts with 100,000 files. Not cached: a cache would
    # survive ``model_copy(update=…)``.
    tree = model.model_dump(mode="json")
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


class BlobRef(_Frozen):
    """One file of an artefact: where it goes and which blob it is."""

    path: RelativePath
    digest: Digest
    size: Size

    @property
    def hex(self) -> str:
        """The digest's 64 hexadecimal digits."""
        return self.digest.removeprefix("sha256:")


class Artefact(_Frozen):
    """One thing a bundle brings: a model, an adapter, a data set, the wheelhouse, …

    ``licence`` is an SPDX expression. ``attributes`` are facts for people and for the rooms that
    use the artefact (``base_model``, ``language``, …); nothing security-relevant is read from them.
    """

    kind: ArtefactKind
    name: Name
    version: Version
    licence: Annotated[Text, Field(min_length=1, max_length=200)]
    description: Annotated[Text, Field(max_length=2000)] = ""
    files: Annotated[tuple[BlobRef, ...], FailFast(), Field(min_length=1)]
    attributes: dict[Attribute, Text] = {}

    @model_validator(mode="after")
    def _files_are_apart_and_safe(self) -> Artefact:
        check_paths_apart([file.path for file in self.files])
        if self.kind in {"model", "adapter"}:
            pickles = [f.path for f in self.files if f.path.lower().endswith(PICKLES)]
            if pickles:
                raise ValueError(f"{pickles[0]!r} may be a pickle; weights must be safetensors")
        return self

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def folder(self) -> str:
        """Where its files go in a release, relative to it."""
        if self.kind == "wheelhouse":
            return "wheelhouse"
        plural = self.kind if self.kind.endswith("s") else f"{self.kind}s"
        return f"{plural}/{self.name}"

    @property
    def role(self) -> Role:
        """The delegated role that must have signed it."""
        return _ROLE_OF[self.kind]

    @property
    def target(self) -> str:
        """The TUF target path it is signed under, such as ``models/smollm2.json``.

        What is signed there is :meth:`canonical`; nobody has to carry that file.
        """
        return f"{self.role}/{self.kind}-{self.name}.json"

    def canonical(self) -> bytes:
        """The one byte string of this artefact (RFC 8785): its element of ``bundle.json``."""
        return _canonical(self)


class Platform(_Frozen):
    """What the runtime needs: ``python`` "3.11", ``system`` "linux", ``machine`` "x86_64"."""

    python: Annotated[str, Field(pattern=r"^3\.\d{1,2}$")]
    system: Annotated[str, Field(pattern=r"^[a-z0-9]{1,32}$")]
    machine: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]

    @classmethod
    def of_this_machine(cls) -> Platform:
        """The platform this interpreter runs on."""
        return cls(
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            system=_platform.system().lower(),
            machine=_platform.machine().lower(),
        )

    def __str__(self) -> str:
        return f"{self.system} {self.machine}, Python {self.python}"


class BundleManifest(_Frozen):
    """The whole of ``bundle.json``."""

    schema_version: Literal[1]
    name: Name
    version: Version
    created: Instant
    platform: Platform
    artefacts: Annotated[tuple[Artefact, ...], FailFast()]

    @model_validator(mode="after")
    def _artefacts_are_apart(self) -> BundleManifest:
        check_paths_apart([artefact.folder for artefact in self.artefacts])
        sizes: dict[str, int] = {}
        for artefact in self.artefacts:
            for file in artefact.files:
                if sizes.setdefault(file.digest, file.size) != file.size:
                    raise ValueError(f"{file.digest} is given two sizes")
        return self

    @classmethod
    def parse(cls, data: bytes) -> BundleManifest:
        """Read ``bundle.json``. Raises ``ValueError`` unless it is valid and canonical."""
        check_shape(data)  # before a model: what it finds wrong, it lists, at a kilobyte apiece
        manifest = cls.model_validate_json(data)
        if manifest.canonical() != data:
            raise ValueError("bundle.json is not canonical JSON (RFC 8785)")
        return manifest

    def canonical(self) -> bytes:
        """The one byte string of this manifest (RFC 8785)."""
        return _canonical(self)

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the canonical bytes: the identity of the bundle."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()

    @property
    def release_id(self) -> str:
        """``<name>-<version>-<first 12 hex digits of the digest>``."""
        return f"{self.name}-{self.version}-{self.digest.removeprefix('sha256:')[:12]}"

    def of_kind(self, kind: ArtefactKind) -> tuple[Artefact, ...]:
        """Its artefacts of one kind, in the manifest's order."""
        return tuple(a for a in self.artefacts if a.kind == kind)

    def blobs(self) -> tuple[BlobRef, ...]:
        """One reference for each distinct blob, sorted by digest: their order in the tar."""
        unique = {file.digest: file for a in self.artefacts for file in a.files}
        return tuple(unique[digest] for digest in sorted(unique))
