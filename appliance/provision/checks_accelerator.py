"""Do GPUs, driver and CUDA fit what the site expects and the bundle was built for. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from appliance.i18n import _
from appliance.provision.facts import Gpu
from appliance.provision.finding import HostFinding
from appliance.provision.needs import version_of
from appliance.provision.subject import Subject

LEAST_DRIVER: Final = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
"""The oldest Linux driver for each major version of CUDA, by its minor version compatibility: CUDA
Toolkit release notes, table "CUDA Toolkit and Minimum Required Driver Versions"."""


def gpu(on: Subject) -> Iterator[HostFinding]:
    """As many GPUs of that model as site.yaml says, seen by the bus and by the driver."""
    wanted, found = on.host.gpus, on.facts.gpu
    if found is None:
        yield on.untold(_("its GPUs are not known"), _("Run 'nvidia-smi' on it."), "gpu")
        return
    present = max(found.devices, len(found.cards))
    if not wanted.count:
        yield on.passed(_("{n} GPUs, none is used").format(n=present) if present else _("none"))
        return
    if present < wanted.count:
        text = _("site.yaml expects {wanted} GPUs; it has {found}").format(
            wanted=wanted.count, found=present
        )
        yield on.failed(text, _("Compare with 'lspci -d 10de:', or correct site.yaml."))
        return
    if not _can_be_asked(found):
        yield from _without_driver(on, found)
        return
    if len(found.cards) < wanted.count:
        text = _("the driver sees {seen} of {wanted} GPUs").format(
            seen=len(found.cards), wanted=wanted.count
        )
        yield on.failed(text, _("Look why: 'dmesg | grep -i nvrm', 'nvidia-smi -L'."))
        return
    others = sorted({c.name for c in found.cards if wanted.model and wanted.model not in c.name})
    if others:
        text = _("site.yaml expects {model}; it has {found}").format(
            model=wanted.model, found=", ".join(others)
        )
        yield on.failed(text, _("Correct 'gpus: model' in site.yaml, or the host's address."))
    else:
        yield on.passed(f"{len(found.cards)} × {found.cards[0].name}")
    if any(card.mig for card in found.cards):
        yield on.warned(
            _("a GPU is partitioned (MIG)"),
            _("Ray counts whole GPUs; run 'nvidia-smi -mig 0' unless that is what you want."),
        )
    if found.switches and not on.facts.service("nvidia-fabricmanager"):
        yield on.failed(
            _("it has NVSwitch, and the fabric manager does not run: CUDA will not start"),
            _("Run 'systemctl enable --now nvidia-fabricmanager' (the driver's own version)."),
        )


def _can_be_asked(found: Gpu) -> bool:
    return bool(found.cards) or found.driver is not None


def _without_driver(on: Subject, found: Gpu) -> Iterator[HostFinding]:
    bundle = on.needs.bundle
    if on.facts.security.secure_boot:
        yield on.failed(
            _("Secure Boot is on, and the driver's modules are not signed by a key of this host"),
            _("Turn Secure Boot off, or install the driver yourself with a key that is enrolled."),
        )
    if found.nouveau:
        yield on.warned(
            _("the nouveau driver has the GPUs"),
            _("Blacklist it and restart: 'echo blacklist nouveau > /etc/modprobe.d/nouveau.conf'."),
        )
    if bundle is not None and bundle.driver is None:
        yield on.failed(
            _("it has no NVIDIA driver, and the bundle brings none"),
            _("Install the driver, or ask for a bundle with one among its packages."),
        )
    else:
        yield on.passed(_("{n} GPUs, no driver yet").format(n=found.devices))


def driver(on: Subject) -> Iterator[HostFinding]:
    """The driver is as new as site.yaml and the runtime's CUDA want."""
    found = on.facts.gpu
    bundle = on.needs.bundle
    if not on.host.gpus.count or found is None:
        yield on.passed(_("none is needed"))
        return
    version = found.driver or (bundle.driver if bundle else None)
    if version is None or not version_of(version):
        yield on.passed(_("none yet"))
        return
    text = _("driver {version}").format(version=version)
    least = on.host.gpus.minimum_driver
    wrong = False
    if least is not None and version_of(version) < version_of(least):
        wrong = True
        yield on.failed(
            _("{text}; site.yaml wants {least}").format(text=text, least=least),
            _("Install driver {least} or newer.").format(least=least),
        )
    cuda = bundle.cuda if bundle else None
    if cuda is not None:
        oldest = LEAST_DRIVER.get(cuda[0])
        shown = f"{cuda[0]}.{cuda[1]}"
        if oldest is None or version_of(version) < oldest:
            wrong = True
            need = ".".join(map(str, oldest)) if oldest else _("a newer one")
            yield on.failed(
                _("{text} cannot run the bundle's CUDA {cuda}").format(text=text, cuda=shown),
                _("Install driver {need} or newer.").format(need=need),
            )
        elif found.driver and found.cuda and version_of(found.cuda) < cuda:
            wrong = True
            yield on.warned(
                _("{text} is made for CUDA {has}; the bundle's is {cuda}").format(
                    text=text, has=found.cuda, cuda=shown
                ),
                _("It works, but not for kernels that are compiled on the spot: newer is better."),
            )
    if not wrong:
        yield on.passed(f"{text}, CUDA {found.cuda}" if found.cuda else text)


def runtime(on: Subject) -> Iterator[HostFinding]:
    """One of the bundle's runtimes is for this machine, Python and accelerator."""
    from appliance.manifests.environment import Host, choose, names

    bundle, pythons = on.needs.bundle, on.facts.pythons
    if bundle is None or not on.needs.ray:
        yield on.passed(_("none is needed"))
        return
    machine = on.facts.system.machine or ""
    cuda = bool(on.host.gpus.count)
    chosen = choose(bundle.environments, Host("linux", machine, pythons or frozenset(), cuda))
    if chosen is None:
        yield on.failed(
            _("none of the bundle's runtimes is for it: {offered}").format(
                offered=names(bundle.environments)
            ),
            _("Ask for a bundle with a runtime for this machine, or install its Python."),
        )
    elif cuda and chosen.name and chosen.accelerator != "cuda":
        yield on.warned(
            _("the bundle has no runtime for CUDA: the GPUs will not be used"),
            _("Ask for a bundle whose wheelhouse has a runtime with 'accelerator: cuda'."),
        )
    else:
        yield on.passed(str(chosen.platform))
