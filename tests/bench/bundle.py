"""Measure building, verifying and loading a bundle against what else does the like, in one run.

    python tests/bench/bundle.py [--gib 4] [--folder /tmp] [--rounds 5]

A bundle of five files. Each round runs every contestant once, in turn, from a cold cache (dropped
for its files, posix_fadvise). Medians are printed, and the median of the rounds' ratios. They are:

* what the machine can do: sequential read, SHA-256 on all cores, sequential write + fsync;
* ``verify``; ``load`` into an empty store, with processor time and peak memory of its process;
  ``load`` again; writing the bundle from its files (each hashed once more), durable;
* ``cp`` + ``sync`` of the bundle (the peer of load and build), ``sha256sum``; ``tar -x`` then
  ``sha256sum -c``; ``skopeo copy oci-archive: oci:`` of the same files as layers;
  ``model_signing verify`` of the same files as a model (the peer of ``verify``).

Then, once each: metadata of 100,000 blobs judged, ``inspect`` of a sparse 50 GB bundle, planning
over an 8 GB base of which a bundle with a changed adapter lacks one blob.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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
from appliance.trust.keys import public_pem
from appliance.trust.pin import TrustState
from appliance.trust.repository import Repository, Threshold
from appliance.trust.verifier import Verifier

CHUNK = 4 << 20
SHARES = (0.4, 0.25, 0.15, 0.15, 0.05)  # of the bytes, one for each of the five files
MODEL = "bench"


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


class Stage:
    """The same bytes in each contestant's form."""

    def __init__(self, folder: Path, gib: float) -> None:
        self.folder = folder
        self.source = folder / "model"
        self.source.mkdir()
        files = []
        for number, share in enumerate(SHARES):
            path = self.source / f"part-{number}"
            size = int(gib * share * 2**30)
            with path.open("wb") as out:
                for offset in range(0, size, CHUNK):
                    out.write(os.urandom(min(CHUNK, size - offset)))
            with path.open("rb") as file:
                hex_digest = hashlib.file_digest(file, "sha256").hexdigest()
            files.append(BlobRef(path=path.name, digest=f"sha256:{hex_digest}", size=size))
        self.content, self.repository = signed(folder, files)
        self.where = {file.digest: self.source / file.path for file in files}
        self.bundle = folder / "bundle.tar"
        write(self.bundle, self.content, self.where.__getitem__, Silent())
        self.size = self.bundle.stat().st_size
        self.verifier = Verifier(TrustState().pinned_to(self.repository.fingerprint))
        self.sums = folder / "sums"
        self.sums.write_text("".join(f"{f.hex}  {f.path}\n" for f in files))
        self.tar = folder / "plain.tar"
        _run("tar", "-C", str(self.source), "-cf", str(self.tar), ".")
        self.signature = folder / "model.sig"
        self.signature.write_bytes(self.content.signatures[MODEL])
        self.key = folder / "model.pub"
        self.key.write_bytes(public_pem(self.repository.model_key()))
        self.image = self._image(files) if shutil.which("skopeo") else None

    def _image(self, files: list[BlobRef]) -> Path:
        """An OCI archive whose layers are the files, as they are."""
        root = self.folder / "oci"
        blobs = root / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for file in files:
            os.link(self.source / file.path, blobs / file.hex)

        def put(tree: object, media: str) -> dict[str, object]:
            data = json.dumps(tree).encode()
            name = hashlib.sha256(data).hexdigest()
            (blobs / name).write_bytes(data)
            return {"mediaType": media, "digest": f"sha256:{name}", "size": len(data)}

        base = "application/vnd.oci.image"
        config = put(
            {
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [f.digest for f in files]},
            },
            f"{base}.config.v1+json",
        )
        layers = [
            {"mediaType": f"{base}.layer.v1.tar", "digest": f.digest, "size": f.size} for f in files
        ]
        manifest = {"schemaVersion": 2, "config": config, "layers": layers}
        entry = put(manifest, f"{base}.manifest.v1+json")
        entry["annotations"] = {"org.opencontainers.image.ref.name": "bench"}
        (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (root / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
        archive = self.folder / "image.tar"
        _run("tar", "-C", str(root), "-cf", str(archive), "oci-layout", "index.json", "blobs")
        shutil.rmtree(root)
        return archive


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=cwd)


def signed(folder: Path, files: list[BlobRef]) -> tuple[BundleContent, Repository]:
    model = Artefact(kind="model", name=MODEL, version="1", licence="MIT", files=tuple(files))
    manifest = BundleManifest(
        schema_version=1,
        name="bench",
        version="1",
        created="2026-01-01T00:00:00Z",
        platform=Platform.of_this_machine(),
        artefacts=(model,),
    )
    keys = Path(tempfile.mkdtemp(dir=folder))
    repository = Repository.create_demo(keys, Threshold(2, 3))
    hexes = {file.path: file.hex for file in files}
    signatures = {MODEL: model_signature.sign(hexes, repository.model_key(), MODEL)}
    members = signed_members(manifest, b"{}", signatures)
    metadata = repository.sign("bench", members, artefacts=manifest.artefacts)
    return BundleContent(manifest, b"{}", signatures, metadata), repository


def sparse(folder: Path, files: list[BlobRef]) -> tuple[Path, Verifier]:
    """A signed bundle whose blobs are holes."""
    content, repository = signed(folder, files)
    members = {**metadata_members(content.metadata), **content.members()}
    layout = place([(n, len(d)) for n, d in members.items()], content.manifest.blobs())
    path = folder / "sparse.tar"
    with path.open("wb") as out:
        for member in layout.front:
            out.seek(member.header)
            out.write(header_of(member) + members[member.name])
        out.seek(layout.end)
        out.write(END)
    cold(path)
    return path, Verifier(TrustState().pinned_to(repository.fingerprint))


def judging(folder: Path, count: int, size: int) -> float:
    """Seconds to judge all there is before the blobs, of a bundle of ``count`` blobs."""
    files = [BlobRef(path=f"p{n}", digest=f"sha256:{n:064x}", size=size) for n in range(count)]
    path, verifier = sparse(folder, files)

    def look() -> None:
        with BundleReader(path) as bundle:
            judge(bundle, verifier)

    return seconds(look)


def planning(folder: Path) -> float:
    """Seconds to find what an 8 GB base lacks of a bundle with one other adapter: both fronts read
    and judged, then compared. (Where deltas exist, planning one is this.)"""
    shared = [BlobRef(path=f"p{n}", digest=f"sha256:{n:064x}", size=10**9) for n in range(8)]
    for name, number in (("base", 98), ("changed", 99)):
        (folder / name).mkdir()
        adapter = BlobRef(path="adapter", digest=f"sha256:{number:064x}", size=20 << 20)
        path, verifier = sparse(folder / name, [*shared, adapter])
        if name == "base":
            base, base_verifier = path, verifier

    def plan() -> None:
        with BundleReader(base) as old, BundleReader(path) as new:
            judge(old, base_verifier)
            judge(new, verifier)
            have = {blob.digest for blob in old.manifest.blobs()}
            assert len([b for b in new.manifest.blobs() if b.digest not in have]) == 1

    return seconds(plan)


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
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-bundle-", dir=options.folder))
    try:
        measure(Stage(folder, options.gib), options.rounds)
        print(f"metadata of 100,000 blobs   {judging(_below(folder), 100_000, 100_000):8.3f} s")
        print(f"inspect of a sparse 50 GB   {judging(_below(folder), 50, 10**9):8.3f} s")
        print(f"plan a delta on 8 GB        {planning(_below(folder)):8.3f} s")
    finally:
        shutil.rmtree(folder)


def _below(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


class Round:
    """Every contestant once; seconds by name in ``times``, peak memory of load in KiB."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.times: dict[str, float] = {}
        self.memory = 0

    def run(self) -> Round:
        stage, folder, bundle = self._stage, self._stage.folder, self._stage.bundle
        self._time("sequential read", lambda: read_all(bundle))
        self._time("SHA-256, all cores", lambda: hash_on_all_cores(stage.size))
        self._time("sequential write", lambda: write_all(folder / "written", stage.size))
        self._time("cp + sync", lambda: _copy(bundle, folder / "copy"), folder / "copy")
        self._load()
        self._time("verify", lambda: verify(bundle, stage.verifier, Silent()))
        out = folder / "built.tar"
        self._time(
            "build", lambda: write(out, stage.content, stage.where.__getitem__, Silent()), out
        )
        self._time("sha256sum", lambda: _run("sha256sum", str(bundle)))
        self._time("tar -x, sha256sum -c", self._unpack, folder / "unpacked")
        if stage.image is not None:
            self._time("skopeo copy", self._skopeo, folder / "layout")
        self._time("model_signing verify", self._model_signing)
        return self

    def _time(self, name: str, work: Callable[[], object], made: Path | None = None) -> None:
        for path in (self._stage.bundle, self._stage.tar, *self._stage.source.iterdir()):
            cold(path)
        if self._stage.image is not None:
            cold(self._stage.image)
        self.times[name] = seconds(work)
        if made is not None:
            shutil.rmtree(made) if made.is_dir() else made.unlink()

    def _load(self) -> None:
        stage = self._stage
        store = stage.folder / "store"
        cold(stage.bundle)
        arguments = (stage.bundle, stage.repository.fingerprint.hex, store)
        took, processor, self.memory = load_in_child(*arguments)
        again, _processor, _peak = load_in_child(*arguments)
        self.times |= {"load": took, "load, processor time": processor, "load again": again}
        shutil.rmtree(store)

    def _unpack(self) -> None:
        target = self._stage.folder / "unpacked"
        target.mkdir()
        _run("tar", "-C", str(target), "-xf", str(self._stage.tar))
        _run("sha256sum", "-c", str(self._stage.sums), cwd=target)
        _run("sync", "-f", str(target))

    def _skopeo(self) -> None:
        target = self._stage.folder / "layout"
        _run("skopeo", "copy", f"oci-archive:{self._stage.image}", f"oci:{target}:bench")
        _run("sync", "-f", str(target))

    def _model_signing(self) -> None:
        program = Path(sys.executable).with_name("model_signing")
        options = ("--signature", str(self._stage.signature), "--public_key", str(self._stage.key))
        _run(str(program), "verify", "key", *options, str(self._stage.source))


def _copy(source: Path, target: Path) -> None:
    _run("cp", str(source), str(target))
    _run("sync", str(target))


def measure(stage: Stage, rounds: int) -> None:
    done = [Round(stage).run() for _ in range(rounds)]
    print(f"bundle of {stage.size / 1e9:.2f} GB, {os.cpu_count()} cores, {rounds} rounds")
    for name in done[0].times:
        took = statistics.median(each.times[name] for each in done)
        print(f"{name:<22} {took:8.3f} s  {stage.size / took / 1e9:6.2f} GB/s")

    def ratio(label: str, *, above: tuple[str, ...], below: str) -> None:
        each = [max(r.times[name] for name in above) / r.times[below] for r in done]
        print(f"{label:<34} {statistics.median(each):6.2f}")

    ceiling = ("sequential read", "SHA-256, all cores")
    ratio("verify / min(read, hash)", above=ceiling, below="verify")
    ratio("load / min(read, hash)", above=ceiling, below="load")
    ratio("load / min(read, hash, write)", above=(*ceiling, "sequential write"), below="load")
    ratio("time of load / cp + sync", above=("load",), below="cp + sync")
    ratio("time of build / cp + sync", above=("build",), below="cp + sync")
    for peer in ("sha256sum", "tar -x, sha256sum -c", "skopeo copy"):
        if peer in done[0].times:
            ratio(f"{peer} / load", above=(peer,), below="load")
    ratio("model_signing verify / verify", above=("model_signing verify",), below="verify")
    print(f"peak memory of load       {max(r.memory for r in done) / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
