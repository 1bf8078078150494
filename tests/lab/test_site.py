"""The heart of it, on real hosts: bare machines to a sealed Ray cluster that serves and tunes.

The tests run in order on one site of three hosts, as an operator and then bad luck would treat it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.lab.installed_site import BASE, TUNING, InstalledSite
from tests.lab.lab import Host, Lab
from tests.lab.lab_site import write_site
from tests.lab.site_bundle import site_bundle

pytestmark = [pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledSite]:
    bundle = site_bundle()
    folder = tmp_path_factory.mktemp("site")
    with Lab.up(folder / "lab", hosts=3, internet=True, shared=folder / "shared") as lab:
        yield InstalledSite(lab, folder, write_site(lab, folder), bundle)


def test_before_it_is_sealed_the_internet_answers_every_host(site: InstalledSite) -> None:
    """The control: without it, that nothing gets out later would prove nothing."""
    for host in site.lab.hosts:
        assert _reaches(host) == {"tcp", "udp", "dns", "icmp", "tcp-ipv6"}


def test_plan_says_what_would_change_and_changes_nothing(site: InstalledSite) -> None:
    done = site.sovctl(
        "plan", str(site.bundle.path), "--trust", site.bundle.fingerprint, "--site", str(site.file)
    )
    for host in site.lab.hosts:
        assert host.name in done.stdout
        assert host.ssh("ls /var/lib/sovctl 2>/dev/null || true").stdout.split() == []
    print(done.stdout)


def test_bare_hosts_become_a_serving_sealed_site(site: InstalledSite) -> None:
    began = time.monotonic()
    done = site.install()
    print(f"bare to serving: {time.monotonic() - began:.0f} s\n{done.stderr[-3000:]}")
    outcome = json.loads(done.stdout)
    assert outcome["seal"] == "closed", outcome
    site.await_replicas(3)
    site.openai(BASE, 6)


def test_a_second_run_changes_nothing(site: InstalledSite) -> None:
    began = time.monotonic()
    outcome = json.loads(site.install().stdout)
    print(f"second run: {time.monotonic() - began:.0f} s")
    assert {name: each["changed"] for name, each in outcome["hosts"].items()} == {
        host.name: [] for host in site.lab.hosts
    }
    foretold = site.ask("plan", str(site.bundle.path), "--site", str(site.file))
    assert foretold["check_mode_error"] is None
    assert all(changes == [] for changes in foretold["hosts"].values()), foretold["hosts"]


def test_nothing_gets_out_and_the_counters_say_so(site: InstalledSite) -> None:
    for host in site.lab.hosts:
        before = _counted(host)
        seen = site.lab.internet.seen()
        assert _reaches(host) == set()
        assert _reaches(host, as_user="runuser -u sovctl -- ") == set()
        # No route already says no; past that, by the interface itself, the firewall does.
        assert _reaches(host, by="eth0") == set()
        assert _counted(host) > before
        assert site.lab.internet.seen() == seen
        assert host.ssh("ip route show default; ip -6 route show default").stdout == ""
    verdict = site.ask("egress", "prove", "--site", "lab")
    assert verdict["answer"] == "closed", verdict
    places = {place["name"].partition("@")[0] for place in verdict["places"]}
    assert places >= {"gateway", "ray-task", "ray-job", "serve-replica"}, places


def test_only_what_is_meant_to_listens_to_others(site: InstalledSite) -> None:
    """From outside of the site, as an application's host would see it."""
    probe = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[2:]):\n"
        "    with socket.socket() as s:\n"
        "        s.settimeout(0.5)\n"
        "        print(port) if s.connect_ex((sys.argv[1], port)) == 0 else None\n"
    )
    ports = [22, 80, 111, 6379, 6380, 6381, 8000, 8100, 8265, 8443, 9090, 9100, 9443, 9444, 9500]
    for host in site.lab.hosts:
        done = site.lab.controller.run(
            [sys.executable, "-c", probe, host.admin, *map(str, ports)], timeout=60
        )
        wanted = {"22", "8443"} if host.name == "n1" else {"22"}
        assert set(done.stdout.split()) == wanted, host.name


