"""One installation of a site that meets one misfortune after another, and ends up installed.

The tests run in order on two hosts, each a trust domain of its own: one serves, the other tunes.
Each is what happens to the next ``sovctl install``, which goes on where the one before stopped.
What fails says which host, why, and what to type; nothing that was done is done again; and of a
controller that is gone nothing is left.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from appliance.manifests import site_ports as ports
from tests.lab.installed_site import BASE, TUNING, InstalledSite
from tests.lab.lab import Host, Lab
from tests.lab.lab_site import site_of, write_site
from tests.lab.site_bundle import site_bundle

pytestmark = [pytest.mark.timeout(900)]

_DISK = 12 << 30  # of each host; no more is taken than what is written
_SOME = 48 << 20  # bytes of a release: the copying is under way, and far from its end
_INTERRUPTED = 130


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledSite]:
    bundle = site_bundle()
    folder = tmp_path_factory.mktemp("site")
    with Lab.up(folder / "lab", hosts=2, shared=folder / "shared", disk=_DISK) as lab:
        file = write_site(lab, folder, site_of(lab, domains="apart"))
        yield InstalledSite(lab, folder, file, bundle)


# --- while the release is copied ------------------------------------------------------------------


def test_a_controller_that_is_killed_leaves_nothing_running(site: InstalledSite) -> None:
    attempt = site.begin()
    attempt.until(lambda: all(_arrived(host) > _SOME for host in site.lab.hosts))
    attempt.kill()
    assert _becomes(lambda: not _busy(site.lab)), _busy(site.lab)
    for host in site.lab.hosts:  # who holds it is this controller, which need not ask itself
        assert "alice" in (_home(host) / "operator-lock").read_text()


def test_a_disk_that_is_too_full_is_found_before_anything_is_copied(site: InstalledSite) -> None:
    before = {host.name: _blobs(host) for host in site.lab.hosts}
    n2 = site.lab.host("n2")
    n2.fill_disk(free=512 << 20)
    ended = site.begin().end()
    n2.free_disk()
    assert ended.status == 4, ended.said
    assert "hosts-not-ready" in ended.said and "n2 space: " in ended.said, ended.said
    assert "n1" not in ended.said.partition("hosts-not-ready")[2]
    assert before == {host.name: _blobs(host) for host in site.lab.hosts}


def test_a_link_that_is_cut_costs_its_host_the_rest_and_the_other_nothing(
    site: InstalledSite,
) -> None:
    n1, n2 = site.lab.hosts
    before, begun = {host.name: _blobs(host) for host in site.lab.hosts}, _arrived(n2)
    attempt = site.begin()
    attempt.until(lambda: _arrived(n2) > begun + _SOME)
    site.lab.cut(n2)
    ended = attempt.end()
    site.lab.mend(n2)
    assert ended.status == 7, ended.said
    assert "connection-lost" in ended.said and f"n2 ({n2.admin})" in ended.said, ended.said
    assert "It stopped answering" in ended.said, ended.said
    assert "run the same command again" in ended.said
    assert list((_home(n1) / "releases").glob("*/bundle.json"))
    for host in site.lab.hosts:  # the same files, not the same bytes once more
        assert before[host.name].items() <= _blobs(host).items()
    assert not (_home(n1) / "operator-lock").exists()


# --- while the hosts are configured ---------------------------------------------------------------


def test_a_host_whose_power_fails_is_named_and_the_other_is_let_finish(
    site: InstalledSite,
) -> None:
    """In the middle of dpkg, which is the worst place: apt refuses to go on from there."""
    n1, n2 = site.lab.hosts
    kept = _blobs(n2)
    attempt = site.begin()
    attempt.until(lambda: "status half-installed nginx-common:" in _packages(n2))
    assert kept.items() <= _blobs(n2).items()
    site.lab.cut(n2)  # a machine without power does not even say goodbye
    n2.kill()
    ended = attempt.end()
    site.lab.mend(n2)
    n2.start()
    assert ended.status == 7, ended.said
    assert "connection-lost" in ended.said and f"n2 ({n2.admin})" in ended.said, ended.said
    assert "apt_offline: Install what this host needs" in ended.said, ended.said
    assert "ansible/artifacts" in ended.said and "Traceback" not in ended.said, ended.said
    assert "status installed prometheus:" in _packages(n1)


def test_a_controller_killed_while_it_configures_leaves_nothing_running(
    site: InstalledSite,
) -> None:
    attempt = site.begin()
    attempt.until(lambda: all(_unpacking(host) for host in site.lab.hosts))
    attempt.kill()
    assert _becomes(lambda: not _busy(site.lab)), _busy(site.lab)


def test_an_interrupted_installation_ends_clean_and_says_how_to_go_on(site: InstalledSite) -> None:
    """At once after the kill: what that left under way on a host must not get in its way. And while
    the seal is closed and not yet confirmed: the next run may meet it so, or rolled back."""
    attempt = site.begin()
    attempt.until_task("egress : Close the seal")
    assert all(_has_runtime(host) for host in site.lab.hosts)
    attempt.interrupt()
    ended = attempt.end(seconds=60)
    assert ended.status == _INTERRUPTED, ended.said
    assert "Run the same command again" in ended.said and "Traceback" not in ended.said, ended.said
    assert _becomes(lambda: not _ours(site.lab)), _ours(site.lab)
    for host in site.lab.hosts:
        assert not (_home(host) / "operator-lock").exists()


# --- and in the end -------------------------------------------------------------------------------


def test_a_second_operator_is_refused_and_the_first_comes_to_the_end(site: InstalledSite) -> None:
    attempt = site.begin()
    attempt.until_task("ray_node : ")
    bob = site.begin("bob").end()
    assert bob.status == 6, bob.said
    assert "host-busy" in bob.said and "alice@" in bob.said, bob.said
    assert "sovctl site break-lock" in bob.said
    ended = attempt.end(seconds=600)
    assert ended.status == 0, ended.said
    assert "runs on site lab, sealed" in ended.said  # it was proved, from every host
    site.openai(BASE)


def test_neither_domain_reaches_the_others_ray(site: InstalledSite) -> None:
    """Both listen; the gateway reaches what it needs, Prometheus what it asks, and nobody more."""
    n1, n2 = site.lab.hosts
    for host in (n1, n2):
        assert f":{ports.GCS} " in host.ssh("ss -H -ltn").stdout
    asked = {ports.METRICS_EXPORT, ports.NODE_EXPORTER, ports.RELAY_DASHBOARD}
    for user in ("root", "sovctl"):
        assert _open_to(n2, n1, user) == set()
        assert _open_to(n1, n2, user) <= asked
    assert ports.RELAY_DASHBOARD in _open_to(n1, n2, "sovctl")


def test_what_one_domain_tuned_the_other_serves(site: InstalledSite) -> None:
    spec = site.folder / "tuning.yaml"
    spec.write_text(yaml.safe_dump({**TUNING, "workers": 1}))
    site.sovctl("tune", "submit", str(spec))
    assert site.ask("adapters", "show", "letters")["card"]["training"]["no_way_out"]
    site.sovctl("adapters", "promote", "letters")
    site.sovctl("adapters", "load", "letters")
    site.openai(f"{BASE}:letters")


def test_the_ledger_tells_of_every_try(site: InstalledSite) -> None:
    assert site.sovctl("audit", "verify").returncode == 0
    tries = [
        (entry["outcome"], entry["subject"].get("phase"), entry["subject"].get("reason"))
        for entry in site.ask("audit", "log", "--action", "site.install")
    ]
    assert tries == [
        ("failed", "deliver", "cut-off"),
        ("failed", "check", "hosts-not-ready"),
        ("failed", "deliver", "connection-lost"),
        ("failed", "configure", "connection-lost"),
        ("failed", "configure", "cut-off"),
        ("failed", "configure", "interrupted"),
        ("ok", None, None),
    ]


_CONNECT = """
import socket, sys
for port in map(int, sys.argv[2:]):
    with socket.socket() as s:
        s.settimeout(0.5)
        if s.connect_ex((sys.argv[1], port)) == 0:
            print(port)
