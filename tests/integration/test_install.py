"""Installing for real (but for Ray): killed anywhere and resumed, refused, replaced, undone.

Each install is a process of its own (:mod:`install_driver`), so that SIGKILL is SIGKILL.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import install_driver
import pytest
from small_bundle import Supplier

from appliance.install import uninstall
from appliance.install.journal import Journal
from appliance.layout import Home
from appliance.manifests.bundle import Platform
from appliance.progress import Silent

DRIVER = Path(__file__).with_name("install_driver.py")


@pytest.fixture(scope="module")
def supplier(tmp_path_factory: pytest.TempPathFactory) -> Supplier:
    return Supplier.at(tmp_path_factory.mktemp("supplier"))


@pytest.fixture(scope="module")
def first(supplier: Supplier) -> Path:
    return supplier.bundle("first")


@pytest.fixture(scope="module")
def second(supplier: Supplier, first: Path) -> Path:
    """Signed after ``first``."""
    assert first.exists()
    return supplier.bundle("second", version="2.0")


@pytest.fixture
def home() -> Iterator[Home]:
    """In memory where there is room: installing syncs the whole file system it is on."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="sovctl-test-") as folder:
        yield Home(Path(folder) / "home")


def install(
    home: Home, bundle: Path, fingerprint: str, bomb: str = "none", *options: str
) -> install_driver.Done:
    return install_driver.run(home.root, bundle, fingerprint, bomb, *options)


def running(home: Home) -> str | None:
    fake = home.run / "fake"
    return fake.read_text() if fake.exists() else None


def whole(home: Home, version: str) -> bool:
    """The release is current, runs, and its environment imports what the wheels brought."""
    current = home.current.resolve()
    shown = subprocess.run(
        [current / "venv/bin/python", "-c", "import tiny0, tiny2; print(tiny0.VERSION)"],
        capture_output=True,
        text=True,
        check=False,
    )
    unfinished = Journal(home.journal / "install.jsonl").unfinished()
    cut_off = unfinished is not None and not unfinished.reason
    return running(home) == current.name and shown.stdout.strip() == version and not cut_off


LINES = 18  # begin, eight phases of two lines, end
QUICK = ["journal:1", "task:Verifying and loading", "task:Installing the runtime", "before:11"]
BOMBS = [
    *(f"{when}:{n}" for n in range(2, LINES + 1, 2) for when in ("before", "journal")),
    "task:Laying out",
    "task:Starting",
    "event:bundle.load",
    "event:release.activate",
]


@pytest.mark.parametrize(
    "bomb", [*QUICK, *(pytest.param(bomb, marks=pytest.mark.slow) for bomb in BOMBS)]
)
def test_killed_anywhere_it_goes_on(home: Home, supplier: Supplier, first: Path, bomb: str) -> None:
    killed = install(home, first, supplier.fingerprint, bomb)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = install(home, first, supplier.fingerprint)
    assert resumed.returncode == 0, resumed.stderr
    assert whole(home, "1.0")
    assert not list((home.store / "tmp").glob("*"))
    assert not home.cache.exists()


@pytest.mark.parametrize("bomb", ["journal:4", "before:12", "journal:12", "task:Starting"])
def test_killed_while_replacing_a_release_it_goes_on(
    home: Home, supplier: Supplier, first: Path, second: Path, bomb: str
) -> None:
    assert install(home, first, supplier.fingerprint).returncode == 0
    assert install(home, second, supplier.fingerprint, bomb).returncode == -signal.SIGKILL
    assert install(home, second, supplier.fingerprint).returncode == 0
    assert whole(home, "2.0")
    assert home.previous.readlink().name.startswith("small-1.0-")


def test_a_release_that_does_not_work_gives_way_to_the_one_before_even_after_a_kill(
    home: Home, supplier: Supplier, first: Path, second: Path
) -> None:
    assert install(home, first, supplier.fingerprint).returncode == 0
    refused = install(home, second, supplier.fingerprint, "none", "--sick")
    assert refused.returncode == 7
    assert "release-unhealthy" in refused.stderr
    assert whole(home, "1.0")

    # Killed between the switch and the start: the resumed run still knows the way back.
    assert install(home, second, supplier.fingerprint, "task:Starting").returncode < 0
    assert running(home) is None
    assert install(home, second, supplier.fingerprint, "none", "--sick").returncode == 7
    assert whole(home, "1.0")


