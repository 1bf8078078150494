"""``sovctl install`` with the cluster left out and a bomb put in; run as a process by the tests.

    python install_driver.py HOME BUNDLE FINGERPRINT BOMB [--sick]

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import ApplianceError, StartFailed
from appliance.install import embedded, journal, lock
from appliance.install.bundle_in import admit
from appliance.install.embedded import Installation, Request
from appliance.layout import Home
from appliance.progress import Progress, Silent, Task, Unit
from appliance.trust.fingerprint import Fingerprint


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


def main() -> int:
    home, bundle = Home(Path(sys.argv[1])), Path(sys.argv[2])
    progress = arm(sys.argv[4])
    cluster = FakeCluster(home, "--sick" in sys.argv)
    try:
        with (
            admit(bundle, home, Fingerprint.parse(sys.argv[3])) as admitted,
            lock.hold(home, f"install {bundle.name}"),
        ):
            installation = Installation(home, admitted, Request(bundle), cluster)
            plan = installation.plan()
            installation.carry_out(plan, progress)
            print("did", *(step.phase for step in plan.pending))
    except ApplianceError as error:
        print(error.code, *error.sentences(), file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