"""


def _open_to(host: Host, other: Host, user: str) -> set[int]:
    """Which of the site's ports a user of one host reaches on another."""
    alone = (value for name, value in vars(ports).items() if name.isupper())
    wanted = [p for value in alone for p in (value if isinstance(value, range) else [value])]
    tried = " ".join(str(port) for port in wanted if port not in ports.COLLECTIVE[8:])
    command = f"runuser -u {user} -- python3 - {other.cluster} {tried}"
    return {int(port) for port in host.ssh(command, stdin=_CONNECT).stdout.split()}


# --- what can be seen from outside ----------------------------------------------------------------


def _home(host: Host) -> Path:
    return host.folder / "disk"


def _blobs(host: Host) -> dict[str, tuple[int, int]]:
    """The whole files that it got: a copy that was made again would be another file."""
    found = (_home(host) / "store/sha256").glob("*/*")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def _arrived(host: Host) -> int:
    """Bytes of the release that it has, those under way included."""
    return sum(
        path.stat().st_size for path in (_home(host) / "store").glob("**/*") if path.is_file()
    )


def _packages(host: Host) -> str:
    """What dpkg did there."""
    log = host.root / "var/log/dpkg.log"
    return log.read_text() if log.exists() else ""


def _unpacking(host: Host) -> bool:
    """Whether its runtime is half there."""
    return any((_home(host) / "releases").glob("*/venv/lib/*/site-packages/*/__init__.py"))


def _has_runtime(host: Host) -> bool:
    return any((_home(host) / "releases").glob("*/venv/.complete"))


def _ours(lab: Lab) -> dict[int, str]:
    """Every process in the controller's network: nothing but what ``sovctl`` started is there."""
    listed = subprocess.run(
        ["ip", "netns", "pids", lab.fabric.namespace("ctl")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {}
    for pid in map(int, listed.stdout.split()):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            found[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def _busy(lab: Lab) -> dict[int, str]:
    """Those that do something: an idle connection to a host ends by itself after a minute."""
    return {pid: command for pid, command in _ours(lab).items() if not command.endswith("[mux]")}


def _becomes(so: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something is so before long."""
    deadline = time.monotonic() + seconds
    while not so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
