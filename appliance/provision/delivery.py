"""A release to every host at once: one SSH stream each, only what is missing, every byte hashed.

    shipment = Shipment.of(content, reserve)
    store = Store(home.store)
    sent = deliver(remotes, shipment, store, progress, home=site.folder, run=claim.run)

The other end is :mod:`appliance.provision.receiver`, which says what it lacks and from where on.
A connection that breaks costs nothing but its rest: the next run goes on at the byte where the host
stopped, and one that finds everything there sends nothing. The source is the controller's store,
whose blobs were verified when they were loaded; the host hashes them again on their way in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self

from appliance.errors import (
    ApplianceError,
    ConnectionLost,
    DeliveryDamaged,
    DiskFull,
    HostLockLost,
    ReleaseDiffers,
    StoreDamaged,
)
from appliance.i18n import _
from appliance.manifests.bundle import check_path
from appliance.provision.several import one_error, try_each
from appliance.provision.ssh import Remote, end
from appliance.provision.there import COMMAND, program
from appliance.store.blobs import hex_of

if TYPE_CHECKING:
    from appliance.progress import Progress, Task
    from appliance.store.blobs import Store
    from appliance.store.releases import ReleaseContent

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Shipment:
    """What a host has to have at the end.

    ``blobs`` are digest and bytes, sorted; ``links`` are digest and path of the release's files
    that are blobs; ``files`` path and content of those that are not. ``reserve`` bytes are to stay
    free on the host's disk.
    """

    release: str
    blobs: tuple[tuple[str, int], ...]
    links: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, bytes], ...]
    reserve: int

    @classmethod
    def of(cls, content: ReleaseContent, reserve: int) -> Self:
        """All of a verified bundle."""
        manifest = content.manifest
        return cls(
            release=manifest.release_id,
            blobs=tuple((blob.digest, blob.size) for blob in manifest.blobs()),
            links=tuple(
                (file.digest, f"{artefact.folder}/{check_path(file.path)}")
                for artefact in manifest.artefacts
                for file in artefact.files
            ),
            files=tuple((check_path(path), data) for path, data in content.files().items()),
            reserve=reserve,
        )

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(size for _digest, size in self.blobs)

    def announce(self, home: str, run: str) -> Iterator[bytes]:
        """The lines that begin the conversation with a receiver."""
        header = {
            "version": 1,
            "home": home,
            "release": self.release,
            "run": run,
            "reserve": self.reserve,
            "blobs": len(self.blobs),
            "links": len(self.links),
            "files": len(self.files),
        }
        yield json.dumps(header).encode() + b"\n"
        for digest, size in self.blobs:
            yield f"{hex_of(digest)} {size}\n".encode()
        for digest, path in self.links:
            yield f"{hex_of(digest)} {path}\n".encode()
        for path, data in self.files:
            yield f"{hashlib.sha256(data).hexdigest()} {len(data)} {path}\n".encode()


@dataclass(frozen=True, slots=True)
class Sent:
    """What one host got: how many blobs, and bytes of them."""

    blobs: int
    size: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A receiver's answer: blobs by index and offset, and whether it wants the other files."""

    blobs: tuple[tuple[int, int], ...]
    files: bool

    def is_of(self, shipment: Shipment) -> bool:
        """Whether it is a part of what was announced: a host is not believed to say so."""
        sizes = [size for _digest, size in shipment.blobs]
        return all(
            0 <= index < len(sizes) and 0 <= offset <= sizes[index] for index, offset in self.blobs
        )

    def size(self, shipment: Shipment) -> int:
        """Bytes that are to be sent."""
        return sum(shipment.blobs[index][1] - offset for index, offset in self.blobs)


class _ResumedBadly(Exception):
    """What an earlier run had left of a blob was not what was sent; the host threw it away."""

    def __init__(self, blob: str) -> None:
        super().__init__(blob)
        self.blob = blob


