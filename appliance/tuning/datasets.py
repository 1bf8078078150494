"""Data sets: from a file on a disk someone carried in, to a folder named by its digest.

```
Home.datasets/<hex>/   train.jsonl  heldout.jsonl  [card.json]  [LICENSE]
```
Rows are copied as they are (line ends become a newline); the data set's digest is
:func:`appliance.tuning.files.tree_digest` of the files.

A single file is split: a row is held out when its SHA-256 starts with a byte below 13 (5 %). The
choice depends on the row alone, so copies of a row are never on both sides, and an import repeated
anywhere gives the same split. A folder brings its own split, and a row in both parts is refused:
it would make the evaluation look better than the model is.

Rows are streamed; memory holds one line, and the digests of the held-out rows.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from appliance.errors import DatasetRowsInvalid, DatasetUnusable, DiskFull, FileUnreadable
from appliance.i18n import _
from appliance.layout import Home
from appliance.progress import Progress, Task
from appliance.registry import Dataset, Registry
from appliance.tuning.files import folder_files, publish, staged_folder, tree_digest
from appliance.tuning.rows import MAX_LINE, Form, RowInvalid, parse

TRAIN, HELDOUT = "train.jsonl", "heldout.jsonl"
COMPANIONS = ("card.json", "LICENSE")
"""Copied when they are there: what the data is, and on what terms."""

MAX_BYTES = 64 << 30
MAX_ROWS = 50_000_000
MAX_HELDOUT = 100_000
_MAX_COMPANION = 256 << 10
_NAMED_ROWS = 20
_HELD_OUT_BELOW = 13


@dataclass
class _Findings:
    """What reading has found so far."""

    path: Path
    form: Form | None = None
    bad: int = 0
    named: list[tuple[int, str]] = field(default_factory=list)

    def refuse(self, line: int, reason: str) -> None:
        self.bad += 1
        if len(self.named) < _NAMED_ROWS:
            self.named.append((line, reason))

    def raise_if_bad(self) -> None:
        if not self.bad:
            return
        lines = ", ".join(str(line) for line, _reason in self.named)
        more = f" … (+{self.bad - len(self.named)})" if self.bad > len(self.named) else ""
        reasons = "; ".join(f"{line}: {reason}" for line, reason in self.named[:5])
        raise DatasetRowsInvalid(
            path=self.path, count=self.bad, lines=_("line {0}").format(lines + more), reason=reasons
        )


def import_dataset(  # noqa: PLR0917 - the room's one entry; callers name them
    home: Home,
    registry: Registry,
    source_path: Path,
    name: str,
    actor: str,
    progress: Progress,
) -> Dataset:
    """Check, copy and register the data set in ``source_path`` (a .jsonl file, or a folder).

    Idempotent: the same content under the same name again changes nothing.

    Raises:
        DatasetRowsInvalid: rows that are not rows, by line.
        DatasetUnusable: nothing to train on, no held-out rows, or over the size limits.
        FileUnreadable: the source is missing or not readable.
        DiskFull: there is no room for the copy.
        NameTaken: the name stands for other content.
    """
    try:
        with staged_folder(home.datasets) as staging:
            rows, form = _stage(source_path, staging, progress)
            digest = tree_digest(folder_files(staging))
            target = home.datasets / digest.removeprefix("sha256:")
            publish(staging, target)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _disk_full(home, source_path) from error
        raise FileUnreadable(path=source_path, reason=error.strerror or error) from error
    return registry.datasets.add(
        Dataset(
            name=name,
            digest=digest,
            path=str(target),
            rows=rows,
            schema=form,
            created=datetime.now(UTC),
            actor=actor,
        )
    )


def _stage(source: Path, staging: Path, progress: Progress) -> tuple[int, Form]:
    """Fill ``staging`` from ``source``; return its training rows and their form."""
    if not source.is_dir():
        return _stage_file(source, staging, progress)
    if not (source / TRAIN).exists() or not (source / HELDOUT).exists():
        raise DatasetUnusable(path=source, reason=_("train.jsonl or heldout.jsonl is missing."))
    held = _Findings(source / HELDOUT)
    train = _Findings(source / TRAIN)
    seen: dict[bytes, int] = {}
    with (staging / HELDOUT).open("wb") as copy, _reading(held.path, progress) as lines:
        for number, line in lines:
            if _accept(line, number, held):
                seen[hashlib.sha256(line).digest()] = number
                copy.write(line + b"\n")
                _limit(held.path, len(seen), MAX_HELDOUT)
    held.raise_if_bad()
    train.form = held.form
    rows = 0
    with (staging / TRAIN).open("wb") as copy, _reading(train.path, progress) as lines:
        for number, line in lines:
            twin = seen.get(hashlib.sha256(line).digest())
            if twin is not None:
                train.refuse(number, _("it is also line {0} of heldout.jsonl").format(twin))
            elif _accept(line, number, train):
                copy.write(line + b"\n")
                rows += 1
                _limit(train.path, rows, MAX_ROWS)
    train.raise_if_bad()
    for name in COMPANIONS:
        _stage_companion(source / name, staging / name)
    return rows, _complete(source, rows, len(seen), train.form)


def _stage_file(source: Path, staging: Path, progress: Progress) -> tuple[int, Form]:
    findings = _Findings(source)
    rows = held = 0
    with ExitStack() as stack:
        train = stack.enter_context((staging / TRAIN).open("wb"))
        heldout = stack.enter_context((staging / HELDOUT).open("wb"))
        for number, line in stack.enter_context(_reading(source, progress)):
            if not _accept(line, number, findings):
                continue
            if hashlib.sha256(line).digest()[0] < _HELD_OUT_BELOW and held < MAX_HELDOUT:
                heldout.write(line + b"\n")
                held += 1
            else:
                train.write(line + b"\n")
                rows += 1
            _limit(source, rows, MAX_ROWS)
    findings.raise_if_bad()
    return rows, _complete(source, rows, held, findings.form)


def _accept(line: bytes, number: int, findings: _Findings) -> bool:
    try:
        form = parse(line).form
    except RowInvalid as error:
        findings.refuse(number, str(error))
        return False
    if findings.form not in {None, form}:
        findings.refuse(number, _("rows before it are of the other form"))
        return False
    findings.form = form
    return True


def _complete(source: Path, rows: int, held: int, form: Form | None) -> Form:
    if not rows or form is None:
        raise DatasetUnusable(path=source, reason=_("It holds no training row."))
    if not held:
        raise DatasetUnusable(
            path=source,
            reason=_("It holds no held-out row, so what is learnt could not be measured."),
        )
    return form


def _limit(path: Path, rows: int, limit: int) -> None:
    if rows > limit:
        raise DatasetUnusable(path=path, reason=_("It has more than {0} rows.").format(limit))


class _reading:  # noqa: N801 - used as a context manager, like open()
    """Numbered lines of a regular file, with a progress bar of its bytes."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._stack = ExitStack()

    def __enter__(self) -> Iterator[tuple[int, bytes]]:
        # O_NONBLOCK so that opening a pipe returns; what was opened is what is checked.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        file = self._stack.enter_context(os.fdopen(descriptor, "rb", buffering=1 << 20))
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._stack.close()
            raise DatasetUnusable(path=self._path, reason=_("It is not a regular file."))
        if status.st_size > MAX_BYTES:
            self._stack.close()
            raise DatasetUnusable(
                path=self._path, reason=_("It is larger than {0} bytes.").format(MAX_BYTES)
            )
        title = _("Checking {0}").format(self._path.name)
        task = self._stack.enter_context(self._progress.task(title, status.st_size, "bytes"))
        return _lines(file, task)

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def _lines(file: BinaryIO, task: Task) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_LINE + 2):
        number += 1
        task.advance(len(line))
        # The rest of an over-long line is dropped piece by piece, so memory stays what it was.
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE)):
            task.advance(len(rest))
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _stage_companion(source: Path, target: Path) -> None:
    if not source.is_file():
        return
    with source.open("rb") as file:
        content = file.read(_MAX_COMPANION + 1)
    if len(content) > _MAX_COMPANION:
        raise DatasetUnusable(
            path=source, reason=_("{0} is larger than 256 KiB.").format(source.name)
        )
    target.write_bytes(content)


def _disk_full(home: Home, source: Path) -> DiskFull:
    size = sum(p.stat().st_size for p in ([source] if source.is_file() else source.iterdir()))
    return DiskFull(
        path=home.datasets,
        needed=f"{size} bytes",
        free=f"{shutil.disk_usage(home.datasets).free} bytes",
        reason=_("The data set is copied into the appliance before it is used."),
    )
