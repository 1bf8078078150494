"""The fingerprint of a root: what a person types or pins before anything is believed.

It is the SHA-256 of the canonical form of the *signed* part of TUF's root metadata, so adding a
signature to a root does not change it. Shown in groups of eight, compared without them:

    3f6c0d1e 9a0b… (8 groups of 8 hexadecimal digits)

For the telephone there are words (:mod:`appliance.trust.wordlist`), for paper a QR code of the
digits; whichever a person types back is understood.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Root

from appliance.errors import FingerprintMalformed
from appliance.trust import wordlist


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """64 lower-case hexadecimal digits."""

    hex: str

    @classmethod
    def of(cls, root: Root) -> Fingerprint:
        """The fingerprint of a root's signed part."""
        canonical = encode_canonical(root.to_dict()) or ""
        return cls(hashlib.sha256(canonical.encode()).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """What a person typed, in digits or words. Raises :class:`FingerprintMalformed`."""
        digits = re.sub(r"[\s:-]", "", text.strip().lower().removeprefix("sha256:"))
        if re.fullmatch(r"[0-9a-f]{64}", digits):
            return cls(digits)
        try:
            heard = wordlist.heard(text)
        except ValueError as error:
            raise FingerprintMalformed(fingerprint=text) from error
        if len(heard) != 32:
            raise FingerprintMalformed(fingerprint=text)
        return cls(heard.hex())

    @property
    def words(self) -> tuple[str, ...]:
        """32 words, to be read out and typed back."""
        return tuple(wordlist.say(bytes.fromhex(self.hex)))

    def matches(self, other: Fingerprint) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.hex, other.hex)

    def __str__(self) -> str:
        return " ".join(self.hex[i : i + 8] for i in range(0, 64, 8))
