"""The roles of the operating system on real hosts: bare Debian 12 twice, bare Debian 13 once.

Judged by what the hosts say themselves (ss, sshd -T, chronyc, sysctl, Prometheus), not by Ansible.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.manifests.site import Site
from appliance.provision.inventory import Deployment, inventory
from tests.lab.lab import Host, Lab, unfit
from tests.lab.os_repository import lay_out, os_packages

UNFIT = unfit()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # on a machine that does other things as well
    pytest.mark.skipif(UNFIT is not None, reason=f"no lab: {UNFIT}"),
]

CHECKOUT = Path(__file__).resolve().parents[2]
HOME = "/var/lib/sovctl"
REPOSITORY = "packages/os"
OURS = "chrony prometheus-node-exporter ssh systemd-journald"

PLAY = """
- name: The operating system
  hosts: all
  gather_facts: true
  gather_subset: ["!all", "min"]
  any_errors_fatal: true
  roles: [base, apt_offline, time, gpu, hardening, monitoring]
"""


class OsSite:
    """A lab's hosts as a site, and Ansible as it comes from the controller."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        require_own_kernel_settings(lab)
        self.lab = lab
        self.folder = folder
        self.files = folder / "site"
        site = Site.model_validate(self._document())
        tree = inventory(site, Deployment("r1", self.files, REPOSITORY))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "inventory.yml").write_text(yaml.safe_dump(tree))
        (folder / "play.yml").write_text(PLAY)
        (folder / "ansible.cfg").touch()  # nobody else's
        self.control = Path(tempfile.mkdtemp(prefix="os-site-"))  # a socket's path is short
        lines = "".join(f"{host.cluster} {host.name}\n" for host in lab.hosts)
        for host in lab.hosts:
            mine = self.files / "hosts" / host.name
            mine.mkdir(parents=True, exist_ok=True)
            (mine / "hosts").write_text(lines)

    def _document(self) -> dict[str, Any]:
        def host(each: Host) -> dict[str, Any]:
            first = each.name == "n1"
            roles = ["ray_head", "gateway", "monitoring"] if first else []
            user = "root" if first else "ops"
            return {
                "name": each.name,
                "roles": ["ray_worker", *roles],
                "domain": "main",
                "interfaces": [
                    {"network": "admin", "address": each.admin},
                    {"network": "cluster", "address": each.cluster},
                ],
                "ssh": {"user": user, "key": str(self.lab.key)},
            }

        return {
            "schema_version": 1,
            "name": "lab",
            "networks": [
                {"name": "admin", "kind": "management", "cidr": "198.18.0.0/24"},
                {"name": "cluster", "kind": "cluster", "cidr": "198.18.1.0/24"},
            ],
            "trust_domains": [{"name": "main", "purpose": "shared"}],
            "hosts": [host(each) for each in self.lab.hosts],
            "gateway": {"networks": ["admin"]},
            "storage": {"kind": "mounted", "path": "/srv/shared"},
        }

    def deliver(self, release: str) -> None:
        """The bundle's repository on every host, as role store leaves it."""
        for host in self.lab.hosts:
            lay_out(os_packages(release), host.root / f"{HOME[1:]}/releases/r1" / REPOSITORY)

    def play(self, *arguments: str) -> str:
        """Run the roles; what Ansible printed."""
        done = self.lab.controller.run(
            [Path(sys.executable).with_name("ansible-playbook"),
             "-i", self.folder / "inventory.yml", self.folder / "play.yml", *arguments],
            env={
                "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
                "ANSIBLE_HOME": str(self.folder / "ansible"),
                "ANSIBLE_ROLES_PATH": str(CHECKOUT / "playbooks/roles"),
                "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "playbooks/collections"),
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_SSH_ARGS": f"-F none -o UserKnownHostsFile={self.lab.known_hosts}"
                " -o GlobalKnownHostsFile=/dev/null -o ControlMaster=auto -o ControlPersist=30s",
                # Two labs use the same addresses: not the folder in ~ that ansible takes for all.
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.control),
                "ANSIBLE_NOCOLOR": "1",
            },
        )  # fmt: skip
        return done.stdout


def recap(output: str) -> dict[str, dict[str, int]]:
    """Host → what Ansible counted."""
    found = {}
    for line in output.partition("PLAY RECAP")[2].splitlines():
        counts = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}
        if counts:
            found[line.split()[0]] = counts
    return found


