"""Is the machine itself fit: its system, processor, memory, clock, and what else runs there. Pure.

Each check takes a :class:`~appliance.provision.subject.Subject` and yields at least one finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from appliance.i18n import _
from appliance.manifests.site import Role
from appliance.provision.facts import Process
from appliance.provision.finding import HostFinding
from appliance.provision.needs import version_of
from appliance.provision.subject import Subject

SYSTEMS: Final = {"debian": ("12", "13")}
"""Distributions whose packages the roles know; the bundle's own apt repository is made for one."""

LEAST_KERNEL: Final = (5, 10)  # Debian 11's: cgroup v2 as systemd's IPAddressDeny needs it
LEAST_SYSTEMD: Final = 247  # Debian 11's: LoadCredential, the newest that our units use
LEAST_CORES: Final = 2
GIB: Final = 1 << 30
LEAST_MEMORY: Final = 3 * GIB  # Ray's idle head takes 1.8 GB; a small model and its cache the rest
GOOD_MEMORY: Final = 6 * GIB  # tuning a small model
SMALL_ROLE_MEMORY: Final = GIB  # a gateway or monitoring host without Ray
SKEW_WARN_MS: Final = 2_000  # logs of two hosts no longer read in order
SKEW_FAIL_MS: Final = 60_000  # certificates are made with an hour of slack; leave most of it

X86_64_V2: Final = frozenset({"sse4_2", "ssse3", "popcnt", "cx16"})  # NumPy's wheels need it


def sudo(on: Subject) -> Iterator[HostFinding]:
    """The user can become root without being asked."""
    if on.meeting.sudo is not None:
        what, why, fix = on.meeting.sudo.sentences()
        yield on.failed(f"{what} {why}", fix)
    elif on.facts.uid not in {0, None}:
        text = _("{user} does not become root with sudo").format(user=on.host.ssh.user)
        yield on.failed(text, _sudoers(on))
    elif on.host.ssh.user == "root":
        yield on.passed(_("root"))
    else:
        yield on.passed(_("{user} becomes root by sudo -n").format(user=on.host.ssh.user))


def _sudoers(on: Subject) -> str:
    user = on.host.ssh.user
    return _("As root: echo '{user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/sovctl").format(
        user=user
    )


def system(on: Subject) -> Iterator[HostFinding]:
    """The distribution, its kernel, its processor's kind, systemd."""
    found = on.facts.system
    name = found.name or found.id or _("an unknown system")
    supported = ", ".join(f"{id_.title()} {'/'.join(each)}" for id_, each in SYSTEMS.items())
    if found.version in SYSTEMS.get(found.id or "", ()):
        yield on.passed(name)
    else:
        yield on.failed(
            _("{name} is not supported").format(name=name),
            _("Install one of these on it: {supported}.").format(supported=supported),
        )
    bundle = on.needs.bundle
    wanted = {each.platform.machine for each in bundle.environments} if bundle else {"x86_64"}
    if found.machine not in wanted:
        text = _("the bundle is for {wanted}; this is {machine}").format(
            wanted=", ".join(sorted(wanted)), machine=found.machine
        )
        yield on.failed(text, _("Ask your supplier for a bundle for this processor."))


def kernel(on: Subject) -> Iterator[HostFinding]:
    """It is new enough for what the firewall and the units use of it."""
    version = on.facts.system.kernel or ""
    if not version_of(version):
        yield on.untold(
            _("the kernel's version is not known"), _("Run 'uname -r' on it."), "system"
        )
    elif version_of(version) < LEAST_KERNEL:
        text = _("Linux {version} is too old").format(version=version)
        least = ".".join(map(str, LEAST_KERNEL))
        yield on.failed(text, _("Install Linux {least} or newer.").format(least=least))
    else:
        yield on.passed(f"Linux {version}")


def systemd(on: Subject) -> Iterator[HostFinding]:
    """It is process 1, new enough, and no unit has failed."""
    found = on.facts.systemd
    if found.first != "systemd":
        text = _("process 1 is {name}, not systemd").format(name=found.first or _("unknown"))
        yield on.failed(text, _("Boot it with systemd; every service of ours is a unit of it."))
        return
    if found.version is None or found.version < LEAST_SYSTEMD:
        text = _("systemd {version} is too old").format(version=found.version or "?")
        yield on.failed(text, _("Install systemd {least}.").format(least=LEAST_SYSTEMD))
    elif found.state == "degraded":
        failed = ", ".join(found.failed[:5])
        yield on.warned(
            _("units that failed: {units}").format(units=failed or "?"),
            _("Look at them: 'systemctl --failed', then 'systemctl reset-failed'."),
        )
    else:
        yield on.passed(f"systemd {found.version}, {found.state or '?'}")


