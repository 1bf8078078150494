"""``sovctl install`` with the cluster left out and a bomb put in, in a process of its own.

    python install_driver.py HOME BUNDLE FINGERPRINT BOMB [--sick] [--break-glass=REASON]

or, a second faster, :func:`run` forks the process the tests run in.

Everything but Ray is real: bundle, store, uv, keys, registry, ledger, journal, lock. The "cluster"
is the file ``run/fake``, which holds the release that "runs". BOMB says when this process kills
itself with SIGKILL: ``journal:N`` right after the N-th journal line, ``before:N`` right before it,
``task:TITLE`` inside the task whose title contains TITLE, ``event:ACTION`` after a ledger event,
``none``.
``--sick`` makes every release whose version is not 1.0 fail to start.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError, StartFailed
from appliance.install import embedded, journal, lock
from appliance.install.break_glass import emergency
from appliance.install.bundle_in import admit
from appliance.install.embedded import Installation, Request
from appliance.layout import Home
from appliance.progress import Progress, Silent, Task, Unit
from appliance.registry.store import Registry  # noqa: F401 - so that forks have it
from appliance.trust.fingerprint import Fingerprint
from appliance.tuning.adapters import ensure_signing_key  # noqa: F401


def explode() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class FakeCluster:
    def __init__(self, home: Home, sick: bool) -> None:
        self._file = home.run / "fake"
        self._sick = sick

    def start(self, release: Path, port: int, progress: Progress) -> None:
        with progress.task("Starting the appliance", None, "steps") as task:
            task.advance(1)
            if self._sick and "-1.0-" not in release.name:
                raise StartFailed(phase="serve", reason="it is sick")
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(release.name)

    def stop(self, progress: Progress) -> None:
        self._file.unlink(missing_ok=True)

    def port(self) -> int | None:
        return 8443 if self._file.exists() else None

    def healthy(self) -> bool:
        return self._file.exists()

    def check(self) -> None:
        assert self._file.exists()


class _BombTask:
    def __init__(self, armed: bool) -> None:
        self._armed = armed

    def advance(self, amount: int) -> None:
        if self._armed:
            explode()

    def note(self, text: str) -> None:
        pass


class BombProgress(Silent):
    def __init__(self, title: str) -> None:
        self._title = title

    @contextmanager
    def task(self, title: str, total: int | None, unit: Unit) -> Iterator[Task]:
        yield _BombTask(self._title in title)

    def say(self, text: str) -> None:
        print(text, flush=True)


def arm(bomb: str) -> Progress:
    kind, _colon, where = bomb.partition(":")
    if kind in {"journal", "before"}:
        append, count = journal.Journal.append, 0

        def counted(self: journal.Journal, entry: journal.Entry) -> None:
            nonlocal count
            count += 1
            if kind == "before" and count == int(where):
                explode()
            append(self, entry)
            if kind == "journal" and count == int(where):
                explode()

        journal.Journal.append = counted  # type: ignore[method-assign]
    if kind == "event":
        record = embedded.record

        def recorded(home: Home, action: str, subject: dict[str, str]) -> None:
            record(home, action, subject)
            if action == where:
                explode()

        embedded.record = recorded  # type: ignore[assignment]
    return BombProgress(where if kind == "task" else "no such task")


@dataclass(frozen=True)
class Done:
    """How it ended; ``returncode`` is negative for a signal, as in ``subprocess``."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    """Fork, run :func:`main` in the child, wait for it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = start(out.fileno(), err.fileno(), *arguments)
        _pid, status = os.waitpid(pid, 0)
        texts = [os.pread(f.fileno(), 1 << 20, 0).decode() for f in (out, err)]
    return Done(os.waitstatus_to_exitcode(status), *texts)


def start(out: int, err: int, *arguments: object) -> int:
    """Fork a process that runs :func:`main` with its output to these descriptors."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(out, 1)
            os.dup2(err, 2)
            sys.stdout = os.fdopen(1, "w")
            sys.stderr = os.fdopen(2, "w")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = main([str(argument) for argument in arguments])
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def main(arguments: list[str]) -> int:
    home, bundle = Home(Path(arguments[0])), Path(arguments[1])
    progress = arm(arguments[3])
    cluster = FakeCluster(home, "--sick" in arguments)
    ports = [int(option[7:]) for option in arguments if option.startswith("--port=")]
    reasons = [option[14:] for option in arguments if option.startswith("--break-glass=")]
    given = emergency(reasons[0]) if reasons else None
    request = Request(bundle, port=ports[0] if ports else None)
    try:
        with (
            admit(bundle, home, Fingerprint.parse(arguments[2]), emergency=given) as admitted,
            lock.hold(home, f"install {bundle.name}"),
        ):
            installation = Installation(home, admitted, request, cluster)
            plan = installation.plan()
            installation.carry_out(plan, progress)
            print("did", *(step.phase for step in plan.pending))
    except ApplianceError as error:
        print(error.code, *error.sentences(), file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
