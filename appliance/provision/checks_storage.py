"""Is there room, to the byte, and are the folders usable: disks, /tmp, the shared storage. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from appliance.bundle.load import RESERVE
from appliance.i18n import _
from appliance.manifests.site import NfsStorage
from appliance.provision.facts import Folder, HostFacts
from appliance.provision.finding import HostFinding
from appliance.provision.needs import BundleNeeds
from appliance.provision.subject import Subject
from appliance.store.space import Files, FileSystem, Room, on_disk, predict

GOOD_WRITE: Final = 100_000_000  # bytes/s: a spinning disk; below it, loading takes hours
GOOD_SHM: Final = 1 << 30  # bytes of /dev/shm: Ray's object store falls back to a disk below it
SITE_RESERVE: Final = 1 << 30  # bytes left free where no bundle says what is needed


def space(on: Subject) -> Iterator[HostFinding]:
    """The bundle fits, counted per file system in whole blocks, what is there already left out."""
    rooms = rooms_of(on.needs.bundle, on.facts, on.site.folder)
    if rooms is None:
        remedy = _("Run 'df -B1 {f}' on it.").format(f=on.site.folder)
        yield on.untold(_("its free space is not known"), remedy, on.site.folder)
        return
    for room in rooms:
        if room.fits:
            yield on.passed(str(room))
        else:
            lacking = max(room.needed - room.system.free, 0)
            remedy = _("Free {count} bytes there, or put {folder} on a larger disk.")
            yield on.failed(str(room), remedy.format(count=lacking, folder=on.site.folder))


def rooms_of(bundle: BundleNeeds | None, facts: HostFacts, folder: str) -> tuple[Room, ...] | None:
    """What each file system of a host must hold for ``bundle``; None if it told nothing."""
    home, root = facts.folder(folder), facts.folder("/")
    if home is None or root is None:
        return None
    if bundle is None:
        return predict([(Files(Path(folder), (SITE_RESERVE,)), _system(home))])
    store, runtime, packages = bytes_to_write(bundle, facts)
    return predict(
        [
            (Files(Path(folder), store, folders=_folders(store), reserve=RESERVE), _system(home)),
            (Files(Path(folder), (runtime,) if runtime else ()), _system(home)),
            (Files(Path("/"), (packages,) if packages else (), reserve=RESERVE), _system(root)),
        ]
    )


def bytes_to_write(bundle: BundleNeeds, facts: HostFacts) -> tuple[list[int], int, int]:
    """Sizes of the blobs that are not in the host's store yet, bytes of the runtime and of the
    Debian packages; nothing of the latter two where the release is complete."""
    here = facts.installed
    held = here.blobs if here and here.blobs is not None else frozenset[str]()
    missing = [size for digest, size in bundle.blobs if digest[:16] not in held]
    done = here is not None and bundle.release in here.runtimes
    return missing, 0 if done else bundle.runtime, 0 if done else bundle.packages


def _folders(sizes: list[int]) -> int:
    """Folders that the store makes: one for each first byte of a digest, and its own three."""
    return min(len(sizes), 256) + 3 if sizes else 0


def _system(folder: Folder) -> FileSystem:
    return FileSystem(folder.device, Path(folder.mount), folder.free, folder.block, folder.inodes)


def written(bundle: BundleNeeds, facts: HostFacts, block: int = 4096) -> int:
    """Bytes on disk that installing ``bundle`` writes on a host."""
    store, runtime, packages = bytes_to_write(bundle, facts)
    return sum(on_disk(size, block) for size in store) + runtime + packages


def disk_speed(on: Subject) -> Iterator[HostFinding]:
    """A small file, written and fsynced: a hint, not a benchmark."""
    found = on.facts.disk
    if found is None:
        yield on.untold(
            _("the disk of {folder} could not be measured").format(folder=on.site.folder),
            _("Is it full, or read-only? 'df {f}', 'findmnt -T {f}'.").format(f=on.site.folder),
            "disk",
        )
        return
    rate = found.bytes * 1000 // found.milliseconds
    text = _("{n} MB/s written in {folder}").format(n=rate // 1_000_000, folder=on.site.folder)
    if rate < GOOD_WRITE:
        yield on.warned(text, _("Loading weights will be slow; use a faster disk for it."))
    else:
        yield on.passed(text)


def mounts(on: Subject) -> Iterator[HostFinding]:
    """Programs can be run from the site's folder, and from /tmp, where compilers put theirs."""
    home = on.facts.folder(on.site.folder)
    refused = [option for option in ("noexec", "ro") if home and option in home.options]
    if home is not None and refused:
        text = _("{folder} is on {mount}, which is mounted {options}").format(
            folder=on.site.folder, mount=home.mount, options=",".join(refused)
        )
        remedy = _("Run 'mount -o remount,exec,rw {mount}' and correct /etc/fstab.")
        yield on.failed(text, remedy.format(mount=home.mount))
    strict = [
        asked
        for asked in ("/tmp", "/var/tmp")  # noqa: S108 - looked at, not written to
        if (found := on.facts.folder(asked)) and "noexec" in found.options
    ]
    if strict:
        yield on.warned(
            _("{folders} is mounted noexec").format(folders=", ".join(strict)),
            _("Our services use {folder}/tmp; for other programs: 'mount -o remount,exec {mount}'.")
            .format(folder=on.site.folder, mount=strict[0]),
        )  # fmt: skip
    shm = on.facts.folder("/dev/shm")  # noqa: S108 - the same
    if on.needs.ray and shm is not None and shm.free < GOOD_SHM:
        yield on.warned(
            _("{n} bytes are free in {mount}").format(n=shm.free, mount=shm.mount),
            _("Run 'mount -o remount,size=30% /dev/shm': Ray's object store lives there."),
        )
    if not refused and not strict:
        yield on.passed(_("nothing is noexec that must not be"))


def shared(on: Subject) -> Iterator[HostFinding]:
    """The shared storage is mounted and not read-only, or its server answers."""
    path = on.needs.shared
    if isinstance(on.site.storage, NfsStorage):
        met = next((c for c in on.facts.connections or () if c.name == "nfs"), None)
        if met is None or met.outcome != "open":
            text = _("the NFS server {server} does not answer ({outcome})").format(
                server=on.site.storage.server, outcome=met.outcome if met else _("not tried")
            )
            yield on.failed(text, _("Check 'storage' in site.yaml, the server, and port 2049."))
        else:
            yield on.passed(_("the NFS server answers"))
        return
    if path is None:
        yield on.passed(_("none is used here"))
        return
    found = on.facts.folder(path)
    if found is None or not found.exists:
        text = on.with_reason(_("{path} is not there, or does not answer").format(path=path), path)
        yield on.failed(text, _("Mount the shared storage there: 'mount {p}'.").format(p=path))
    elif found.mount == "/" or found.device == _device(on, "/"):
        text = _("{path} is on the host's own disk: nothing is mounted there").format(path=path)
        yield on.failed(text, _("Mount the shared storage there: 'mount {p}'.").format(p=path))
    elif "ro" in found.options:
        text = _("{path} is mounted read-only").format(path=path)
        yield on.failed(text, _("Run 'mount -o remount,rw {mount}'.").format(mount=found.mount))
    else:
        yield on.passed(f"{path}: {found.source} ({found.type})")


def _device(on: Subject, asked: str) -> int | None:
    found = on.facts.folder(asked)
    return found.device if found else None