def cpu(on: Subject) -> Iterator[HostFinding]:
    """PyTorch's kernels are written for AVX2, NumPy's wheels for x86-64-v2."""
    found = on.facts.cpu
    text = _("{cores} cores, {model}").format(cores=found.cores or "?", model=found.model or "?")
    if on.facts.system.machine == "x86_64":
        if found.flags is None:
            text, remedy = _("the processor's flags are not known"), _("Read /proc/cpuinfo.")
            yield on.untold(text, remedy, "cpu")
            return
        missing = sorted((X86_64_V2 | {"avx2"}) - found.flags)
        if missing and (on.needs.ray or not found.flags >= X86_64_V2):
            lacking = _("the processor lacks {flags}").format(flags=", ".join(missing))
            remedy = _("Use one made after 2015; in a virtual machine, pass the host's CPU model.")
            yield on.failed(lacking, remedy)
            return
    if found.cores is not None and found.cores < LEAST_CORES:
        yield on.warned(text, _("Give it at least {n} cores.").format(n=LEAST_CORES))
    else:
        yield on.passed(text)


def memory(on: Subject) -> Iterator[HostFinding]:
    """Enough for the host's roles, within its control group's limit; and none of it on a disk."""
    total, limit = on.facts.memory.total, on.facts.memory.limit
    if total is None:
        yield on.untold(_("its memory is not known"), _("Read /proc/meminfo on it."), "memory")
        return
    usable = min(total, limit) if limit else total
    text = _("{size:.1f} GiB of memory").format(size=usable / GIB)
    least = LEAST_MEMORY if on.needs.ray else SMALL_ROLE_MEMORY
    model = on.needs.bundle.model if on.needs.bundle else 0
    good = max(GOOD_MEMORY, LEAST_MEMORY + model) if on.needs.ray else SMALL_ROLE_MEMORY
    if usable < least:
        remedy = _("Give it at least {n} GiB of memory.").format(n=least // GIB)
        yield on.failed(text, remedy)
    elif usable < good and not on.host.gpus.count:
        remedy = _("Serving and tuning the largest model of the bundle want {n} GiB.")
        yield on.warned(text, remedy.format(n=-(-good // GIB)))
    else:
        yield on.passed(text)
    if on.facts.memory.swap:
        yield on.warned(
            _("swap is on: prompts and weights in memory may reach a disk"),
            _("Run 'swapoff -a' and take it out of /etc/fstab, or encrypt it."),
        )


def clock(on: Subject) -> Iterator[HostFinding]:
    """Against the controller's clock; what the round trip leaves in doubt counts for the host."""
    skew = on.meeting.skew_ms
    if skew is None:
        yield on.untold(_("its clock could not be read"), _("Run 'date -u' on it."))
        return
    sure = max(abs(skew) - on.meeting.doubt_ms, 0)
    side = _("ahead of") if skew > 0 else _("behind")
    text = _("its clock is {n:.1f} s {side} the controller's").format(n=abs(skew) / 1000, side=side)
    remedy = _(
        "See which is wrong ('date -u' on both) and set it: date -u -s 'YYYY-MM-DD HH:MM:SS'"
    )
    if sure > SKEW_FAIL_MS:
        yield on.failed(text, remedy)
    elif sure > SKEW_WARN_MS:
        yield on.warned(text, remedy)
    elif sure == 0:
        doubt = on.meeting.doubt_ms
        yield on.passed(_("as the controller's, within {n} ms").format(n=abs(skew) + doubt))
    else:
        yield on.passed(text)


def python(on: Subject) -> Iterator[HostFinding]:
    """A CPython on it that the bundle's wheels were chosen for."""
    found = on.facts.pythons
    bundle = on.needs.bundle
    shown = ", ".join(sorted(found or (), key=version_of)) or on.facts.python_running or "?"
    if bundle is None or (not on.needs.ray and Role.GATEWAY not in on.host.roles):
        yield on.passed(f"Python {shown}")
        return
    if found is None:
        remedy = _("Run 'ls /usr/bin/python3*' on it.")
        yield on.untold(_("its Pythons are not known"), remedy, "python")
        return
    offered = sorted({each.platform.python for each in bundle.environments}, key=version_of)
    if found.isdisjoint(offered):
        text = _("the bundle's wheels are for Python {offered}; here is {found}").format(
            offered=", ".join(offered), found=shown
        )
        remedy = _("Install python{v} on it, or ask for a bundle for this system's Python.")
        yield on.failed(text, remedy.format(v=offered[0]))
    else:
        yield on.passed(f"Python {shown}")


_FIGHTS: Final = {
    "ufw": "systemctl disable --now ufw",
    "firewalld": "systemctl disable --now firewalld",
    "kubelet": "systemctl disable --now kubelet",
    "k3s": "systemctl disable --now k3s",
    "k3s-agent": "systemctl disable --now k3s-agent",
    "microk8s": "snap remove microk8s",
}
_DISTURBS: Final = (
    "docker", "containerd", "podman", "slurmd", "ntp", "ntpsec", "openntpd", "dnsmasq", "fail2ban",
    "netfilter-persistent", "iptables", "unattended-upgrades",
)  # fmt: skip
_OUR_TABLES: Final = "sovctl"


def software(on: Subject) -> Iterator[HostFinding]:
    """Programs that would fight over the firewall, the GPUs, the clock or Ray's ports."""
    quiet = True
    for name, command in _FIGHTS.items():
        if on.facts.service(name):
            quiet = False
            text = _("{name} runs and writes firewall rules of its own").format(name=name)
            yield on.failed(text, _("Stop it: '{command}'.").format(command=command))
    disturbing = [name for name in _DISTURBS if on.facts.service(name)]
    if disturbing:
        quiet = False
        yield on.warned(
            _("these run beside the appliance: {names}").format(names=", ".join(disturbing)),
            _("Stop what is not needed: 'systemctl disable --now {name}'; what they send out is "
              "refused once the site is sealed.").format(name=disturbing[0]),
        )  # fmt: skip
    foreign = [each for each in on.facts.processes if _is_foreign_ray(on, each)]
    if foreign:
        quiet = False
        yield on.failed(
            _("another Ray runs here ({program})").format(program=foreign[0].program or "?"),
            _("Stop it: 'ray stop' in its environment."),
        )
    tables = [t for t in on.facts.firewall or () if _OUR_TABLES not in t]
    if tables:
        quiet = False
        yield on.warned(
            _("nftables has other tables: {tables}").format(tables=", ".join(tables[:5])),
            _("They stay and both must let a packet pass; look: 'nft list ruleset'."),
        )
    if on.facts.services is None:
        remedy = _("Run 'systemctl list-units' on it and look.")
        yield on.untold(_("its services are not known"), remedy, "services")
    elif quiet:
        yield on.passed(_("nothing that conflicts"))


def _is_foreign_ray(on: Subject, process: Process) -> bool:
    ours = (process.program or "").startswith(f"{on.site.folder}/") or (
        process.unit or ""
    ).startswith("sovctl-")
    return process.name in {"raylet", "gcs_server"} and not ours


def security_modules(on: Subject) -> Iterator[HostFinding]:
    """SELinux has no policy for our services; AppArmor's profiles leave them alone."""
    found = on.facts.security
    if "security" in on.facts.unknown:
        remedy = _("Run 'getenforce' and 'aa-status' on it.")
        yield on.untold(_("its security modules are not known"), remedy, "security")
    elif found.selinux == "enforcing":
        yield on.failed(
            _("SELinux is enforcing, and there is no policy for the appliance's services"),
            _("Set SELINUX=permissive in /etc/selinux/config and run 'setenforce 0'."),
        )
    elif found.apparmor:
        yield on.passed(_("AppArmor, {n} profiles enforced").format(n=found.profiles or 0))
    else:
        yield on.passed(
            _("SELinux is permissive") if found.selinux else _("neither SELinux nor AppArmor")
        )


def installed(on: Subject) -> Iterator[HostFinding]:
    """What is in the site's folder already must be this site's and this host's."""
    found = on.facts.installed
    if "installed" in on.facts.unknown:
        remedy = _("Run 'ls {folder}' on it.").format(folder=on.site.folder)
        yield on.untold(_("what is installed there is not known"), remedy, "installed")
    elif found is None or (found.site is None and found.current is None and not found.releases):
        yield on.passed(_("nothing is installed yet"))
    elif found.site is not None and found.site != on.site.name:
        yield on.failed(
            _("{folder} belongs to another site, {site}").format(
                folder=on.site.folder, site=found.site
            ),
            _("Is it the right host? If so, uninstall there first, or name another 'folder'."),
        )
    elif found.host is not None and found.host != on.host.name:
        yield on.failed(
            _("it was installed as host {other}").format(other=found.host),
            _("The addresses in site.yaml may be swapped; compare them with 'ip addr' there."),
        )
    else:
        yield on.passed(_("release {name}").format(name=found.current or _("none")))
