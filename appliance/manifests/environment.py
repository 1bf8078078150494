"""The runtimes a wheelhouse can be installed as, and which of them is for a machine.

A wheelhouse of one runtime names its wheels in ``requirements.lock`` and is for the manifest's
platform. One of several has an attribute for each, ``environment.<name>``, whose value is
``<rank> <python> <system> <machine> <accelerator>``; ``requirements-<name>.lock`` names its wheels.
Attributes are in the signed manifest, so that a machine can be judged before a blob is read.

    choose(environments_of(manifest), Host(platform, pythons, cuda=True), wanted=None)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from appliance.manifests.bundle import Accelerator, BundleManifest, Platform

UNPACK_FACTOR = 4.5
"""Bytes on disk for a byte of wheel: 3.46 unpacked and 4.29 with bytecode were measured."""

_PREFIX = "environment."
_VALUE = re.compile(r"(\d{1,2}) (3\.\d{1,2}) ([a-z0-9]{1,32}) ([a-z0-9_]{1,32}) (cpu|cuda)")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class RuntimeEnvironment:
    """One runtime. ``name`` is empty for the only one of a short-form wheelhouse."""

    name: str
    platform: Platform
    accelerator: Accelerator

    @property
    def requirements(self) -> str:
        """The file in the wheelhouse that names its wheels, with hashes."""
        return f"requirements-{self.name}.lock" if self.name else "requirements.lock"

    def attribute(self, rank: int) -> tuple[str, str]:
        """Name and value of the artefact's attribute; ``rank`` 0 is preferred to 1."""
        at = self.platform
        return f"{_PREFIX}{self.name}", (
            f"{rank} {at.python} {at.system} {at.machine} {self.accelerator}"
        )


@dataclass(frozen=True, slots=True)
class Host:
    """What decides: the machine, the CPythons on it ("3.11"), and whether CUDA works on it."""

    system: str
    machine: str
    pythons: frozenset[str]
    cuda: bool


def environments_of(manifest: BundleManifest) -> tuple[RuntimeEnvironment, ...]:
    """The runtimes of a bundle's wheelhouse, preferred ones first; never none.

    An attribute that is none of ours, whatever it is called, is a remark for people.
    """
    ranked = [
        found
        for artefact in manifest.of_kind("wheelhouse")
        for key, value in artefact.attributes.items()
        if key.startswith(_PREFIX) and (found := _parse(key.removeprefix(_PREFIX), value))
    ]
    if not ranked:
        return (RuntimeEnvironment("", manifest.platform, "cpu"),)
    return tuple(found for _rank, found in sorted(ranked, key=lambda pair: pair[0]))


def choose(
    offered: Sequence[RuntimeEnvironment], host: Host, wanted: str | None = None
) -> RuntimeEnvironment | None:
    """The runtime for ``host``: ``wanted``, else a CUDA one where CUDA works, else a CPU one.

    Among equals the order of the recipe decides. None if none fits; a runtime for another system,
    machine or Python never does, not even by name. The only runtime of a short-form wheelhouse
    says nothing of accelerators and fits either.
    """
    fitting = [one for one in offered if _fits(one, host)]
    if wanted is not None:
        return next((one for one in fitting if one.name == wanted), None)
    if host.cuda:
        fitting.sort(key=lambda one: one.accelerator != "cuda")
    else:
        fitting = [one for one in fitting if one.accelerator == "cpu"]
    return next(iter(fitting), None)


def names(offered: Iterable[RuntimeEnvironment]) -> str:
    """Their names and what they are for, for a message."""
    return ", ".join(
        f"{one.name or 'runtime'} ({one.platform}, {one.accelerator})" for one in offered
    )


def _fits(one: RuntimeEnvironment, host: Host) -> bool:
    at = one.platform
    return (at.system, at.machine) == (host.system, host.machine) and at.python in host.pythons


def _parse(name: str, value: str) -> tuple[tuple[int, str], RuntimeEnvironment] | None:
    match = _VALUE.fullmatch(value)
    if not match or not _NAME.fullmatch(name):
        return None
    rank, python, system, machine, accelerator = match.groups()
    platform = Platform(python=python, system=system, machine=machine)
    found = RuntimeEnvironment(name, platform, cast("Accelerator", accelerator))
    return (int(rank), name), found