def test_the_same_bundle_again_reads_no_blob_and_leaves_it_running(
    home: Home, supplier: Supplier, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(home, first, supplier.fingerprint).returncode == 0
    blobs = [path for path in (home.store / "sha256").rglob("*") if path.is_file()]
    for path in blobs:
        os.utime(path, ns=(0, path.stat().st_mtime_ns))
    started = time.monotonic()
    again = install(home, first, supplier.fingerprint)
    with capsys.disabled():
        print(f"\nsecond install: {time.monotonic() - started:.2f} s")
    assert again.stdout.strip() == "did"
    lock = (home.current / "wheelhouse/requirements.lock").stat().st_ino  # says what is installed
    read = [path for path in blobs if path.stat().st_atime_ns and path.stat().st_ino != lock]
    assert not read  # relatime: reading a file whose access time is old renews it


def test_two_at_once_the_second_names_the_first(
    home: Home, supplier: Supplier, first: Path
) -> None:
    arguments = (home.root, first, supplier.fingerprint, "none")
    processes = [install_driver.start(1, 2, *arguments) for _number in range(2)]
    statuses = sorted(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes)
    assert statuses in ([0, 6], [0, 0])  # or the second came after the first was done
    assert whole(home, "1.0")


# --- refusals -------------------------------------------------------------------------------------


def _flipped(bundle: Path, path: Path, offset: int) -> Path:
    data = bytearray(bundle.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    return path


def test_what_is_not_a_good_bundle_is_refused_and_the_running_release_is_untouched(
    home: Home, supplier: Supplier, first: Path, tmp_path: Path
) -> None:
    assert install(home, first, supplier.fingerprint).returncode == 0
    third = supplier.bundle("third", version="3.0")
    stranger = Supplier.at(tmp_path / "stranger")
    other_machine = Platform.of_this_machine().model_copy(update={"machine": "s390x"})
    text = tmp_path / "letter.tar"
    text.write_text("Dear operator,\n" * 100)
    truncated = tmp_path / "truncated.tar"
    truncated.write_bytes(third.read_bytes()[:-20_000])
    where = third.read_bytes().index(b"3.0\0\0\0")
    refused = {
        "bundle-tampered": _flipped(third, tmp_path / "tampered.tar", where + 50_000),
        "bundle-truncated": truncated,
        "bundle-untrusted": stranger.bundle("wrong", version="4.0"),
        "wrong-platform": supplier.bundle("far", version="5.0", platform=other_machine),
        "not-a-bundle": text,
        "file-unreadable": tmp_path / "missing.tar",
    }
    before = home.current.readlink()
    for code, bundle in refused.items():
        done = install(home, bundle, supplier.fingerprint)
        assert done.stderr.split(" ")[0] == code, done.stderr
        assert "Traceback" not in done.stderr
        assert home.current.readlink() == before
        assert whole(home, "1.0")
    assert running(home) == before.name


def test_another_fingerprint_than_the_pinned_is_refused_and_a_wrong_one_is_not_kept(
    home: Home, supplier: Supplier, first: Path
) -> None:
    assert install(home, first, "00" * 32).returncode == 3
    assert not home.trust.exists()
    assert install(home, first, supplier.fingerprint).returncode == 0
    assert "trust-pin-differs" in install(home, first, "00" * 32).stderr


def test_a_machine_that_is_not_fit_trusts_nobody_yet(
    home: Home, supplier: Supplier, first: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"--port={other.getsockname()[1]}"
        refused = install(home, first, supplier.fingerprint, "none", taken)
    assert refused.stderr.startswith("port-taken"), refused.stderr
    assert not home.trust.exists()
    assert not home.ledger.exists()
    assert install(home, first, supplier.fingerprint).returncode == 0


def test_a_folder_with_other_things_is_not_taken(
    supplier: Supplier, first: Path, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    (tmp_path / "thesis.tex").write_text("x")
    done = install(home, first, supplier.fingerprint)
    assert done.stderr.startswith("home-not-ours")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "thesis.tex"]


def test_interrupted_with_ctrl_c_it_says_so_in_the_journal_and_goes_on(
    home: Home, supplier: Supplier
) -> None:
    bundle = supplier.bundle("many", version="1.0", wheels=60)
    process = install_driver.start(1, 2, home.root, bundle, supplier.fingerprint, "none")
    deadline = time.monotonic() + 60
    while not list(home.releases.glob("*/venv")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    last = Journal(home.journal / "install.jsonl").entries()[-1]
    assert (last.mark, last.reason) == ("failed", "interrupted")
    assert install(home, bundle, supplier.fingerprint).returncode == 0
    assert whole(home, "1.0")


@pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode,
    reason="needs a mount namespace of its own",
)
def test_a_full_disk_is_said_and_what_runs_stays(
    supplier: Supplier, first: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size=64m none {small} && "
        f"exec {sys.executable} {DRIVER} {small}/home {first} {supplier.fingerprint} none"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "disk" in done.stderr
    assert "Traceback" not in done.stderr


# --- and away again -------------------------------------------------------------------------------


def test_uninstall_leaves_nothing_or_just_the_data(
    home: Home, supplier: Supplier, first: Path
) -> None:
    assert install(home, first, supplier.fingerprint).returncode == 0
    (home.run / "fake").unlink()
    uninstall.remove(home, uninstall.plan_removal(home, uninstall.is_data), Silent())
    left = {path.name for path in home.root.iterdir()}
    assert left == {
        "ledger",
        "registry",
        "secrets",
        "tls",
        "trust",
        ".sovctl",
    }
    assert install(home, first, supplier.fingerprint).returncode == 0
    uninstall.remove(home, uninstall.plan_removal(home, uninstall.is_nothing), Silent())
    assert not home.root.exists()


def test_what_was_done_is_on_the_ledger_even_if_it_was_killed_before_it_could_say_so(
    home: Home, supplier: Supplier, first: Path
) -> None:
    install(home, first, supplier.fingerprint, "task:Installing the runtime")
    assert install(home, first, supplier.fingerprint).returncode == 0
    entries = b"".join(
        p.read_bytes() for p in (home.ledger / "tile/entries").rglob("*") if p.is_file()
    )
    for action in ("trust.pin", "bundle.load", "release.install", "release.activate", "key.create"):
        assert json.dumps(action).encode() in entries, action