def test_the_relay_wants_a_certificate(site: InstalledSite) -> None:
    """From the gateway's host, whom the firewall lets through, but without its key."""
    gateway, other = site.lab.host("n1"), site.lab.host("n2")
    done = gateway.ssh(f"python3 - {other.cluster}", stdin=_ASK_RELAY, check=False)
    # Under TLS 1.3 the server refuses after the client believes itself connected.
    assert "HTTP" not in done.stdout, done.stdout
    assert "said b''" in done.stdout or "alert" in done.stderr, done.stdout + done.stderr


def test_two_hosts_tune_and_every_replica_serves_the_adapter(site: InstalledSite) -> None:
    spec = site.folder / "tuning.yaml"
    spec.write_text(yaml.safe_dump(TUNING))
    began = time.monotonic()
    site.sovctl("tune", "submit", str(spec))
    print(f"tuning over two hosts: {time.monotonic() - began:.0f} s")
    card = site.ask("adapters", "show", "letters")["card"]
    assert card["config"]["workers"] == 2, card["config"]
    assert card["training"]["no_way_out"]
    site.sovctl("adapters", "promote", "letters")
    site.sovctl("adapters", "load", "letters")
    site.openai(f"{BASE}:letters", 6)


def test_a_worker_whose_power_fails_comes_back(site: InstalledSite) -> None:
    host = site.lab.host("n3")
    host.kill()
    site.openai(BASE, 4)  # the others go on
    host.start()
    site.await_replicas(3, "letters")
    site.openai(f"{BASE}:letters", 6)
    assert _reaches(host) == set()


def test_a_head_that_reboots_is_found_again_by_its_workers(site: InstalledSite) -> None:
    site.lab.host("n1").reboot()
    site.await_replicas(3, "letters")
    site.openai(f"{BASE}:letters", 6)
    assert site.ask("egress", "prove", "--site", "lab")["answer"] == "closed"


def test_every_step_is_on_the_ledger_of_the_controller(site: InstalledSite) -> None:
    actions = {entry["action"] for entry in site.ask("audit", "log")}
    assert actions >= {
        "trust.pin",
        "bundle.load",
        "site.trust-host",
        "site.install",
        "egress.prove",
    }
    assert site.sovctl("audit", "verify").returncode == 0


_ASK_RELAY = """
import socket, ssl, sys
context = ssl._create_unverified_context()
with context.wrap_socket(socket.create_connection((sys.argv[1], 9500), 5)) as relay:
    relay.sendall(b"GET /healthz HTTP/1.0" + bytes((13, 10, 13, 10)))
    print("said", relay.recv(64))
"""

_TRY = """
import socket, subprocess, sys
def attempt(kind, family, sort, address, port, payload):
    with socket.socket(family, sort) as s:
        s.settimeout(2)
        try:
            if sys.argv[1:]:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
            s.connect((address, port))
            if payload:
                s.send(payload); s.recv(64)
            print(kind)
        except OSError:
            pass
v4, v6, tcp, udp = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
attempt("tcp", v4, tcp, "192.0.2.1", 443, b"")
attempt("udp", v4, udp, "192.0.2.1", 9, b"out")
attempt("dns", v4, udp, "198.51.100.53", 53, b"out")
attempt("tcp-ipv6", v6, tcp, "2001:db8::1", 443, b"")
if subprocess.run(["ping", "-c1", "-W2", "203.0.113.80"], capture_output=True).returncode == 0:
    print("icmp")
"""


def _reaches(host: Host, *, as_user: str = "", by: str = "") -> set[str]:
    """Which ways lead out of a host, tried for real against the lab's internet."""
    return set(host.ssh(f"{as_user}python3 - {by}", stdin=_TRY).stdout.split())


def _counted(host: Host) -> int:
    """Packets that the host's firewall refused to let out."""
    told = json.loads(host.ssh("nft -j list counters table inet sovctl").stdout)["nftables"]
    return sum(each["counter"]["packets"] for each in told if "counter" in each)
