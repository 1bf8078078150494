"""Proofs that one entry is in the log, for someone without the log: https://c2sp.org/tlog-proof.

The file is text; its ``extra`` line carries the entry itself, so that it stands alone. Checking it
needs the log's public key and nothing else.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Self

from appliance.ledger.event import Event
from appliance.ledger.files import LedgerFiles
from appliance.ledger.merkle import HASH_BYTES, inclusion_holds, inclusion_proof, leaf_hash
from appliance.ledger.note import Checkpoint, NoteInvalid, Verifier, verify_checkpoint

_HEADER = "c2sp.org/tlog-proof@v1"
_MAX_HASHES = 64  # a tree of 2^64 leaves is 64 levels high


class ProofInvalid(ValueError):
    """The text is no proof, or it does not prove what it claims."""


@dataclass(frozen=True, slots=True)
class Proof:
    """``entry`` is at ``index`` of the log whose signed head is ``checkpoint``."""

    index: int
    entry: bytes
    hashes: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> str:
        """The proof as a ``.tlog-proof`` file."""
        lines = [_HEADER, f"extra {_b64(self.entry)}", f"index {self.index}"]
        lines += [_b64(node) for node in self.hashes]
        return "\n".join(lines) + "\n\n" + self.checkpoint.decode()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a proof made here; nothing is checked yet.

        Raises:
            ProofInvalid: it is malformed, or carries no entry.
        """
        head, blank, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        _demand(blank and len(lines) >= 3 and lines[0] == _HEADER, f"it does not start {_HEADER}")
        _demand(lines[1].startswith("extra "), "it does not carry its entry")
        number = lines[2].removeprefix("index ")
        _demand(lines[2].startswith("index ") and number.isascii(), "it has no index")
        _demand(number.isdigit() and str(int(number[:20])) == number, "its index is no number")
        hashes = tuple(_unb64(line) for line in lines[3:])
        _demand(len(hashes) <= _MAX_HASHES, "it is too long")
        _demand(all(len(node) == HASH_BYTES for node in hashes), "a hash has the wrong length")
        entry = _unb64(lines[1].removeprefix("extra "))
        return cls(int(number), entry, hashes, checkpoint.encode())

    def check(self, verifier: Verifier) -> tuple[Checkpoint, Event]:
        """The signed head and the event, if the proof holds under ``verifier``.

        Raises:
            ProofInvalid: it does not.
            EventInvalid: the entry is in the log but is no event.
        """
        try:
            head = verify_checkpoint(self.checkpoint, verifier)
        except NoteInvalid as error:
            raise ProofInvalid(str(error)) from error
        leaf = leaf_hash(self.entry)
        _demand(
            inclusion_holds(leaf, self.index, head.size, self.hashes, head.root),
            "its hashes do not lead from the entry to the checkpoint's root",
        )
        return head, Event.decode(self.entry)


def prove(files: LedgerFiles, index: int, verifier: Verifier) -> Proof:
    """The proof of entry ``index`` under the log's present checkpoint, checked before it is given.

    Raises:
        IndexError: the log has no such entry.
        NoteInvalid: the checkpoint is not signed by ``verifier``.
        TileUnreadable: a tile is missing or malformed.
        ProofInvalid: the tiles do not fit the checkpoint.
    """
    note = files.checkpoint()
    size = verify_checkpoint(note, verifier).size
    if not 0 <= index < size:
        raise IndexError(f"entry {index} of {size}")
    hashes = inclusion_proof(index, size, lambda height, at: files.node(height, at, size))
    proof = Proof(index, files.entry(index, size), tuple(hashes), note)
    proof.check(verifier)
    return proof


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ProofInvalid("a line is not base64") from error


def _demand(holds: object, reason: str) -> None:
    if not holds:
        raise ProofInvalid(reason)