class _Receiving:
    """One host's receiver and the conversation with it."""

    def __init__(self, remote: Remote, home: str) -> None:
        self._remote = remote
        self._home = home
        self.process = remote.start(COMMAND, sudo=True)

    @property
    def _pipe(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def ask(self, shipment: Shipment, run: str) -> _Wanted:
        """Announce the shipment; return what is wanted of it."""
        with self._talking(shipment):
            self._pipe.write(program("receiver"))
            self._pipe.writelines(shipment.announce(self._home, run))
            self._pipe.flush()
        try:
            answer = self._answer(shipment)
            wanted = _Wanted(
                tuple((int(index), int(offset)) for index, offset in answer["blobs"]),
                bool(answer["files"]),
            )
        except (KeyError, TypeError, ValueError, _ResumedBadly) as error:
            raise self._beside_the_point() from error
        if not wanted.is_of(shipment):
            raise self._beside_the_point()
        return wanted

    def _beside_the_point(self) -> ApplianceError:
        reason = _("It asked for something that it was not offered.")
        return self._remote.failed(["receiver"], reason)

    def send(self, wanted: _Wanted, shipment: Shipment, store: Store, task: Task) -> Sent:
        """Send what is wanted; return when the host has it."""
        with self._talking(shipment):
            for index, offset in wanted.blobs:
                self._send_blob(store, shipment.blobs[index][0], offset, task)
            if wanted.files:
                self._pipe.writelines(data for _path, data in shipment.files)
            self._pipe.flush()
        self._answer(shipment)
        return Sent(len(wanted.blobs), wanted.size(shipment))

    def _send_blob(self, store: Store, digest: str, offset: int, task: Task) -> None:
        try:
            file = store.path(digest).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise StoreDamaged(blob=digest, store=store.root, reason=_("it is missing")) from error
        with file:
            file.seek(offset)
            while chunk := file.read(_CHUNK):
                self._pipe.write(chunk)
                task.advance(len(chunk))

    @contextlib.contextmanager
    def _talking(self, shipment: Shipment) -> Iterator[None]:
        """A receiver that stops listening has said why, or its connection has."""
        try:
            yield
        except BrokenPipeError as error:
            self._answer(shipment)
            reason = _("The host stopped listening.")
            raise self._lost(reason) from error

    def _answer(self, shipment: Shipment) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a login script greets
            if not isinstance(answer, dict):
                continue
            if "error" in answer:
                raise self._refusal(answer, shipment)
            return answer
        raise self._broken_off()

    def _broken_off(self) -> ApplianceError:
        """Why there is no answer."""
        assert self.process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        stderr = self.process.stderr.read()
        problem = self._remote.judge(self.process.wait(), stderr, sudo=True)
        if problem is not None:
            return problem
        lines = stderr.decode(errors="replace").strip().splitlines()
        return self._remote.failed(["receiver"], lines[-1] if lines else _("It said nothing."))

    def _refusal(self, answer: Mapping[str, Any], shipment: Shipment) -> Exception:
        kind, host = answer["error"], self._remote.name
        reason = " ".join(str(answer[name]) for name in ("path", "reason") if answer.get(name))
        folder = f"{self._home}/releases/{shipment.release}"
        made: dict[str, Callable[[], Exception]] = {
            "resumed-badly": lambda: _ResumedBadly(str(answer.get("digest"))),
            "damaged": lambda: DeliveryDamaged(blob=answer.get("digest"), host=host),
            "not-locked": lambda: HostLockLost(host=host),
            "release-differs": lambda: ReleaseDiffers(
                host=host, release=shipment.release, folder=folder
            ),
            "disk-full": lambda: self._no_room(answer),
            "no-inodes": lambda: self._no_room(answer),
            "cut-off": lambda: self._lost(_("The host says: {reason}.").format(reason=reason)),
        }
        return made.get(kind, lambda: self._remote.failed(["receiver"], f"{kind}: {reason}"))()

    def _no_room(self, answer: Mapping[str, Any]) -> DiskFull:
        counted = _("{n} files") if answer["error"] == "no-inodes" else _("{n} bytes")
        needed, free = answer.get("needed"), answer.get("free")
        return DiskFull(
            path=f"{self._remote.name}:{answer.get('path') or self._home}",
            needed=counted.format(n=needed) if needed is not None else _("more"),
            free=counted.format(n=free) if free is not None else _("nothing"),
            reason=_("Host {host} cannot take in the release.").format(host=self._remote.name),
        )

    def _lost(self, reason: str) -> ConnectionLost:
        return ConnectionLost(host=self._remote.name, address=self._remote.address, reason=reason)


def deliver(
    remotes: Mapping[str, Remote],
    shipment: Shipment,
    store: Store,
    progress: Progress,
    *,
    home: str,
    run: str,
) -> dict[str, Sent]:
    """Bring the shipment to every host; return what each got.

    The caller holds the hosts' locks with ``run``. A host that fails does not stop the others; then
    their error is raised (:func:`~appliance.provision.several.one_error`) when all are done.
    """
    sent: dict[str, Sent] = {}
    failures: dict[str, ApplianceError] = {}
    again: Mapping[str, str] = dict.fromkeys(remotes, "")
    # A host throws away one bad beginning in each round, and has no more of them than blobs.
    for _turn in range(len(shipment.blobs) + 1):
        waiting = {name: remotes[name] for name in again}
        more, failed, again = _round(waiting, shipment, store, progress, home=home, run=run)
        sent |= more
        failures |= failed
        if not again:
            break
    failures |= {name: DeliveryDamaged(blob=blob, host=name) for name, blob in again.items()}
    if failures:
        raise one_error(failures)
    return sent


def _round(
    remotes: Mapping[str, Remote],
    shipment: Shipment,
    store: Store,
    progress: Progress,
    *,
    home: str,
    run: str,
) -> tuple[dict[str, Sent], dict[str, ApplianceError], dict[str, str]]:
    """Deliver once; the last value is the hosts to try again, each with the blob that it is for."""
    receivers: dict[str, _Receiving] = {}
    again: dict[str, str] = {}

    def ask(remote: Remote) -> _Wanted:
        receivers[remote.name] = receiving = _Receiving(remote, home)
        return receiving.ask(shipment, run)

    try:
        wanted, failures = try_each(remotes, ask)
        total = sum(each.size(shipment) for each in wanted.values())

        def send(remote: Remote) -> Sent | None:
            try:
                return receivers[remote.name].send(wanted[remote.name], shipment, store, task)
            except _ResumedBadly as bad:
                again[remote.name] = bad.blob
                return None

        title = _("Copying to {n} hosts").format(n=len(wanted))
        with progress.task(title, total, "bytes") as task:
            ended, failed = try_each({name: remotes[name] for name in wanted}, send)
            if failed:
                task.note(_("(not all of it to {hosts})").format(hosts=", ".join(failed)))
        sent = {name: each for name, each in ended.items() if each is not None}
        return sent, failures | failed, again
    finally:
        # ^C comes here too: every receiver ends with its connection and keeps what it has.
        for receiving in receivers.values():
            _finish(receiving.process)


def _finish(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ValueError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    end(process)