def changed(output: str) -> dict[str, int]:
    return {host: counts["changed"] for host, counts in recap(output).items()}


def listening(host: Host, how: str) -> set[str]:
    """``address:port`` of every socket that is open to others. ``how`` is ``t`` or ``u``."""
    lines = host.ssh(f"ss -H -ln{how}").stdout.splitlines()
    places = {line.split()[3] for line in lines}  # after the state and two queues
    return {p for p in places if not p.startswith(("127.", "[::1]"))}


def require_own_kernel_settings(lab: Lab) -> None:
    """What is not a network's is this machine's, and roles must not reach it from a lab."""
    for host in lab.hosts:
        options = host.ssh("findmnt --noheadings --output OPTIONS /proc/sys | head -n 1").stdout
        assert "ro" in options.split(","), "the lab lets hosts change this machine's kernel"


def sysctl(host: Host, name: str) -> str:
    return " ".join(host.ssh(f"sysctl -n {name}").stdout.split())


@pytest.fixture(scope="module")
def bookworm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OsSite]:
    os_packages("bookworm")  # before the lab is up: it may take a minute
    with Lab.up(tmp_path_factory.mktemp("lab"), hosts=2, internet=True) as lab:
        yield OsSite(lab, tmp_path_factory.mktemp("site"))


def test_two_bare_hosts_become_what_the_site_says(bookworm: OsSite) -> None:
    """In one test, because each step stands on the one before and a lab is expensive."""
    n1, n2 = bookworm.lab.hosts

    # Before anything is there, check mode tells what would change, and changes nothing.
    before = n1.ssh("find /etc -newer /etc/hostname -type f | sort").stdout
    said = bookworm.play("--check", "--diff")
    assert all(count > 5 for count in changed(said).values()), said  # tasks, of several files each
    assert "+net.ipv4.ip_local_port_range" in said
    assert n1.ssh("find /etc -newer /etc/hostname -type f | sort").stdout == before
    assert "no such user" in n1.ssh("id sovctl 2>&1", check=False).stdout

    bookworm.deliver("bookworm")
    said = bookworm.play()
    assert all(counts["failed"] == 0 for counts in recap(said).values())

    said = bookworm.play("--diff")
    assert changed(said) == {"n1": 0, "n2": 0}, said
    said = bookworm.play("--check", "--diff")
    assert changed(said) == {"n1": 0, "n2": 0}, said

    check_base(n1, n2)
    check_packages(n1, n2)
    check_time(n1, n2)
    check_hardening(n1)
    check_monitoring(n1, n2)

    # All of it is there again after a restart, and nothing else is.
    open_before = listening(n2, "t"), listening(n2, "u")
    n2.reboot()
    assert (listening(n2, "t"), listening(n2, "u")) == open_before
    check_time(n1, n2)
    assert n2.ssh(f"systemctl is-active {OURS}").stdout.split() == ["active"] * 4
    assert sysctl(n2, "net.ipv4.ip_local_port_range") == "32768 33791"


def check_base(n1: Host, n2: Host) -> None:
    for host in (n1, n2):
        assert host.ssh("id -u sovctl; id -g sovctl").stdout.split() == ["840", "840"]
        shown = host.ssh(f"cd {HOME} && stat -c '%n %a %U:%G' . store tls secrets run runs").stdout
        assert shown.splitlines() == [
            ". 755 root:root",
            "store 755 root:root",
            "tls 755 root:root",
            "secrets 750 root:sovctl",
            "run 750 sovctl:sovctl",
            "runs 750 sovctl:sovctl",
        ]
        assert sysctl(host, "net.ipv4.ip_local_port_range") == "32768 33791"
        assert n1.cluster in host.ssh("getent hosts n1").stdout
        assert host.ssh("hostname").stdout.strip() == host.name
        assert host.ssh("journalctl --header | grep -c /var/log/journal").stdout.strip() != "0"
    assert "registry" in n1.ssh(f"ls {HOME}").stdout
    assert "registry" not in n2.ssh(f"ls {HOME}").stdout


