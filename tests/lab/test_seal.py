"""The seal on real hosts: closed, proven, survived by a reboot, taken back when it locks out.

One lab of two hosts, and the tests go through a host's life in their order. The control comes
first: before the seal, what plays the internet answers every kind of attempt.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.egress import names, ruleset
from appliance.egress.probe import ProbeResult
from appliance.layout import Home, SitePlace
from appliance.manifests.site import Site
from appliance.provision import proof
from tests.lab.lab import Host, Lab

CHECKOUT = Path(__file__).parents[2]
TRIAL_SECONDS = 8  # of the seal that locks out; the others have the role's own minute
OUTSIDE = "192.0.2.1"


@dataclass(frozen=True)
class Reached:
    """A host as the proof wants it, over the lab's own SSH. n2 is reached as ``ops`` with sudo."""

    host: Host
    user: str

    def run(
        self, argv: Any, *, stdin: bytes = b"", timeout_s: float = 60, sudo: bool = False
    ) -> Any:
        become = ["sudo", "-n"] if sudo and self.user != "root" else []
        command = self.host.lab.controller.argv(
            [*self.host.ssh_argv(self.user), " ".join([*become, *argv])]
        )
        done = subprocess.run(
            command, input=stdin, capture_output=True, check=False, timeout=timeout_s
        )
        return _Completed(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class _Completed:
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        return self.stderr.decode()[-500:]


@dataclass(frozen=True)
class Stage:
    """The lab, its site, and what the controller keeps of it."""

    lab: Lab
    site: Site
    place: SitePlace

    def play(self, *options: str, check: bool = True, **variables: Any) -> dict[str, Any]:
        """Run the role on both hosts; what Ansible says of each."""
        extra = json.dumps(variables)
        ssh = f"-o UserKnownHostsFile={self.lab.known_hosts} -o StrictHostKeyChecking=yes"
        alive = "-o ServerAliveInterval=2 -o ServerAliveCountMax=2 -o ConnectTimeout=3"
        kept = "-o ControlMaster=auto -o ControlPersist=60s"
        environment = {
            "ANSIBLE_ROLES_PATH": str(CHECKOUT / "playbooks" / "roles"),
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "playbooks" / "collections"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_SSH_ARGS": f"-F none {ssh} {alive} {kept}",
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_RETRY_FILES_ENABLED": "false",
            "ANSIBLE_NOCOLOR": "true",
        }
        playbook = Path(sys.executable).with_name("ansible-playbook")
        folder = self.place.root
        done = self.lab.controller.run(
            [playbook, "-i", folder / "inventory.yml", "-e", extra, *options, folder / "play.yml"],
            env=environment, check=False, timeout=120,
        )  # fmt: skip
        recap = {
            line.split()[0]: dict(pair.split("=") for pair in line.split()[2:])
            for line in done.stdout.split("PLAY RECAP")[-1].splitlines()
            if " : ok=" in line or "ok=" in line
        }
        if check:
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        return {"status": done.returncode, "said": done.stdout, "recap": recap}

    def examine(self, **how: bool) -> dict[str, dict[str, ProbeResult]]:
        """What each host says of its seal, by probe and target."""
        remotes = {
            "n1": Reached(self.lab.host("n1"), "root"),
            "n2": Reached(self.lab.host("n2"), "ops"),
        }
        found = proof.examine(self.site, remotes, **how)
        return {
            place.removeprefix("host "): {f"{r.probe} {r.target}": r for r in results}
            for place, results in found.items()
        }

    def render(self, host: str, change: tuple[str, str] = ("", "")) -> None:
        """Write what Ansible copies to a host."""
        folder = self.place.host(host)
        folder.mkdir(parents=True, exist_ok=True)
        text = ruleset.render(self.site, self.site.host(host))
        (folder / "egress.nft").write_text(text.replace(*change) if change[0] else text)
        (folder / "hosts").write_text(names.hosts_file(self.site, self.site.host(host)))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("seal")
    with Lab.up(folder / "lab", hosts=2, internet=True) as lab:
        site = Site.model_validate(_site(lab))
        made = Stage(lab, site, SitePlace(Home(folder / "home"), site.name))
        for host in ("n1", "n2"):
            made.render(host)
        (made.place.root / "inventory.yml").write_text(yaml.safe_dump(_inventory(lab, made.place)))
        play = [{"hosts": "all", "gather_facts": False, "roles": [{"role": "egress"}]}]
        (made.place.root / "play.yml").write_text(yaml.safe_dump(play))
        yield made


def _site(lab: Lab) -> dict[str, Any]:
    def host(each: Host, roles: list[str]) -> dict[str, Any]:
        networks = {"admin": each.admin, "admin6": each.admin_v6,
                    "cluster": each.cluster, "storage": each.storage}  # fmt: skip
        return {
            "name": each.name, "roles": roles, "domain": "main",
            "interfaces": [{"network": n, "address": a} for n, a in networks.items()],
        }  # fmt: skip

    return {
        "schema_version": 1,
        "name": "lab",
        "networks": [
            {"name": "admin", "kind": "management", "cidr": "198.18.0.0/24"},
            {"name": "admin6", "kind": "management", "cidr": "fd5a:198:18:0::/64"},
            {"name": "cluster", "kind": "cluster", "cidr": "198.18.1.0/24"},
            {"name": "storage", "kind": "storage", "cidr": "198.18.2.0/24"},
        ],
        "trust_domains": [{"name": "main", "purpose": "shared"}],
        "hosts": [
            host(lab.host("n1"), ["ray_head", "ray_worker", "gateway", "monitoring"]),
            host(lab.host("n2"), ["ray_worker"]),
        ],
        "gateway": {"networks": ["admin"]},
        "storage": {"kind": "mounted", "path": "/srv/shared"},
    }


def _inventory(lab: Lab, place: SitePlace) -> dict[str, Any]:
    return {
        "all": {
            "hosts": {
                host.name: {
                    "ansible_host": host.admin,
                    "ansible_user": user,
                    "ansible_become": user != "root",
                    "ansible_ssh_private_key_file": str(lab.key),
                    "ansible_python_interpreter": "/usr/bin/python3",
                    "host_files": str(place.host(host.name)),
                }
                for host, user in zip(lab.hosts, ("root", "ops"), strict=True)
            },
            "vars": {"name_servers": [], "default_route_reason": ""},
        }
    }


def blocked(found: dict[str, ProbeResult]) -> None:
    """Everything about the host is as it must be, and every attempt was refused."""
    for name, result in found.items():
        assert result.outcome in ("control-ok", "blocked"), (name, result)
    for kind in ("tcp", "udp", "dns", "icmp", "tcp-ipv6", "udp-ipv6", "tcp over eth0"):
        for user in ("root", "nobody"):
            assert any(name.startswith(f"{kind} as {user} ") for name in found), (kind, user)
    for counter in ("tcp", "udp", "dns", "icmp", "ipv6"):
        assert found[f"counter refused_{counter}"].outcome == "control-ok"


def test_the_control_before_sealing_everything_answers(stage: Stage) -> None:
    for host, found in stage.examine(control=True).items():
        for probe, target, detail in (
            ("tcp", OUTSIDE, "connected"),
            ("udp", OUTSIDE, "answered"),
            ("dns", "198.51.100.53", "answered"),
            ("tcp-ipv6", "2001:db8::1", "connected"),
            ("udp-ipv6", "2001:db8::1", "answered"),
        ):
            for user in ("root", "nobody"):
                assert found[f"{probe} as {user} {target}"].detail == detail, (host, probe)
        assert found[f"icmp as root {OUTSIDE}"].detail == "answered"


def test_the_role_seals_and_the_proof_says_closed(stage: Stage) -> None:
    dry = stage.play("--check", "--diff")
    assert stage.lab.host("n1").ssh("nft list tables").stdout == ""
    assert dry["recap"].keys() == {"n1", "n2"}

    first = stage.play()
    assert all(int(each["changed"]) > 0 for each in first["recap"].values())
    before = stage.lab.internet.seen()
    for found in stage.examine().values():
        blocked(found)
    assert stage.lab.internet.seen() == before, "a packet reached the internet"
    # n2 looks a name up, and pings, with Debian's own programs
    assert stage.lab.host("n2").ssh("getent hosts example.org", check=False).returncode
    assert stage.lab.host("n2").ssh(f"ping -c1 -W1 {OUTSIDE}", check=False).returncode
    assert stage.lab.internet.seen() == before
    assert stage.lab.host("n2").ssh("id -un", user="ops").stdout == "ops\n"


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    for options in ((), ("--check", "--diff")):
        again = stage.play(*options)
        assert {each["changed"] for each in again["recap"].values()} == {"0"}, again["said"]


def test_sovctl_asks_every_host(stage: Stage) -> None:
    place = stage.place
    place.root.mkdir(parents=True, exist_ok=True)
    place.known_hosts.write_text(stage.lab.known_hosts.read_text())
    content = _site(stage.lab)
    for host in content["hosts"]:
        host["ssh"] = {"key": str(stage.lab.key)}
    place.site_file.write_text(yaml.safe_dump(content))
    done = stage.lab.controller.run(
        [sys.executable, "-m", "appliance.cli.main", "egress", "status", "--site", "lab", "--json"],
        env={"SOVCTL_HOME": str(place.home.root), "PYTHONPATH": str(CHECKOUT)}, check=False,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert [p["name"] for p in said["places"]] == ["host n1", "host n2"]
    assert (done.returncode, said["answer"]) == (0, "closed"), done.stdout


def test_a_tampered_ruleset_is_found_and_a_flushed_one_comes_back(stage: Stage) -> None:
    n2 = stage.lab.host("n2")
    n2.ssh("nft insert rule inet sovctl output udp dport 9 accept")
    found = stage.examine()
    assert found["n2"]["rules kernel"].outcome == "not-sealed"
    assert "udp dport 9 accept" in found["n2"]["rules kernel"].detail
    assert any(result.outcome == "reached" for result in found["n2"].values())
    blocked(found["n1"])

    n2.ssh("nft flush ruleset && ip route add default via 198.18.0.1")
    n2.ssh("for i in $(seq 100); do nft list table inet sovctl >/dev/null 2>&1 && "
           "[ -z \"$(ip route show default)\" ] && exit 0; sleep 0.1; done; exit 1")  # fmt: skip
    blocked(stage.examine()["n2"])


def test_a_broken_ruleset_leaves_the_old_one(stage: Stage) -> None:
    n2 = stage.lab.host("n2")
    n2.ssh("sed -i 's/tcp dport 22 /tcp dport ssshh /' /etc/sovctl/egress.candidate.nft")
    assert n2.ssh("sovctl-seal apply", check=False).returncode == 1
    blocked(stage.examine()["n2"])


def test_a_seal_that_locks_out_takes_itself_back(stage: Stage) -> None:
    stage.render("n2", ("tcp dport 22 ", "tcp dport 2222 "))
    locked = stage.play("--limit", "n2", check=False, egress_confirm_seconds=TRIAL_SECONDS)
    assert locked["status"] != 0
    stage.render("n2")
    n2 = stage.lab.host("n2")
    for _attempt in range(30):
        if n2.ssh("test ! -e /run/sovctl-seal/pending.json", check=False).returncode == 0:
            break
    assert json.loads(n2.ssh("sovctl-seal status").stdout)["rolled_back"] is not None
    blocked(stage.examine()["n2"])
    # the next boot would load the old one, too; Ansible brings the right candidate again
    n2.ssh("cp /etc/sovctl/egress.nft /etc/sovctl/egress.candidate.nft")
    assert json.loads(n2.ssh("sovctl-seal apply").stdout) == {"changed": False, "state": "sealed"}


def test_the_seal_survives_a_reboot(stage: Stage) -> None:
    n2 = stage.lab.host("n2")
    n2.reboot()  # its cable brings a default route again
    shown = n2.ssh("systemctl show -p ActiveEnterTimestampMonotonic sovctl-egress ssh").stdout
    sealed, ssh = (int(line.split("=")[1]) for line in shown.split())
    assert 0 < sealed < ssh, "the rules were there before anything used the network"
    blocked(stage.examine()["n2"])
    assert n2.ssh("ip route show default; ip -6 route show default").stdout == ""


def test_rules_that_cannot_be_loaded_at_boot_leave_no_way_out(stage: Stage) -> None:
    n2 = stage.lab.host("n2")
    n2.ssh("systemctl stop sovctl-egress-guard sovctl-egress; echo broken >/etc/sovctl/egress.nft; "
           "nft flush ruleset")  # fmt: skip
    assert n2.ssh("systemctl start sovctl-egress", check=False).returncode != 0
    assert n2.ssh("id -un", user="ops").stdout == "ops\n"
    before = stage.lab.internet.seen()
    n2.ssh("ip route replace default via 198.18.0.1")
    assert n2.ssh(f"ping -c1 -W1 {OUTSIDE}", check=False).returncode
    assert n2.ssh(f"timeout 2 bash -c 'echo >/dev/tcp/{OUTSIDE}/443'", check=False).returncode
    assert stage.lab.internet.seen() == before
    assert stage.examine()["n2"]["rules kernel"].outcome == "not-sealed"
