"""Measure verify and load of a bundle against what the machine can do in the same run.

    python tests/bench/bundle.py [--gib 1] [--folder /tmp] [--rounds 3]

Prints medians: sequential read of the file from a cold cache (4 MiB at a time), SHA-256 on all
cores, the smaller of the two as the ceiling, sequential write + fsync (which loading must do too,
and which no ceiling of reading knows), ``verify`` and ``load`` from a cold cache, ``cp`` + ``sync``
of the same file, processor time and peak resident memory of the loading process, and ``inspect`` of
a sparse 50 GB bundle. The page cache is dropped for the file (posix_fadvise), not for the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.bundle.format import END, header_of, metadata_members, place, signed_members
from appliance.bundle.load import judge, load, verify
from appliance.bundle.reader import BundleReader
from appliance.bundle.writer import BundleContent, write
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest, Platform
from appliance.progress import Silent
from appliance.store.blobs import Store
from appliance.trust import model_signature
from appliance.trust.pin import TrustState
from appliance.trust.repository import Repository, Threshold
from appliance.trust.verifier import Verifier

CHUNK = 4 << 20
# The shape of a real bundle: one file with a third of the bytes, a few large ones, many small.
SHARES = [0.3, 0.2, 0.1, 0.1, *[0.02] * 10, *[0.001] * 100]


def cold(path: Path) -> None:
    """Write back the file's dirty pages and drop it from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read_all(path: Path) -> None:
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def write_all(path: Path, size: int) -> None:
    data = os.urandom(CHUNK)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // CHUNK):
            file.write(data)
        os.fsync(file.fileno())
    path.unlink()


def hash_on_all_cores(size: int) -> None:
    cores = len(os.sched_getaffinity(0))
    data = os.urandom(CHUNK)

    def one(_: int) -> None:
        digest = hashlib.sha256()
        for _ in range(size // cores // CHUNK):
            digest.update(data)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(one, range(cores)))


def make_bundle(folder: Path, gib: float) -> tuple[Path, Repository]:
    store = Store(folder / "source")
    files = []
    for number, share in enumerate(SHARES):
        path = folder / "part"
        size = int(gib * share * 2**30)
        with path.open("wb") as out:
            for offset in range(0, size, CHUNK):
                out.write(os.urandom(min(CHUNK, size - offset)))
        digest, size = store.add(path)
        path.unlink()
        files.append(BlobRef(path=f"part-{number}", digest=digest, size=size))
    content, repository = signed(folder, files)
    bundle = folder / "bundle.tar"
    write(bundle, content, store.path, Silent())
    shutil.rmtree(store.root)
    return bundle, repository


def signed(folder: Path, files: list[BlobRef]) -> tuple[BundleContent, Repository]:
    manifest = BundleManifest(
        schema_version=1,
        name="bench",
        version="1",
        created="2026-01-01T00:00:00Z",
        platform=Platform.of_this_machine(),
        artefacts=(
            Artefact(kind="model", name="m", version="1", licence="MIT", files=tuple(files)),
        ),
    )
    keys = Path(tempfile.mkdtemp(dir=folder))
    repository = Repository.create_demo(keys, Threshold(2, 3))
    hexes = {file.path: file.hex for file in files}
    signatures = {"m": model_signature.sign(hexes, repository.model_key(), "m")}
    metadata = repository.sign(
        "bench", signed_members(manifest, b"{}", signatures), artefacts=manifest.artefacts
    )
    return BundleContent(manifest, b"{}", signatures, metadata), repository


