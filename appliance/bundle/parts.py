"""Parts of a cut bundle, and reading them as if they were one file again.

    offset       bytes        content
    0            21           "sovctl bundle part 1" LF
    21           31           "<number> <header size> <statement size>" LF, 8 + 10 + 10 digits
    52           statement    a DSSE envelope over ``PartIndex``, the same in every part of a set
    …            to H         zero
    H            payload      bytes of the file, from (number - 1) × capacity

A part has one allowed header for its number, so no byte of it is free; its payload is covered by
the index and, member by member, by the bundle's own digests. Nothing is joined on a disk:
:class:`PartsMedium` reads from wherever the parts lie, and asks for the next disk if there is
somebody to ask.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.bundle.medium import EndReached, FileMedium, ReadFailed
from appliance.errors import FileUnreadable, PartMissing, PartRefused
from appliance.i18n import _
from appliance.manifests.transport import PartIndex
from appliance.trust import statement as dsse

MAGIC = b"sovctl bundle part 1\n"
_FIXED = len(MAGIC) + 31
_MAX_HEADER = 1 << 26  # bytes; what PartIndex allows
_MAX_OPEN = 256  # files open at a time; a process may as a rule have 1024


@dataclass(frozen=True)
class Wanted:
    """A part that is needed and not here: what to ask a person for."""

    number: int
    index: PartIndex
    folders: tuple[Path, ...]


Ask = Callable[[Wanted], Path | None]
"""Ask a person to insert a disk: returns a further folder to look in, or None for the same ones.

It raises to give up. It is asked again until the part is there."""


def part_header(number: int, statement: bytes, size: int) -> bytes:
    """The one header of part ``number``. Raises ``ValueError`` if ``size`` bytes do not hold it."""
    fixed = MAGIC + f"{number:08d} {size:010d} {len(statement):010d}\n".encode("ascii")
    if len(fixed) + len(statement) > size:
        raise ValueError("the header is too small for its statement")
    return (fixed + statement).ljust(size, b"\0")


@dataclass(frozen=True)
class Part:
    """One part's header, in its one allowed form. ``statement`` is not yet verified."""

    path: Path
    number: int
    statement: bytes
    index: PartIndex


def is_part(path: Path) -> bool:
    """Whether a regular file begins like a part."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return regular and os.pread(descriptor, len(MAGIC), 0) == MAGIC
    except OSError:
        return False
    finally:
        os.close(descriptor)


def read_part(path: Path) -> Part:
    """Read and check the header of a part, and its size. Raises PartRefused, FileUnreadable."""
    medium = FileMedium(path)
    try:
        return _read_part(medium)
    except ReadFailed as error:
        raise PartRefused(part=path, reason=_("Its header cannot be read: {error}.").format(
            error=error)) from error  # fmt: skip
    finally:
        medium.close()


def _read_part(medium: FileMedium) -> Part:
    fixed = _bytes(medium, 0, _FIXED)
    try:
        if fixed[: len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin like a part")
        number, size, length = (int(word) for word in fixed[len(MAGIC) :].split(b" "))
        if not (0 < number < 10**8 and 0 <= length <= size <= _MAX_HEADER):
            raise ValueError("its header says impossible sizes")
        header = _bytes(medium, 0, size)
        statement = header[_FIXED : _FIXED + length]
        if part_header(number, statement, size) != header:
            raise ValueError("its header is not in its one allowed form")
        index = PartIndex.parse(dsse.payload(statement, PartIndex.TYPE))
        if size != index.header_size or number > len(index.parts):
            raise ValueError("its header and the set's index do not belong together")
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise PartRefused(
            part=medium.path, reason=_("Of its header: {reason}.").format(reason=reason)
        ) from error
    whole = index.header_size + index.payload(number)
    if medium.size != whole:
        reason = _("Part {number} has {whole} bytes, and this file has {actual}.").format(
            number=number, whole=whole, actual=medium.size
        )
        raise PartRefused(part=medium.path, reason=reason)
    return Part(medium.path, number, statement, index)


def _bytes(medium: FileMedium, offset: int, size: int) -> bytes:
    data = bytearray(size)
    medium.read_into(memoryview(data), offset)
    return bytes(data)


@dataclass(frozen=True)
class Survey:
    """What lies in some folders of one set: number → path; and what cannot be used, with why."""

    found: dict[int, Path]
    others: dict[int, str]


def survey(like: Part, folders: tuple[Path, ...]) -> Survey:
    """Look for the parts of the set that ``like`` belongs to. Reads headers only."""
    found: dict[int, Path] = {}
    others: dict[int, str] = {}
    for path in _candidates(folders):
        try:
            part = read_part(path)
        except (PartRefused, FileUnreadable) as error:
            others.setdefault(_claimed_number(path), " ".join(error.sentences()[:2]))
            continue
        if part.statement == like.statement:
            found.setdefault(part.number, path)
        else:
            other = _("{path} is part {number} of another set, {set} of {bundle}.").format(
                path=path, number=part.number, set=part.index.set_id[:12], bundle=part.index
            )
            others.setdefault(part.number, other)
    return Survey(found, others)


def _candidates(folders: tuple[Path, ...]) -> list[Path]:
    paths: list[Path] = []
    for folder in dict.fromkeys(folders):
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file())
        except OSError:
            continue  # a disk that was taken out: whatever was on it is missing, and is asked for
        paths += [folder / name for name in names if not name.startswith(".")]
    return [path for path in paths if is_part(path)]


def _claimed_number(path: Path) -> int:
    """The number a damaged part's header claims; 0 if it cannot be read."""
    try:
        with path.open("rb") as file:
            return int(file.read(_FIXED)[len(MAGIC) :].split(b" ")[0])
    except (OSError, ValueError):
        return 0


