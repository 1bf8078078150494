"""The ledger on a real disk: killed, shared, filled up and tampered with."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from appliance.errors import LedgerDamaged, LedgerExists, LedgerKeyUnusable, LedgerMissing
from appliance.layout import Home
from appliance.ledger.event import Event
from appliance.ledger.files import LedgerFiles
from appliance.ledger.log import Ledger
from appliance.ledger.note import Verifier, verify_checkpoint
from appliance.ledger.proof import Proof, ProofInvalid, prove
from appliance.ledger.verify import Verdict, verify
from appliance.progress import Silent

ORIGIN = "hospital.example/appliance"


GOLDEN = """PeterNeumann
1000
kK7B2QsMcwEgNtwO7+harE2rUQazlQPv6lmDzbxzgZc=

— PeterNeumann x08go0d2lmz3yGYwScIqsOHs4Yp5GGLfHs2H3C/+cjClbPKyzhVHCvmmj5SHIpAit89UHALCpFT1PS65YDtz1Ghw5gY=
"""  # noqa: E501


def event(name: str) -> Event:
    return Event("system:test", "inference", {"request": name})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    Ledger.create(home, ORIGIN)
    return home


def verdict(home: Home, against: bytes | None = None) -> Verdict:
    return verify(home.ledger, key_of(home), Silent(), against)


def key_of(home: Home) -> Verifier:
    return Verifier.parse(Ledger.open(home).verifier)


def requests_of(home: Home) -> list[str]:
    files = LedgerFiles(home.ledger)
    size = verify_checkpoint(files.checkpoint(), key_of(home)).size
    return [Event.decode(entry).subject["request"] for _i, entry in files.walk(0, size)]


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(70)
    return os.waitpid(child, 0)[1]


def test_appended_events_are_there_for_the_next_process(home: Home):
    ledger = Ledger.open(home)
    assert ledger.append([]) == []
    assert ledger.append([event("0")]) == [0]
    assert ledger.append([event(str(n)) for n in range(1, 600)]) == list(range(1, 600))
    assert Ledger.open(home).append([event("600")]) == [600]
    assert requests_of(home) == [str(n) for n in range(601)]
    found = verdict(home)
    assert found.ok
    assert found.checkpoint.size == 601


def test_secrets_stay_secret(home: Home):
    key = home.secrets / "ledger.key"
    assert key.stat().st_mode & 0o777 == 0o600
    secret = key.read_text().split("+", 4)[4].strip()
    for path in home.ledger.rglob("*"):
        assert path.is_dir() or secret not in path.read_text()
    key.chmod(0o640)
    with pytest.raises(LedgerKeyUnusable, match="ledger"):
        Ledger.open(home)


def test_creating_and_opening_fail_clearly(home: Home, tmp_path: Path):
    with pytest.raises(LedgerExists):
        Ledger.create(home, ORIGIN)
    with pytest.raises(LedgerMissing):
        Ledger.open(Home(tmp_path / "nothing"))
    with pytest.raises(LedgerKeyUnusable):
        Ledger.create(Home(tmp_path / "other"), "name with spaces")
    (home.secrets / "ledger.key").write_text("rubbish")
    with pytest.raises(LedgerKeyUnusable):
        Ledger.open(home)


def test_a_ledger_whose_checkpoint_is_gone_is_damaged_not_new(home: Home):
    Ledger.open(home).append([event("0")])
    (home.ledger / "checkpoint").unlink()
    for attempt in (partial(Ledger.open, home), partial(Ledger.create, home, ORIGIN)):
        with pytest.raises(LedgerDamaged, match="checkpoint is gone"):
            attempt()


def test_the_key_of_another_ledger_cannot_append(home: Home, tmp_path: Path):
    other = Home(tmp_path / "other")
    Ledger.create(other, ORIGIN)
    shutil.copy(other.secrets / "ledger.key", home.secrets / "ledger.key")
    with pytest.raises(LedgerDamaged, match="no trusted key"):
        Ledger.open(home)


def test_kill_at_random_moments_loses_nothing_acknowledged(home: Home, tmp_path: Path):
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    chance = random.Random(6962)

    def writer(seed: int) -> None:
        inside = random.Random(seed)
        ledger = Ledger.open(home)
        done = os.open(acknowledged, os.O_WRONLY | os.O_APPEND)
        while True:
            names = [f"{seed}-{inside.random()}" for _ in range(inside.choice((1, 1, 3, 90)))]
            indices = ledger.append([event(name) for name in names])
            lines = "".join(f"{i} {n}\n" for i, n in zip(indices, names, strict=True))
            os.write(done, lines.encode())

    for kill in range(50):
        child = os.fork()
        if child == 0:
            try:
                writer(kill)
            finally:
                os._exit(70)
        before, patience = acknowledged.stat().st_size, time.monotonic() + 2
        while acknowledged.stat().st_size == before and time.monotonic() < patience:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))  # somewhere in the appends after the first
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    Ledger.open(home).append([event("after")])
    assert verdict(home).ok
    kept = requests_of(home)
    lines = [line.split() for line in acknowledged.read_text().splitlines()]
    assert len(lines) > 100
    assert all(kept[int(index)] == name for index, name in lines)


def test_kill_at_every_system_call_loses_nothing_acknowledged(home: Home, tmp_path: Path):
    """Deterministic: die before, or half way through, each call that changes the disk."""
    Ledger.open(home).append([event(f"old-{n}") for n in range(250)])
    batch = [event(f"new-{n}") for n in range(300)]  # completes a tile and starts another
    outcomes = set()
    for call in range(200):
        copy = Home(tmp_path / f"copy-{call}")
        shutil.copytree(home.root, copy.root)
        status = in_child(partial(_append_until, copy, batch, call))
        size = len(requests_of(copy))
        assert size in (250, 550)
        if status == 0:
            assert size == 550
            break
        assert Ledger.open(copy).append([event("after")]) == [size]
        assert verdict(copy).ok, verdict(copy).faults
        assert requests_of(copy)[:250] == [f"old-{n}" for n in range(250)]
        outcomes.add(size)
        shutil.rmtree(copy.root)
    else:
        pytest.fail("the append never came to its end")
    assert outcomes == {250, 550}


def _append_until(home: Home, batch: list[Event], call: int) -> None:
    ledger = Ledger.open(home)
    _die_at(call)
    ledger.append(batch)


def _die_at(call: int) -> None:
    """From now on, end this process at the ``call``-th change of the disk; a write stays half."""
    count = 0

    def dying(real: Callable, half: bool) -> Callable:
        def wrapper(*args, **kwargs):
            nonlocal count
            if count == call:
                if half:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(9)
            count += 1
            return real(*args, **kwargs)

        return wrapper

    for name in ("open", "write", "pwrite", "fsync", "replace", "unlink", "mkdir", "rmdir"):
        setattr(os, name, dying(getattr(os, name), half=name == "write"))


def _create_until(home: Home, call: int) -> None:
    _die_at(call)
    Ledger.create(home, ORIGIN)


def test_a_creation_killed_at_any_point_is_completed(tmp_path: Path):
    for call in range(100):
        home = Home(tmp_path / f"home-{call}")
        if in_child(partial(_create_until, home, call)) == 0:
            return
        if not (home.ledger / "checkpoint").exists():
            Ledger.create(home, ORIGIN)
        assert Ledger.open(home).append([event("first")]) == [0]
        assert verdict(home).ok
    pytest.fail("the creation never came to its end")


def test_nothing_is_published_before_it_is_on_the_disk(home: Home, monkeypatch):
    """What a kill cannot show: every file and folder is synced before the checkpoint names it."""
    ledger = Ledger.open(home)
    ledger.append([event(str(n)) for n in range(200)])
    root = home.ledger
    opened: dict[int, Path] = {}
    unsynced: set[Path] = set()
    published: list[set[Path]] = []
    real_open, real_fsync, real_replace, real_mkdir = os.open, os.fsync, os.replace, os.mkdir

    def spy_open(path, flags, *args, **kwargs):
        new = bool(flags & os.O_CREAT) and not Path(path).exists()
        descriptor = real_open(path, flags, *args, **kwargs)
        opened[descriptor] = Path(path)
        if flags & os.O_TRUNC:
            unsynced.add(Path(path))
        if new:
            unsynced.add(Path(path).parent)
        return descriptor

    def spy_fsync(descriptor):
        real_fsync(descriptor)
        unsynced.discard(opened[descriptor])

    def spy_mkdir(path, *args, **kwargs):
        real_mkdir(path, *args, **kwargs)
        unsynced.add(Path(path).parent)

    def spy_replace(source, target):
        published.append(unsynced - {root})  # the checkpoint's own folder is synced after it
        real_replace(source, target)
        unsynced.add(root)

    for name, spy in (
        ("open", spy_open),
        ("fsync", spy_fsync),
        ("mkdir", spy_mkdir),
        ("replace", spy_replace),
    ):
        monkeypatch.setattr(os, name, spy)
    for batch in (1, 70, 300):  # a new partial tile, a new full one, new folders
        ledger.append([event(str(n)) for n in range(batch)])
    assert published == [set()] * 3
    assert not unsynced


def test_a_growing_ledger_can_be_verified_meanwhile(home: Home):
    ledger, key = Ledger.open(home), key_of(home)
    stop = threading.Event()

    def grow() -> None:
        while not stop.is_set():
            ledger.append([event("x")] * 40)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(15):
            found = verify(home.ledger, key, Silent())
            assert found.ok, found.faults
    finally:
        stop.set()
        writer.join()


def test_the_same_key_and_events_make_the_same_ledger_in_every_release(tmp_path: Path):
    """Ed25519 and the format are deterministic: a change of format shows here."""
    home = Home(tmp_path / "home")
    home.secrets.mkdir(parents=True)
    key = home.secrets / "ledger.key"
    key.write_text("PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")
    key.chmod(0o600)
    ledger = Ledger.create(home, "PeterNeumann")
    at = datetime(2026, 11, 24, 3, 1, 39, 123456, UTC)
    ledger.append([Event("key:1", "inference", {"n": str(n)}, at=at) for n in range(1000)])
    assert ledger.checkpoint().decode() == GOLDEN


def test_processes_and_threads_append_together(home: Home):
    def many(process: int) -> None:
        ledger = Ledger.open(home)

        def one(thread: int) -> None:
            for n in range(10):
                ledger.append([event(f"{process}-{thread}-{n}")])

        threads = [threading.Thread(target=one, args=(t,)) for t in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = []
    for process in range(3):
        child = os.fork()
        if child == 0:
            try:
                many(process)
                os._exit(0)
            finally:
                os._exit(70)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert verdict(home).ok
    expected = {f"{p}-{t}-{n}" for p in range(3) for t in range(4) for n in range(10)}
    kept = requests_of(home)
    assert set(kept) == expected
    assert len(kept) == len(expected)


def test_one_changed_byte_anywhere_is_found(home: Home):
    ledger = Ledger.open(home)
    ledger.append([event(str(n)) for n in range(257)])
    ledger.append([event("a")])
    ledger.append([event("b")])
    key = key_of(home)
    files = [p for p in home.ledger.rglob("*") if p.is_file() and p.name != "lock"]
    chance = random.Random(9162)
    for path in files:
        whole = path.read_bytes()
        for _ in range(12):
            at, mask = chance.randrange(len(whole)), chance.randrange(1, 256)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
            assert not verify(home.ledger, key, Silent()).ok, (path, at, mask)
        for cut in (b"", whole[:-1], whole + b"\0"):
            path.write_bytes(cut)
            assert not verify(home.ledger, key, Silent()).ok, (path, len(cut))
        path.write_bytes(whole)
    assert verify(home.ledger, key, Silent()).ok


def test_the_first_bad_entry_is_named(home: Home):
    Ledger.open(home).append([event(f"n{n:04}") for n in range(300)])
    bundle = home.ledger / "tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"n0123", b"n9123").replace(b"n0200", b"n9200"))
    found = verdict(home)
    assert found.first_bad == 123
    assert found.faults[0].path == "tile/entries/000"


def test_a_lost_bundle_and_a_stray_file_are_named(home: Home):
    Ledger.open(home).append([event(str(n)) for n in range(600)])
    (home.ledger / "tile/entries/001").unlink()
    (home.ledger / "tile/0/notes.txt").write_text("?")
    found = verdict(home)
    assert found.first_bad == 256
    assert {fault.path for fault in found.faults} == {"tile/entries/001", "tile/0/notes.txt"}


def test_a_damaged_ledger_takes_nothing_more(home: Home):
    ledger = Ledger.open(home)
    ledger.append([event(str(n)) for n in range(3)])
    newest = home.ledger / "tile/entries/000.p/3"
    newest.write_bytes(newest.read_bytes().replace(b'"2"', b'"9"'))
    with pytest.raises(LedgerDamaged):
        Ledger.open(home)


def test_history_rewritten_by_the_keys_holder_is_caught_by_an_older_checkpoint(home: Home):
    ledger = Ledger.open(home)
    ledger.append([event(str(n)) for n in range(10)])
    kept = ledger.checkpoint()
    ledger.append([event(str(n)) for n in range(10, 400)])
    assert verdict(home, kept).ok
    shutil.rmtree(home.ledger)
    rewritten = Ledger.create(home, ORIGIN)  # the same key signs another history
    rewritten.append([event(str(n)) for n in range(5)])
    assert "fewer" in verdict(home, kept).faults[0].reason
    rewritten.append([event(str(n)) for n in range(400)])
    assert verdict(home).ok
    assert "older checkpoint" in verdict(home, kept).faults[0].reason


def test_a_proof_stands_alone(home: Home):
    ledger = Ledger.open(home)
    ledger.append([event(str(n)) for n in range(700)])
    key, files = key_of(home), LedgerFiles(home.ledger)
    for index in (0, 255, 256, 511, 512, 699):
        proof = Proof.parse(prove(files, index, key).encode())
        head, proven = proof.check(key)
        assert (head.size, proven.subject["request"]) == (700, str(index))
        with pytest.raises(ProofInvalid):
            Proof(index ^ 1, proof.entry, proof.hashes, proof.checkpoint).check(key)
        with pytest.raises(ProofInvalid):
            Proof(index, event("x").encode(), proof.hashes, proof.checkpoint).check(key)
    with pytest.raises(IndexError):
        prove(files, 700, key)


_ON_A_SMALL_DISK = """
    import pathlib, sys
    from appliance.errors import DiskFull
    from appliance.layout import Home
    from appliance.ledger.event import Event
    from appliance.ledger.files import LedgerFiles
    from appliance.ledger.log import Ledger
    from appliance.ledger.note import Verifier, verify_checkpoint
    from appliance.ledger.verify import verify
    from appliance.progress import Silent
    home = Home(pathlib.Path(sys.argv[1]))
    filler = home.root / "filler"
    filler.write_bytes(b"x" * 100_000)
    ledger = Ledger.create(home, "small.example/disk")
    key = Verifier.parse(ledger.verifier)
    event = Event("system:test", "inference", {"request": "r" * 200})
    acknowledged = 0
    while True:
        before = ledger.checkpoint()
        try:
            acknowledged = ledger.append([event])[-1] + 1
        except DiskFull:
            break
    assert ledger.checkpoint() == before
    verdict = verify(home.ledger, key, Silent())
    assert verdict.ok and verdict.checkpoint.size == acknowledged > 0, verdict
    filler.unlink()
    assert ledger.append([event]) == [acknowledged]
    verdict = verify(home.ledger, key, Silent())
    assert verdict.ok and verdict.checkpoint.size == acknowledged + 1
    print("full and freed after", acknowledged)
"""


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path):
    mount = f'mount -t tmpfs -o size=600k tmpfs {tmp_path} && exec "$@"'
    unshare = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no unprivileged mount namespaces here")
    script = [sys.executable, "-c", textwrap.dedent(_ON_A_SMALL_DISK), str(tmp_path)]
    done = subprocess.run([*unshare, *script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "full and freed" in done.stdout
