"""The lab is what it says it is: hosts that boot, an internet that answers, faults that happen."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import leftovers
from tests.lab.lab import Lab
from tests.lab.network import namespaces


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with Lab.up(folder, hosts=3, internet=True, shared=folder / "shared", disk=1 << 30) as lab:
        yield lab
    assert left_of(lab.id, folder) == []
    assert [path.name for path in folder.iterdir()] == ["shared"]


def left_of(lab: str, folder: Path) -> list[str]:
    """Namespaces, mounts, loop devices, control groups and processes of a lab."""
    loops, processes = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in (["losetup", "-nO", "BACK-FILE"], ["ps", "-eo", "args"])
    )
    mounts = Path("/proc/self/mountinfo").read_text()
    lines = [*mounts.splitlines(), *loops.splitlines(), *processes.splitlines()]
    return [
        *(name for name in namespaces() if name.startswith(f"{lab}-")),
        *(line for line in lines if f"{lab}-" in line or str(folder) in line),
        *(str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{lab}-*")),
        *(record.id for record in leftovers.records() if record.id == lab),
    ]


def test_hosts_boot_whole_and_know_each_other(lab: Lab) -> None:
    for host in lab.hosts:
        state = host.ssh("systemctl is-system-running; systemctl --failed --no-legend", check=False)
        assert state.stdout.strip() == "running"
        assert host.ssh("hostname").stdout.strip() == host.name
        for other in lab.hosts:
            host.ssh(f"ping -c1 -W2 {other.cluster}")
    identities = {host.ssh("cat /etc/machine-id").stdout for host in lab.hosts}
    assert len(identities) == 3


def test_who_may_become_root(lab: Lab) -> None:
    host = lab.host("n1")
    assert host.ssh("sudo -n id -u", user="ops").stdout.strip() == "0"
    assert host.ssh("sudo -n id -u", user="guest", check=False).returncode != 0


def test_a_unit_is_one_hosts_alone(lab: Lab) -> None:
    """Hosts in one control group would stop each other's units of the same name."""
    n1, n2 = lab.host("n1"), lab.host("n2")
    for host in (n1, n2):
        host.ssh("systemd-run --quiet --unit=same sleep 1000")
    n1.ssh("systemctl stop same")
    assert n2.ssh("systemctl is-active same").stdout.strip() == "active"
    n2.ssh("systemctl stop same")


def test_a_host_sets_its_own_network_and_nothing_of_this_machine(lab: Lab) -> None:
    host = lab.host("n1")
    mine = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    host.ssh("sysctl -w net.ipv4.ip_local_port_range='32768 33791'")
    assert Path("/proc/sys/net/ipv4/ip_local_port_range").read_text() == mine
    assert host.ssh("sysctl -w vm.swappiness=61", check=False).returncode != 0


def test_no_host_can_set_the_machines_clock(lab: Lab) -> None:
    before = time.time()
    done = lab.host("n1").ssh("date -s '2001-01-01'", check=False)
    assert "not permitted" in done.stderr
    done = lab.controller.run(["date", "-s", "2001-01-01"], check=False)
    assert "not permitted" in done.stderr
    assert time.time() >= before


def test_the_internet_answers_and_counts(lab: Lab) -> None:
    host, before = lab.host("n2"), lab.internet.seen()
    fetch = "import urllib.request as u; print(u.urlopen('http://{}/', timeout=5).read())"
    for where in ("192.0.2.1", "[2001:db8::1]"):
        assert "outside!" in host.ssh(f'python3 -c "{fetch.format(where)}"').stdout
    host.ssh("ping -c1 -W2 203.0.113.80")
    ask = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); "
        "s.sendto(b'?', ('198.51.100.53', 53)); print(s.recv(9))"
    )
    assert "?" in host.ssh(f'python3 -c "{ask}"').stdout
    seen = lab.internet.seen()
    assert all(seen[kind] > before[kind] for kind in ("tcp", "udp", "icmp")), seen


def test_a_cut_cable_is_cut_and_a_mended_one_carries_again(lab: Lab) -> None:
    host = lab.host("n3")
    lab.cut(host, "cluster")
    assert lab.host("n1").ssh(f"ping -c1 -W1 {host.cluster}", check=False).returncode != 0
    host.ssh("true")
    lab.cut(host)
    assert host.ssh("true", check=False, timeout=20).returncode == 255
    lab.mend(host)
    lab.host("n1").ssh(f"ping -c3 -W2 {host.cluster}")


def test_a_host_comes_back_after_its_power_failed(lab: Lab) -> None:
    host = lab.host("n3")
    host.ssh("touch /root/kept && sync")
    host.kill()
    assert not host.running
    host.start()
    host.ssh("test -e /root/kept && test -d /srv/shared")


def test_a_full_disk_is_full(lab: Lab) -> None:
    host = lab.host("n2")
    host.fill_disk(free=4096)
    done = host.ssh("dd if=/dev/zero of=/var/lib/sovctl/x bs=1M count=1", check=False)
    assert "No space left" in done.stderr
    host.free_disk()
    host.ssh("dd if=/dev/zero of=/var/lib/sovctl/x bs=1M count=1 && rm /var/lib/sovctl/x")


def test_a_session_sees_a_wrong_clock_and_this_machine_does_not(lab: Lab) -> None:
    host = lab.host("n2")
    ask = "python3 -c 'import time; print(time.time())'"
    host.skew_clock(7200)
    for command in (ask, f"sudo -n {ask}"):
        assert float(host.ssh(command, user="ops").stdout) - time.time() > 7000
    host.skew_clock(0)
    assert abs(float(host.ssh(f"sudo -n {ask}", user="ops").stdout) - time.time()) < 60


def test_another_host_key_is_another_fingerprint(lab: Lab) -> None:
    host = lab.host("n1")
    before = host.fingerprint
    host.change_host_key()
    assert host.fingerprint != before
    host.ssh("true")


def test_sudo_is_taken_and_given(lab: Lab) -> None:
    host = lab.host("n1")
    host.take_sudo()
    assert host.ssh("sudo -n true", user="ops", check=False).returncode != 0
    host.give_sudo()
    host.ssh("sudo -n true", user="ops")


def test_a_host_says_it_is_another_system(lab_of: Callable[..., Lab]) -> None:
    (host,) = lab_of(hosts=1, internet=False, debian="trixie").hosts
    assert 'VERSION_ID="13"' in host.ssh("cat /etc/os-release").stdout
    host.pretend(ID="ubuntu", VERSION_ID="24.04")
    assert "VERSION_ID=24.04" in host.ssh("cat /etc/os-release").stdout


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_lab(tmp_path: Path, ended_by: signal.Signals) -> None:
    """Ctrl-C ends it in order; what was killed is swept away before the next lab is made."""
    script = (
        "import sys, time; from pathlib import Path; from tests.lab.lab import Lab\n"
        "with Lab.up(Path(sys.argv[1]), hosts=1, disk=1 << 27):\n"
        "    print('up', flush=True); time.sleep(99)"
    )
    maker = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE)
    assert maker.stdout is not None
    assert maker.stdout.readline() == b"up\n"
    lab = json.loads((tmp_path / "lab.json").read_text())["id"]
    assert left_of(lab, tmp_path) != []
    maker.send_signal(ended_by)
    maker.wait()
    if ended_by is signal.SIGKILL:
        assert lab in leftovers.sweep()
    assert left_of(lab, tmp_path) == []