def check_packages(n1: Host, n2: Host) -> None:
    policy = n2.ssh("apt-cache policy chrony nginx").stdout
    assert f"file:{HOME}/releases/r1/{REPOSITORY}" in policy
    assert "http" not in policy
    # The host's own sources are as they were, and one file less brings them back.
    own = n2.ssh("apt-get -o Dir::Etc::sourcelist=/etc/apt/sources.list --print-uris update").stdout
    assert "http" in own
    assert n1.ssh("command -v prometheus").stdout
    assert not n2.ssh("command -v prometheus", check=False).stdout
    # What a package could have opened stays shut.
    for host in (n1, n2):
        assert host.ssh("systemctl is-enabled nginx", check=False).stdout.strip() == "masked"
        assert not any(p.endswith((":80", ":111")) for p in listening(host, "t"))


def check_time(n1: Host, n2: Host) -> None:
    n2.ssh("chronyc waitsync 30 0 0 1")
    assert n1.cluster in n2.ssh("chronyc -n tracking").stdout
    assert "Stratum         : 10" in n1.ssh("chronyc -n tracking").stdout
    # The lab may not touch the clock, and chronyd knows it.
    assert " -x " in n2.ssh("ps -o args= -C chronyd").stdout
    assert not any(p.endswith(":123") for p in listening(n2, "u"))
    assert not any(p.endswith(":323") for p in listening(n1, "u"))


def check_hardening(n1: Host) -> None:
    effective = n1.ssh("sshd -T").stdout.splitlines()
    for line in (
        "passwordauthentication no",
        "permitrootlogin without-password",
        "disableforwarding yes",
        "pubkeyauthentication yes",
    ):
        assert line in effective
    assert n1.ssh("echo in", user="ops").stdout == "in\n"
    assert sysctl(n1, "net.ipv4.ip_forward") == "0"
    assert sysctl(n1, "net.ipv6.conf.eth0.accept_ra") == "0"
    assert n1.ssh("systemctl is-enabled apt-daily.timer", check=False).stdout.strip() == "masked"
    assert n1.ssh("bash -lc umask").stdout.strip() == "0027"


def check_monitoring(n1: Host, n2: Host) -> None:
    assert f"{n1.cluster}:9100" in listening(n1, "t")
    assert f"{n2.cluster}:9100" in listening(n2, "t")
    ports = {place.rpartition(":")[2] for place in listening(n1, "t")}
    assert ports == {"22", "9100"}
    asked = (
        "import json,time,urllib.request as u\n"
        "for _ in range(60):\n"
        "    r=u.urlopen('http://127.0.0.1:9090/api/v1/targets'); t=json.load(r)\n"
        "    t=t['data']['activeTargets']\n"
        "    n=[x for x in t if x['labels']['job']!='ray']\n"
        "    if n and all(x['health']=='up' for x in n): break\n"
        "    time.sleep(1)\n"
        "print(json.dumps([[x['labels']['job'],x['labels'].get('host'),x['health'],"
        "x['scrapeUrl']] for x in t]))\n"
    )
    targets = json.loads(n1.ssh("python3 -", stdin=asked).stdout)
    health = {(job, host): state for job, host, state, _url in targets}
    assert health[("node", "n1")] == health[("node", "n2")] == health[("prometheus", None)] == "up"
    # Ray does not run here; that it would be asked, and where, is in the list.
    assert [f"http://{n2.cluster}:6385/metrics"] == [
        url for job, host, _state, url in targets if (job, host) == ("ray", "n2")
    ]


def test_the_same_roles_fit_debian_13(tmp_path: Path) -> None:
    os_packages("trixie")
    with Lab.up(tmp_path / "lab", hosts=1, internet=False, debian="trixie") as lab:
        site = OsSite(lab, tmp_path / "site")
        (n1,) = lab.hosts

        # The bundle of another Debian is refused before a package is touched.
        site.deliver("bookworm")
        with pytest.raises(AssertionError, match="runs Debian trixie"):
            site.play()
        assert not n1.ssh("command -v chronyd", check=False).stdout

        site.deliver("trixie")
        site.play()
        said = site.play("--diff")
        assert changed(said) == {"n1": 0}, said
        assert "passwordauthentication no" in n1.ssh("sshd -T").stdout.splitlines()
        assert "Stratum         : 10" in n1.ssh("chronyc -n tracking").stdout
        assert f"{n1.cluster}:9100" in listening(n1, "t")
        assert sysctl(n1, "net.ipv4.ip_local_port_range") == "32768 33791"
        assert n1.ssh(f"systemctl is-active {OURS}").stdout.split() == ["active"] * 4
