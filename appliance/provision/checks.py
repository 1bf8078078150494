"""Every check of a host, in the order they are shown. Pure: values in, findings out.

    for finding in judge(Subject(site, host, needs, facts, meeting)):
        print(finding.level, finding.check, finding.text, finding.remedy)

:data:`CHECKS` is the list that ``docs/preflight.md`` is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from appliance.i18n import N_
from appliance.provision import (
    checks_accelerator,
    checks_machine,
    checks_network,
    checks_storage,
)
from appliance.provision.finding import HostFinding
from appliance.provision.subject import Subject


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``judge`` is None where it needs more than one host's facts, or none at all."""

    name: str
    fails: str
    warns: str
    remedy: str
    judge: Callable[[Subject], Iterator[HostFinding]] | None = None


CHECKS: tuple[Check, ...] = (
    Check(
        "reachable",
        N_("No SSH connection, an unknown or changed host key, a login refused, no Python 3."),
        N_("—"),
        N_("What the error says; 'sovctl site check --hosts' tries again."),
    ),
    Check(
        "sudo",
        N_("The user cannot become root without a password."),
        N_("—"),
        N_("A line 'USER ALL=(ALL) NOPASSWD: ALL' under /etc/sudoers.d."),
        checks_machine.sudo,
    ),
    Check(
        "system",
        N_("Another distribution than Debian 12 or 13, or another processor than the bundle's."),
        N_("—"),
        N_("Install a supported system; ask for a bundle for this processor."),
        checks_machine.system,
    ),
    Check(
        "kernel",
        N_("Linux older than 5.10."),
        N_("—"),
        N_("Install a newer kernel."),
        checks_machine.kernel,
    ),
    Check(
        "systemd",
        N_("Process 1 is not systemd, or it is older than 247."),
        N_("A unit has failed."),
        N_("'systemctl --failed'."),
        checks_machine.systemd,
    ),
    Check(
        "cpu",
        N_("Without AVX2 on a host that runs Ray; without x86-64-v2 on any."),
        N_("Fewer than two cores."),
        N_("A newer processor; the host's CPU model in a virtual machine."),
        checks_machine.cpu,
    ),
    Check(
        "memory",
        N_("Less than 3 GiB on a host that runs Ray, 1 GiB on others."),
        N_("Less than 6 GiB, or than 3 GiB and the largest model, without GPUs; swap is on."),
        N_("More memory; 'swapoff -a'."),
        checks_machine.memory,
    ),
    Check(
        "clock",
        N_("More than 60 s from the controller's, whatever the round trip hid."),
        N_("More than 2 s."),
        N_("'date -u -s …' on the one that is wrong; chrony keeps them together afterwards."),
        checks_machine.clock,
    ),
    Check(
        "addresses",
        N_("An address of site.yaml is on none of its interfaces, or the link is down."),
        N_("—"),
        N_("Correct site.yaml or the host's network."),
        checks_network.addresses,
    ),
    Check(
        "speed",
        N_("—"),
        N_("Less than 10 Gbit/s in the cluster network of several hosts."),
        N_("A faster port."),
        checks_network.speed,
    ),
    Check(
        "mtu",
        N_("An interface has another MTU than its network in site.yaml."),
        N_("The way to a peer carries less than the interface."),
        N_("'ip link set … mtu …', or correct site.yaml."),
        checks_network.mtu,
    ),
    Check(
        "routes",
        N_("The controller is reached by the default route, which sealing takes away."),
        N_("—"),
        N_("A route to the controller's network, or 'egress: default_route' with its reason."),
        checks_network.routes,
    ),
    Check(
        "operator",
        N_("The controller is in none of the networks that may use SSH once sealed."),
        N_("—"),
        N_("Run sovctl from there, or make its network a management network of the site."),
        checks_network.operator,
    ),
    Check(
        "peers",
        N_("A host that it works with is not reached over the cluster network."),
        N_("—"),
        N_("Cabling, VLAN, firewalls between the hosts."),
        checks_network.peers,
    ),
    Check(
        "ports",
        N_("A port that the appliance needs is taken by another program."),
        N_("A port of a larger range is taken."),
        N_("Stop the program that is named."),
        checks_network.ports,
    ),
    Check(
        "names",
        N_("—"),
        N_("The site's name servers do not answer; the host's own name takes seconds."),
        N_("Correct 'name_servers'; put the host's name into /etc/hosts."),
        checks_network.names,
    ),
    Check(
        "space",
        N_("Bytes or inodes are lacking for store, runtime or packages, per file system."),
        N_("—"),
        N_("Free what is said to be lacking."),
        checks_storage.space,
    ),
    Check(
        "disk-speed",
        N_("—"),
        N_("Less than 100 MB/s written and fsynced, or it cannot be measured."),
        N_("A faster disk; 'findmnt -T FOLDER'."),
        checks_storage.disk_speed,
    ),
    Check(
        "mounts",
        N_("The site's folder is on a file system mounted noexec or read-only."),
        N_("/tmp or /var/tmp is noexec; /dev/shm has less than 1 GiB."),  # noqa: S108 - a text
        N_("'mount -o remount,exec …'."),
        checks_storage.mounts,
    ),
    Check(
        "storage",
        N_("The shared storage is not mounted, read-only, not writable by root, not the same on "
           "every host; the NFS server does not answer."),
        N_("—"),
        N_("Mount it; export it with 'no_root_squash'."),
        checks_storage.shared,
    ),
    Check(
        "software",
        N_("ufw, firewalld, Kubernetes or another Ray runs."),
        N_("Docker, Slurm, another time service and the like run; foreign nftables tables."),
        N_("'systemctl disable --now …'."),
        checks_machine.software,
    ),
    Check(
        "security",
        N_("SELinux is enforcing."),
        N_("—"),
        N_("'setenforce 0' and SELINUX=permissive."),
        checks_machine.security_modules,
    ),
    Check(
        "python",
        N_("None of its Pythons is one that the bundle's wheels are for."),
        N_("—"),
        N_("Install that Python, or ask for a bundle for this one."),
        checks_machine.python,
    ),
    Check(
        "runtime",
        N_("None of the bundle's runtimes fits machine, Python and accelerator."),
        N_("It has GPUs, and the bundle no runtime for CUDA."),
        N_("Ask for a bundle with that runtime."),
        checks_accelerator.runtime,
    ),
    Check(
        "gpu",
        N_("Fewer GPUs than site.yaml says, or others; no driver and none in the bundle; NVSwitch "
           "without fabric manager; Secure Boot before the driver is there."),
        N_("MIG is on; nouveau has the GPUs."),
        N_("'nvidia-smi', 'lspci -d 10de:'; correct site.yaml."),
        checks_accelerator.gpu,
    ),
    Check(
        "driver",
        N_("Older than site.yaml's minimum, or than the runtime's CUDA can do with."),
        N_("Older than the runtime's CUDA, within its major version."),
        N_("Install the driver that is named."),
        checks_accelerator.driver,
    ),
    Check(
        "installed",
        N_("The folder belongs to another site, or to another host of this one."),
        N_("—"),
        N_("Compare addresses; uninstall there first."),
        checks_machine.installed,
    ),
    Check(
        "machine-id",
        N_("Two hosts have the same."),
        N_("It has none."),
        N_("'rm /etc/machine-id && systemd-machine-id-setup', then restart."),
    ),
    Check(
        "hostname",
        N_("Two hosts have the same."),
        N_("It has none."),
        N_("'hostnamectl set-hostname NAME'."),
    ),
)  # fmt: skip


def judge(subject: Subject) -> tuple[HostFinding, ...]:
    """Every check of one host that looks at that host alone; at least one finding for each."""
    return tuple(
        finding
        for check in CHECKS
        if check.judge is not None
        for finding in check.judge(subject.under(check.name))
    )
