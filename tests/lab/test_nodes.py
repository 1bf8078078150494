"""Real hosts are reached and brought a release: keys, cut links, full disks, two operators."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.lab import Host, Lab
from tests.lab.lab_site import site_of, write_site
from tests.lab.node_driver import RELEASE

MEGABYTES = 64
WHOLE = (MEGABYTES << 20) + 5
TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with Lab.up(folder, hosts=3, internet=False, disk=1 << 30) as lab:
        yield lab


@pytest.fixture
def home(tmp_path: Path, lab: Lab) -> Path:
    """A controller that knows nothing yet, and hosts that have nothing."""
    for host in lab.hosts:
        host.free_disk()
        host.ssh("find /var/lib/sovctl -mindepth 1 -delete")
    return tmp_path / "controller"


def _argv(site: Path, home: Path, operator: str = "alice") -> list[str | Path]:
    return [sys.executable, "-m", "tests.lab.node_driver", site, home, operator, str(MEGABYTES)]


def _deliver(lab: Lab, site: Path, home: Path, operator: str = "alice") -> dict[str, Any]:
    done = lab.controller.run(_argv(site, home, operator), cwd=TOP)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _sovctl(lab: Lab, home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance.cli.main", *words]
    return lab.controller.run(command, env={"SOVCTL_HOME": str(home)}, check=False, cwd=TOP)


def _content(lab: Lab, **more: Any) -> dict[str, Any]:
    return {**site_of(lab, **more), "storage": {"kind": "mounted", "path": "/srv/shared"}}


def _received(host: Host) -> int:
    """Bytes of the file that is under way."""
    partials = list((host.folder / "disk" / "store" / "tmp").glob("*.partial"))
    return partials[0].stat().st_size if partials else 0


# --- whom we talk to ------------------------------------------------------------------------------


def test_a_host_key_is_never_accepted_blindly(lab: Lab, home: Path, tmp_path: Path) -> None:
    content = _content(lab)
    for host in content["hosts"]:
        del host["ssh"]["host_keys"]
    site = write_site(lab, tmp_path, content)
    refused = _sovctl(lab, home, "site", "host-keys", site)
    assert refused.returncode == 3
    assert "host-key-unknown" in refused.stderr and lab.hosts[0].fingerprint in refused.stderr
    known_hosts = home / "sites" / "lab" / "known_hosts"
    assert not known_hosts.exists()

    given = [word for h in lab.hosts for word in ("--accept", f"{h.name}={h.fingerprint}")]
    accepted = _sovctl(lab, home, "site", "host-keys", site, *given)
    assert accepted.returncode == 0, accepted.stderr
    assert known_hosts.read_text().split() == [
        word for h in lab.hosts for word in (h.admin, *h.public_key.split())
    ]
    events = _sovctl(lab, home, "audit", "log", "--json").stdout
    assert events.count("site.trust-host") == 3


def test_a_host_that_is_another_machine_now_is_refused(
    lab: Lab, home: Path, tmp_path: Path
) -> None:
    site = write_site(lab, tmp_path)
    assert "error" not in _deliver(lab, site, home)
    host = lab.host("n2")
    before = host.fingerprint
    host.change_host_key()
    error = _deliver(lab, site, home)["error"]
    assert error["code"] == "host-key-changed"
    assert host.fingerprint in error["why"]
    refused = _sovctl(lab, home, "site", "host-keys", write_site(lab, tmp_path))
    assert refused.returncode == 0, refused.stderr  # the file names the new key
    assert "error" not in _deliver(lab, site, home)
    assert before != host.fingerprint


def test_without_sudo_nothing_happens(lab: Lab, home: Path, tmp_path: Path) -> None:
    site = write_site(lab, tmp_path, _content(lab, user="guest"))
    error = _deliver(lab, site, home)["error"]
    assert error["code"] == "several-hosts-failed"
    assert "may not become root" in error["why"] and "/etc/sudoers.d/guest" in error["fix"]


# --- bringing it there ----------------------------------------------------------------------------


def test_a_cut_link_costs_only_the_rest(lab: Lab, home: Path, tmp_path: Path) -> None:
    site = write_site(lab, tmp_path, _content(lab, user="ops"))
    n2 = lab.host("n2")
    started = lab.controller.popen(_argv(site, home), stdout=subprocess.PIPE, cwd=TOP)
    while _received(n2) < 4 << 20:
        assert started.poll() is None
        time.sleep(0.002)
    lab.cut(n2)
    error = json.loads(started.communicate()[0])["error"]
    lab.mend(n2)
    assert (error["code"], error["fields"]["host"]) == ("connection-lost", "n2")
    for name in ("n1", "n3"):
        lab.host(name).ssh(f"test -e /var/lib/sovctl/releases/{RELEASE}/bundle.json")
    there = _received(n2)
    assert 0 < there < WHOLE
    sent = _deliver(lab, site, home)
    assert sent["n1"] == sent["n3"] == 0
    assert 0 < sent["n2"] <= WHOLE - (4 << 20)
    assert _deliver(lab, site, home) == {"n1": 0, "n2": 0, "n3": 0}
    sums = {host.ssh(f"sha256sum /var/lib/sovctl/releases/{RELEASE}/models/m/*").stdout
            for host in lab.hosts}  # fmt: skip
    assert len(sums) == 1


def test_one_full_disk_is_named_and_left_as_it_was(lab: Lab, home: Path, tmp_path: Path) -> None:
    site = write_site(lab, tmp_path)
    lab.host("n3").fill_disk(free=32 << 20)
    error = _deliver(lab, site, home)["error"]
    assert error["code"] == "disk-full"
    assert error["fields"]["path"].startswith("n3:")
    assert lab.host("n3").ssh("find /var/lib/sovctl/store -type f").stdout.count("\n") <= 1
    lab.host("n3").free_disk()
    assert _deliver(lab, site, home) == {"n1": 0, "n2": 0, "n3": WHOLE}


def test_a_second_operator_waits_or_breaks_the_lock(lab: Lab, home: Path, tmp_path: Path) -> None:
    site = write_site(lab, tmp_path)
    alice = lab.controller.popen(
        [*_argv(site, home), "--hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=TOP
    )
    assert alice.stdout is not None
    assert json.loads(alice.stdout.readline())["n1"] == WHOLE
    bobs = tmp_path / "bob"
    error = _deliver(lab, site, bobs, "bob")["error"]
    assert error["code"] == "host-busy" and "alice" in error["what"]
    alice.kill()
    alice.communicate()
    assert "alice" in _deliver(lab, site, bobs, "bob")["error"]["what"]
    broken = _sovctl(lab, bobs, "site", "break-lock", site, "--yes")
    assert broken.returncode == 0 and broken.stdout.count("alice") == 3
    assert _deliver(lab, site, bobs, "bob") == {"n1": 0, "n2": 0, "n3": 0}