def inspect_sparse(folder: Path) -> float:
    """Seconds to judge a 50 GB bundle whose blobs are holes."""
    files = [BlobRef(path=f"p{n}", digest=f"sha256:{n:064x}", size=10**9) for n in range(50)]
    content, repository = signed(folder, files)
    members = {**metadata_members(content.metadata), **content.members()}
    layout = place([(n, len(d)) for n, d in members.items()], content.manifest.blobs())
    path = folder / "sparse.tar"
    with path.open("wb") as out:
        for member in layout.front:
            out.seek(member.header)
            out.write(header_of(member) + members[member.name])
        for member in layout.blobs:
            out.seek(member.header)
            out.write(header_of(member))
        out.seek(layout.end)
        out.write(END)
    cold(path)
    verifier = Verifier(TrustState().pinned_to(repository.fingerprint))

    def look() -> None:
        with BundleReader(path) as bundle:
            judge(bundle, verifier)

    return seconds(look)


def load_in_child(bundle: Path, fingerprint: str, store: Path) -> tuple[float, float, int]:
    """Load in a process of its own: seconds of ``load`` and of its processors, peak KiB."""
    answer = subprocess.run(
        [sys.executable, __file__, "--child", str(bundle), fingerprint, str(store)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return float(answer[0]), float(answer[1]), int(answer[2])


def child(bundle: str, fingerprint: str, store: str) -> None:
    from appliance.trust.fingerprint import Fingerprint

    verifier = Verifier(TrustState().pinned_to(Fingerprint.parse(fingerprint)))
    before = time.process_time()
    took = seconds(lambda: load(Path(bundle), Store(Path(store)), verifier, Silent()))
    print(took, time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-bundle-", dir=options.folder))
    try:
        measure(folder, options.gib, options.rounds)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, gib: float, rounds: int) -> None:
    bundle, repository = make_bundle(folder, gib)
    size = bundle.stat().st_size
    verifier = Verifier(TrustState().pinned_to(repository.fingerprint))
    times: dict[str, list[float]] = {}
    memory = 0
    for number in range(rounds):
        cold(bundle)
        times.setdefault("sequential read", []).append(seconds(lambda: read_all(bundle)))
        times.setdefault("SHA-256, all cores", []).append(seconds(lambda: hash_on_all_cores(size)))
        times.setdefault("sequential write", []).append(
            seconds(lambda: write_all(folder / "written", size))
        )
        cold(bundle)
        times.setdefault("verify", []).append(seconds(lambda: verify(bundle, verifier, Silent())))
        cold(bundle)
        store = folder / f"store-{number}"
        took, processor, peak = load_in_child(bundle, repository.fingerprint.hex, store)
        times.setdefault("load", []).append(took)
        times.setdefault("load, processor time", []).append(processor)
        memory = max(memory, peak)
        again, _processor, _peak = load_in_child(bundle, repository.fingerprint.hex, store)
        times.setdefault("load again", []).append(again)
        shutil.rmtree(store)
        cold(bundle)
        copy = folder / "copy"
        copying = ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(bundle), str(copy)]
        times.setdefault("cp + sync", []).append(
            seconds(lambda command=copying: subprocess.run(command, check=True))
        )
        copy.unlink()
    report(size, {name: statistics.median(each) for name, each in times.items()}, memory)
    print(f"inspect of a sparse 50 GB bundle  {inspect_sparse(folder):8.3f} s")


def report(size: int, median: dict[str, float], memory: int) -> None:
    print(f"bundle of {size / 1e9:.2f} GB, {len(os.sched_getaffinity(0))} cores")
    for name, took in median.items():
        print(f"{name:<22} {took:8.3f} s  {size / took / 1e9:6.2f} GB/s")
    ceiling = max(median["sequential read"], median["SHA-256, all cores"])
    print(f"verify / min(read, hash)  {ceiling / median['verify']:.2f}")
    print(f"load   / min(read, hash)  {ceiling / median['load']:.2f}")
    lowest = max(ceiling, median["sequential write"])
    print(f"load   / min(read, hash, write)  {lowest / median['load']:.2f}")
    print(f"load   / (cp + sync)      {median['cp + sync'] / median['load']:.2f}")
    print(f"peak memory of load       {memory / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