class PartsMedium:
    """The parts of one set, read as the file they were cut from.

    With all parts in ``folders`` (and not hundreds of them) it is as free as a file. Otherwise it
    is ``sequential``: one part is open at a time (so its disk can be taken out after it), and the
    next is asked for.
    Raises :class:`PartRefused` for the first part, :class:`PartMissing` if nobody can be asked.
    """

    def __init__(self, first: Path, folders: tuple[Path, ...], ask: Ask | None) -> None:
        self.path = first
        self.first = read_part(first)
        self.index = self.first.index
        self.statement: bytes | None = self.first.statement
        self.size = self.index.size
        self._folders = (first.absolute().parent, *folders)
        self._ask = ask
        self._survey = survey(self.first, self._folders)
        self._survey.found.setdefault(self.first.number, first)
        all_here = len(self._survey.found) == len(self.index.parts)
        self.sequential = not all_here or len(self.index.parts) > _MAX_OPEN
        self._open: dict[int, FileMedium] = {}
        if not self.sequential:
            for number, path in self._survey.found.items():
                self._open[number] = FileMedium(path)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; see :class:`~appliance.bundle.medium.Medium`."""
        done = 0
        while done < len(buffer):
            at = offset + done
            if at >= self.size:
                raise EndReached(at, "the last part ends")
            number, inside = divmod(at, self.index.capacity)
            count = min(len(buffer) - done, self.index.payload(number + 1) - inside)
            medium = self._part(number + 1)
            try:
                piece = buffer[done : done + count]
                medium.read_into(piece, self.index.header_size + inside)
            except ReadFailed as error:
                into = error.offset - self.index.header_size - inside
                reason = f"{error.reason} (in {medium.path})"
                raise ReadFailed(at + max(into, 0), reason) from error
            done += count

    def expect(self, offset: int, size: int) -> None:
        """Tell the part that holds ``offset``; the others when their turn comes."""
        number, inside = divmod(offset, self.index.capacity)
        medium = self._open.get(number + 1)
        if medium is not None:
            medium.expect(self.index.header_size + inside, size)

    def close(self) -> None:
        """Close every part."""
        for medium in self._open.values():
            medium.close()
        self._open.clear()

    def _part(self, number: int) -> FileMedium:
        medium = self._open.get(number)
        if medium is not None:
            return medium
        self.close()  # the disk before may go
        while (opened := self._try(number)) is None:
            self._look_again(number)
        self._open[number] = opened
        return opened

    def _try(self, number: int) -> FileMedium | None:
        path = self._survey.found.get(number)
        if path is None:
            return None
        try:
            part = read_part(path)
        except (FileUnreadable, PartRefused):
            part = None
        if part is None or part.statement != self.statement or part.number != number:
            return None
        return FileMedium(path)

    def _look_again(self, number: int) -> None:
        """Look in the folders again; ask for the part if it is still not there."""
        self._survey = survey(self.first, self._folders)
        if self._try(number) is not None:
            return
        if self._ask is None:
            found = self._survey.others.get(number) or self._survey.others.get(0)
            raise PartMissing(
                number=number,
                total=len(self.index.parts),
                bundle=self.index,
                set=self.index.set_id[:12],
                folders=", ".join(str(folder) for folder in dict.fromkeys(self._folders)),
                found=f" {found}" if found else "",
            )
        further = self._ask(Wanted(number, self.index, self._folders))
        if further is not None:
            self._folders = (*self._folders, further)
        self._survey = survey(self.first, self._folders)
