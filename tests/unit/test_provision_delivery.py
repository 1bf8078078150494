"""A release delivered to folders here by the real receiver: whole, resumed, refused, never half."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import (
    ApplianceError,
    ConnectionLost,
    DeliveryDamaged,
    DiskFull,
    HostBusy,
    HostCommandFailed,
    HostLockLost,
    ReleaseDiffers,
)
from appliance.progress import Silent
from appliance.provision import host_lock
from appliance.provision.delivery import Shipment, deliver
from appliance.provision.host_lock import Claim
from appliance.provision.ssh import Remote
from appliance.provision.there import COMMAND, program
from appliance.store.blobs import Store, hex_of
from tests.unit.local_hosts import LocalRemote, local_hosts

BIG = os.urandom(5_000_000)
SMALL = b"config"
RUN = "r" * 32
CLAIM = Claim("alice@desk", "desk", RUN, "2026-11-27T19:00:00+00:00")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "controller" / "store")


@pytest.fixture
def shipment(store: Store) -> Shipment:
    big, small = store.put(BIG), store.put(SMALL)
    blobs = tuple(sorted([(big, len(BIG)), (small, len(SMALL))]))
    links = ((big, "models/m/weights.safetensors"), (small, "models/m/config.json"))
    return Shipment("demo-1.0-abcd", blobs, links, (("bundle.json", b"{}"), ("metadata/x", b"")), 0)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Remote]:
    with local_hosts(tmp_path / "connections", "n1") as remotes:
        yield remotes["n1"]


def _deliver(host: Remote, home: Path, shipment: Shipment, store: Store) -> int:
    """Bytes sent."""
    with host_lock.hold({host.name: host}, str(home), CLAIM):
        sent = deliver({host.name: host}, shipment, store, Silent(), home=str(home), run=RUN)
    return sent[host.name].size


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_release_arrives_whole_and_a_second_run_sends_nothing(
    host: Remote, tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    home = tmp_path / "home"
    assert _deliver(host, home, shipment, store) == len(BIG) + len(SMALL)
    release = home / "releases" / shipment.release
    assert _files(release) == {
        "models/m/weights.safetensors": BIG,
        "models/m/config.json": SMALL,
        "bundle.json": b"{}",
        "metadata/x": b"",
    }
    blob = Store(home / "store").path(shipment.links[0][0])
    assert blob.samefile(release / "models/m/weights.safetensors")
    assert blob.stat().st_mode & 0o777 == 0o444
    before = {p: p.stat().st_mtime_ns for p in release.rglob("*")}
    assert _deliver(host, home, shipment, store) == 0
    assert {p: p.stat().st_mtime_ns for p in release.rglob("*")} == before
    assert not list((home / "store" / "tmp").iterdir())


def _conversation(home: Path, shipment: Shipment) -> bytes:
    """All that a sender says, whatever it is answered."""
    blobs = {hex_of(d): (BIG if size == len(BIG) else SMALL) for d, size in shipment.blobs}
    return (
        program("receiver")
        + b"".join(shipment.announce(str(home), RUN))
        + b"".join(blobs[hex_of(digest)] for digest, _size in shipment.blobs)
        + b"".join(data for _path, data in shipment.files)
    )


@pytest.mark.parametrize("how", ["cut", "kill"])
def test_what_broke_off_goes_on_where_it_stopped(
    how: str, host: Remote, tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    home = tmp_path / "home"
    big = next(digest for digest, size in shipment.blobs if size == len(BIG))
    only = replace(shipment, blobs=((big, len(BIG)),))
    said = _conversation(home, only)
    begun = 3_000_000
    with host_lock.hold({"n1": host}, str(home), CLAIM):
        receiver = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert receiver.stdin is not None and receiver.stdout is not None
        receiver.stdin.write(said[: said.index(BIG[:64]) + begun])
        receiver.stdin.flush()
        assert json.loads(receiver.stdout.readline()) == {"blobs": [[0, 0]], "files": True}
        partial = home / "store" / "tmp" / f"{hex_of(big)}.partial"
        if how == "cut":
            answer, _none = receiver.communicate()
            assert json.loads(answer)["error"] == "cut-off"
            assert partial.stat().st_size == begun
        else:
            while not partial.exists() or partial.stat().st_size < 1_000_000:
                pass
            receiver.send_signal(signal.SIGKILL)
            receiver.communicate()
    there = partial.stat().st_size
    assert not (home / "releases" / shipment.release).exists()
    assert _deliver(host, home, shipment, store) == len(BIG) + len(SMALL) - there
    assert (home / "releases" / shipment.release / "models/m/weights.safetensors").samefile(
        Store(home / "store").path(big)
    )


def test_a_bad_beginning_is_thrown_away_and_sent_anew(
    host: Remote, tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    home = tmp_path / "home"
    big = next(digest for digest, size in shipment.blobs if size == len(BIG))
    partial = home / "store" / "tmp" / f"{hex_of(big)}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 1000)
    _deliver(host, home, shipment, store)
    assert Store(home / "store").path(big).read_bytes() == BIG


def test_two_bad_beginnings_are_both_sent_anew(
    host: Remote, tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    """Two bundles that broke off, and a third that has both their blobs."""
    home = tmp_path / "home"
    for digest, size in shipment.blobs:
        partial = home / "store" / "tmp" / f"{hex_of(digest)}.partial"
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"x" * (size - 1))
    assert _deliver(host, home, shipment, store) > 0
    assert (home / "releases" / shipment.release / "bundle.json").exists()


@pytest.mark.parametrize(
    "answer",
    [
        {"blobs": [[9, 0]], "files": True},
        {"blobs": [[-1, 0]], "files": True},
        {"blobs": [[0, -1]], "files": True},
        {"blobs": [[0, 1 << 60]], "files": True},
        {"blobs": "all", "files": True},
        {"blobs": [[0, "x"]]},
        {"done": True},
        {"error": "resumed-badly"},
    ],
)
def test_what_a_host_wants_is_looked_at_first(
    answer: dict[str, object], tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    with local_hosts(tmp_path / "connections", "n1") as good:
        odd = _odd(good["n1"], json.dumps(answer))
        with pytest.raises(ApplianceError, match="n1"):
            deliver({"n1": odd}, shipment, store, Silent(), home=str(tmp_path / "h"), run=RUN)


def test_a_login_script_that_greets_is_no_answer(
    tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    with local_hosts(tmp_path / "connections", "n1") as good:
        polite = _Polite("n1", "root", "127.0.0.1", 22, None, tmp_path, good["n1"].control)
        assert _deliver(polite, tmp_path / "home", shipment, store) == len(BIG) + len(SMALL)


class _Polite(LocalRemote):
    """A host whose login script greets."""

    def command(self, argv: Sequence[str], *, sudo: bool = False) -> list[str]:
        return ["sh", "-c", 'echo Welcome; echo 7; exec "$@"', "-", *argv]


@dataclass(frozen=True, slots=True)
class _Odd(LocalRemote):
    """A host whose programs answer something else."""

    answer: str = ""

    def command(self, argv: Sequence[str], *, sudo: bool = False) -> list[str]:
        return ["sh", "-c", 'echo "$1"; cat >/dev/null', "-", self.answer]


def _odd(host: Remote, answer: str) -> _Odd:
    return _Odd(host.name, "root", "127.0.0.1", 22, None, host.known_hosts, host.control, answer)


def test_a_blob_that_is_not_what_was_announced_is_not_kept(
    host: Remote, tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    home = tmp_path / "home"
    big = next(digest for digest, size in shipment.blobs if size == len(BIG))
    store.path(big).chmod(0o644)
    store.path(big).write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    with pytest.raises(DeliveryDamaged):
        _deliver(host, home, shipment, store)
    assert not Store(home / "store").has(big, len(BIG))
    assert not list((home / "store" / "tmp").iterdir())
    assert not (home / "releases" / shipment.release).exists()


def test_too_little_space_is_said_before_the_first_byte(
    host: Remote, tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    home = tmp_path / "home"
    with pytest.raises(DiskFull) as caught:
        _deliver(host, home, replace(shipment, reserve=1 << 60), store)
    assert caught.value.values["path"].startswith("n1:")
    assert not list((home / "store").glob("sha256/*"))


def test_another_release_of_that_name_is_not_written_over(
    host: Remote, tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    home = tmp_path / "home"
    _deliver(host, home, shipment, store)
    other = replace(shipment, files=(("bundle.json", b"other"),))
    with pytest.raises(ReleaseDiffers):
        _deliver(host, home, other, store)


def test_a_failing_host_does_not_stop_the_others(
    tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    home = tmp_path / "home"
    with local_hosts(tmp_path / "connections", "n1") as good:
        gone = _Gone("n2", "root", "192.0.2.1", 22, None, tmp_path, good["n1"].control)
        with host_lock.hold(good, str(home), CLAIM), pytest.raises(ConnectionLost, match="n2"):
            deliver({"n2": gone, **good}, shipment, store, Silent(), home=str(home), run=RUN)
    assert (home / "releases" / shipment.release).is_dir()


class _Gone(LocalRemote):
    """A host whose connection breaks at once."""

    def command(self, argv: Sequence[str], *, sudo: bool = False) -> list[str]:
        return ["sh", "-c", "echo 'Connection reset by peer' >&2; exit 255"]


# --- the lock -------------------------------------------------------------------------------------


def test_another_controller_is_refused_until_the_lock_is_broken(
    host: Remote, tmp_path: Path, shipment: Shipment, store: Store
) -> None:
    home = str(tmp_path / "home")
    bob = Claim.of("bob@laptop", "laptop")
    with host_lock.hold({"n1": host}, home, CLAIM):
        with pytest.raises(HostBusy, match="alice@desk"), host_lock.hold({"n1": host}, home, bob):
            pass
        broken = host_lock.break_locks({"n1": host}, home)[0]["n1"]
        assert broken is not None and broken["operator"] == "alice@desk"
        with host_lock.hold({"n1": host}, home, bob), pytest.raises(HostLockLost):
            deliver({"n1": host}, shipment, store, Silent(), home=home, run=RUN)
    assert not (tmp_path / "home" / "operator-lock").exists()


def test_of_several_hosts_that_one_operator_holds_one_error_tells(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    with (
        local_hosts(tmp_path / "connections", "n1", "n2") as remotes,
        host_lock.hold({"n1": remotes["n1"]}, home, CLAIM),
        pytest.raises(HostBusy) as busy,
        host_lock.hold(remotes, home, Claim.of("bob@laptop", "laptop")),
    ):
        pass
    what, _why, fix = busy.value.sentences()
    assert "n1 n2" in what and "alice@desk" in what and CLAIM.since in what
    assert "'sovctl site break-lock SITE_FILE n1 n2'" in fix


def test_after_a_kill_the_same_controller_goes_on(host: Remote, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    left = {"operator": "alice", "controller": "desk", "run": "old", "since": "yesterday"}
    (home / "operator-lock").write_text(json.dumps(left))
    with host_lock.hold({"n1": host}, str(home), CLAIM):
        assert json.loads((home / "operator-lock").read_text())["run"] == RUN


def test_a_lock_that_answers_nonsense_is_an_error_of_that_host(tmp_path: Path) -> None:
    with local_hosts(tmp_path / "connections", "n1") as good:
        for answer in ("Welcome!", "[]", "{}", '{"held": "bob"}'):
            odd = {"n1": _odd(good["n1"], answer)}
            with pytest.raises(HostCommandFailed, match="n1"), host_lock.hold(odd, "/h", CLAIM):
                pass
        polite = {"n1": _odd(good["n1"], 'Welcome!\n{"held": null}')}
        with host_lock.hold(polite, "/h", CLAIM) as claim:
            assert claim == CLAIM


def test_a_lock_that_was_broken_is_told_though_another_host_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "operator-lock").write_text(json.dumps({"operator": "alice", "run": "old"}))
    with local_hosts(tmp_path / "connections", "n1") as good:
        gone = _Gone("n2", "root", "192.0.2.1", 22, None, tmp_path, good["n1"].control)
        had, failures = host_lock.break_locks({"n2": gone, **good}, str(home))
    assert had == {"n1": {"operator": "alice", "run": "old"}}
    assert failures.keys() == {"n2"}


# --- a hostile sender -----------------------------------------------------------------------------

_PARTS = st.sampled_from(["..", ".", "", "a", "b", "etc", "\0", "models"])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=st.lists(_PARTS, min_size=1, max_size=5), where=st.sampled_from(["links", "files"]))
def test_nothing_is_written_outside_whatever_paths_are_sent(
    parts: list[str], where: str, tmp_path: Path
) -> None:
    path = "/".join(parts)
    home = tmp_path / "hostile"
    home.mkdir(exist_ok=True)
    (home / "operator-lock").write_text(json.dumps({"run": RUN}))
    data = b"x"
    name = hashlib.sha256(data).hexdigest()
    links, files = ([path], []) if where == "links" else ([], [path])
    header = {
        "version": 1, "home": str(home), "release": "r1", "run": RUN, "reserve": 0,
        "blobs": 1, "links": len(links), "files": len(files),
    }  # fmt: skip
    lines = [json.dumps(header), f"{name} 1", *(f"{name} {p}" for p in links)]
    lines += [f"{name} 1 {p}" for p in files]
    said = program("receiver") + "\n".join(lines).encode() + b"\n" + data * 2
    done = subprocess.run(COMMAND, input=said, capture_output=True, check=False)
    refused = any(part in {"", ".", "..", "\0"} for part in parts)
    assert (json.loads(done.stdout.splitlines()[-1]).get("error") == "unsafe") is refused
    assert {p.name for p in tmp_path.iterdir()} == {"hostile"}
    assert {p.name for p in home.iterdir()} <= {"operator-lock", "store", "releases"}
    subprocess.run(["rm", "-rf", str(home)], check=True)
