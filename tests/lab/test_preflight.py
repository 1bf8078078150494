"""Preflight on real hosts: fit ones pass, what is wrong is named for the host that has it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.lab import HOME, Lab
from tests.lab.lab_site import site_of, write_site

CHECKOUT = Path(__file__).parents[2]
DISK = 1 << 31


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with Lab.up(folder, hosts=3, internet=True, shared=folder / "shared", disk=DISK) as lab:
        yield lab


class Seen:
    """A report as ``--json`` prints it."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        self.hosts = {host["name"]: host for host in report["hosts"]}

    def levels(self, host: str, level: str) -> dict[str, str]:
        """Text and remedy by check, for one host's findings of that level."""
        return {
            each["check"]: f"{each['text']} {each['remedy']}"
            for each in self.hosts[host]["checks"]
            if each["level"] == level
        }


def look(lab: Lab, folder: Path, site: dict[str, Any] | None = None) -> Seen:
    """``sovctl site check --hosts`` on the controller, with a home that holds nothing."""
    file = write_site(lab, folder, site)
    done = lab.controller.run(
        [sys.executable, "-m", "appliance.cli.main", "site", "check", file, "--hosts", "--json"],
        env={"PYTHONPATH": str(CHECKOUT), "SOVCTL_HOME": str(folder / "home")},
        check=False,
    )
    value = json.loads(done.stdout)
    assert done.returncode == (4 if value["preflight"]["failed"] else 0), done.stderr
    assert not (folder / "home").exists()
    return Seen(value["preflight"])


def test_fit_hosts_pass_and_nothing_is_left_on_them(lab: Lab, tmp_path: Path) -> None:
    for user in ("root", "ops"):
        seen = look(lab, tmp_path, site_of(lab, user=user))
        complaints = {host.name: seen.levels(host.name, "fail") for host in lab.hosts}
        assert not seen.report["failed"], complaints
        for host in lab.hosts:
            assert {"reachable", "sudo", "storage", "space"} <= set(seen.levels(host.name, "pass"))
    for host in lab.hosts:
        assert host.ssh(f"find {HOME} /srv/shared -mindepth 1").stdout == ""


def test_what_is_wrong_is_told_of_the_host_that_has_it(lab: Lab, tmp_path: Path) -> None:
    n1, n2, n3 = lab.hosts
    n1.ssh("mount -t tmpfs -o noexec tmpfs /tmp")
    n1.ssh("systemd-run --unit=squatter python3 -m http.server 8443 --bind 0.0.0.0")
    cluster = n1.ssh(f"ip -o addr show to {n1.cluster}").stdout.split()[1].partition("@")[0]
    n1.ssh(f"ip link set {cluster} mtu 1400")
    release = n2.ssh("cat /etc/os-release").stdout
    n2.ssh("rm /etc/os-release; printf 'ID=fedora\nVERSION_ID=40\n' > /etc/os-release")
    n2.skew_clock(-120)
    n2.fill_disk(free=4 << 20)
    lab.cut(n3)
    try:
        seen = look(lab, tmp_path)
    finally:
        lab.mend(n3)
        n2.free_disk()
        n2.skew_clock(0)
        n2.ssh("cat > /etc/os-release", stdin=release)
        n1.ssh(f"ip link set {cluster} mtu 1500; systemctl stop squatter; umount /tmp")
    one, two, three = (seen.levels(host.name, "fail") for host in lab.hosts)
    assert "squatter.service" in one["ports"] and "8443" in one["ports"]
    assert f"ip link set {cluster} mtu 1500" in one["mtu"]
    assert "/tmp is mounted noexec" in seen.levels("n1", "warn")["mounts"]
    assert set(one) == {"ports", "mtu", "peers"} and "n3" in one["peers"]
    assert "120" in two["clock"] and "behind" in two["clock"]
    assert "fedora" in two["system"] and "Debian 12" in two["system"]
    assert HOME in two["space"] and "Free" in two["space"]
    assert set(two) == {"clock", "system", "space", "peers"}
    assert set(three) == {"reachable"} and not seen.hosts["n3"]["reached"]


def test_a_user_without_sudo_and_a_wrong_address(lab: Lab, tmp_path: Path) -> None:
    site = site_of(lab)
    site["hosts"][1]["ssh"]["user"] = "guest"
    site["hosts"][2]["interfaces"][1]["address"] = "198.18.1.99"
    site["hosts"][2]["ssh"]["host_keys"] = ["SHA256:" + "A" * 43]
    seen = look(lab, tmp_path, site)
    assert "sudo" in seen.levels("n2", "fail") and "addresses" in seen.levels("n2", "pass")
    assert set(seen.levels("n3", "fail")) == {"reachable"}  # another machine's key: not talked to
    site["hosts"][2]["ssh"]["host_keys"] = [lab.host("n3").fingerprint]
    seen = look(lab, tmp_path, site)
    assert "198.18.1.99" in seen.levels("n3", "fail")["addresses"]
    assert "peers" in seen.levels("n1", "fail")
