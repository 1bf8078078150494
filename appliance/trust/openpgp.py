"""OpenPGP signatures as apt verifies them: one Ed25519 key, written without a key ring.

    key = ArchiveKey(signer, "Hospital packages")
    key.certificate()                 # armored public key, for Signed-By
    key.clear_sign(release, at)       # InRelease
    key.detach_sign(release, at)      # Release.gpg

Version 4 packets with the algorithm 22 (EdDSA over Ed25519) of RFC 4880bis, which RFC 9580 keeps as
"EdDSALegacy": the one form of Ed25519 that GnuPG 2.2, GnuPG 2.4 and Sequoia all accept. Ed25519
takes no random number and every date is given, so the same input makes the same bytes; that, and
signing with a key that may sit in a token, is why this is not ``gpg``.

The key is dated 1980, before anything that can be signed (``SOURCE_DATE_EPOCH`` has the same lower
limit), so that its fingerprint follows from the key and not from when it was first used.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass

from securesystemslib.signer import Signer

from appliance.errors import TrustKeysMissing
from appliance.i18n import _

KEY_DATE = 315_532_800  # 1980-01-01T00:00:00Z, in seconds since 1970

_EDDSA, _SHA512 = 22, 10  # RFC 9580, sections 9.1 and 9.5
_ED25519_OID = bytes.fromhex("2b06010401da470f01")  # RFC 9580, section 9.2
_PUBLIC_KEY, _SIGNATURE, _USER_ID = 6, 2, 13  # packet types, section 5
_BINARY, _TEXT, _POSITIVE_CERTIFICATION = 0x00, 0x01, 0x13  # signature types, section 5.2.1
_CREATED, _PREFERRED_HASHES, _KEY_FLAGS, _FEATURES = 2, 21, 27, 30  # subpackets, section 5.2.3
_ISSUER, _ISSUER_FINGERPRINT = 16, 33
_CERTIFY_AND_SIGN = 0x03


@dataclass(frozen=True)
class ArchiveKey:
    """A key that signs a package archive. ``user_id`` is what ``gpg`` shows for it."""

    signer: Signer
    user_id: str

    @property
    def fingerprint(self) -> str:
        """40 lower-case hexadecimal digits (RFC 9580, section 5.5.4.2)."""
        return hashlib.sha1(self._hashed_key(), usedforsecurity=False).hexdigest()

    def certificate(self) -> bytes:
        """The public key with its user id, bound to it by its own signature; ASCII armor."""
        name = self.user_id.encode()
        signed = self._hashed_key() + b"\xb4" + struct.pack(">I", len(name)) + name
        more = (
            _subpacket(_KEY_FLAGS, bytes([_CERTIFY_AND_SIGN]))
            + _subpacket(_PREFERRED_HASHES, bytes([_SHA512]))
            + _subpacket(_FEATURES, b"\x01")
        )
        binding = self._sign(_POSITIVE_CERTIFICATION, signed, KEY_DATE, more)
        packets = _packet(_PUBLIC_KEY, self._key()) + _packet(_USER_ID, name) + binding
        return armor("PUBLIC KEY BLOCK", packets)

    def detach_sign(self, data: bytes, at: int) -> bytes:
        """A signature over ``data`` as it is, dated ``at`` (seconds since 1970); ASCII armor."""
        return armor("SIGNATURE", self._sign(_BINARY, data, at))

    def clear_sign(self, text: bytes, at: int) -> bytes:
        """``text`` within the cleartext signature framework (RFC 9580, section 7).

        Raises ``ValueError`` unless it is lines ending in LF without white space before it: what
        the framework does not sign, a reader could be shown.
        """
        lines = text.split(b"\n")
        if lines.pop() or any(line != line.rstrip(b" \t\r") for line in lines):
            raise ValueError("the text has white space at a line's end, or no last newline")
        escaped = [b"- " + line if line.startswith(b"-") else line for line in lines]
        head = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n"
        signature = armor("SIGNATURE", self._sign(_TEXT, b"\r\n".join(lines), at))
        return head + b"".join(line + b"\n" for line in escaped) + signature

    def _key(self) -> bytes:
        """The body of the public key packet, version 4."""
        public = self.signer.public_key
        if public.keytype != "ed25519":
            reason = _("A package archive is signed with Ed25519, not {type}.")
            raise TrustKeysMissing(folder=public.keyid, reason=reason.format(type=public.keytype))
        point = b"\x40" + bytes.fromhex(public.keyval["public"])
        oid = bytes([len(_ED25519_OID)]) + _ED25519_OID
        return b"\x04" + struct.pack(">IB", KEY_DATE, _EDDSA) + oid + _integer(point)

    def _hashed_key(self) -> bytes:
        body = self._key()
        return b"\x99" + struct.pack(">H", len(body)) + body

    def _sign(self, kind: int, data: bytes, at: int, more: bytes = b"") -> bytes:
        """A version 4 signature packet over ``data`` (RFC 9580, sections 5.2.3 and 5.2.4)."""
        issuer = bytes.fromhex(self.fingerprint)
        hashed = (
            _subpacket(_CREATED, struct.pack(">I", at))
            + _subpacket(_ISSUER_FINGERPRINT, b"\x04" + issuer)
            + more
        )
        head = bytes([4, kind, _EDDSA, _SHA512]) + struct.pack(">H", len(hashed)) + hashed
        trailer = b"\x04\xff" + struct.pack(">I", len(head))
        digest = hashlib.sha512(data + head + trailer).digest()
        raw = bytes.fromhex(self.signer.sign(digest).signature)
        unhashed = _subpacket(_ISSUER, issuer[-8:])
        return _packet(
            _SIGNATURE,
            head
            + struct.pack(">H", len(unhashed))
            + unhashed
            + digest[:2]
            + _integer(raw[:32])
            + _integer(raw[32:]),
        )


def armor(what: str, packets: bytes) -> bytes:
    """ASCII armor with its checksum (RFC 9580, section 6), which GnuPG 2.2 still expects."""
    text = base64.b64encode(packets).decode()
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    checksum = base64.b64encode(_crc24(packets).to_bytes(3, "big")).decode()
    return "\n".join(
        [f"-----BEGIN PGP {what}-----", "", *lines, f"={checksum}", f"-----END PGP {what}-----", ""]
    ).encode()


def _packet(kind: int, body: bytes) -> bytes:
    size = len(body)
    if size < 192:
        length = bytes([size])
    elif size < 8384:
        length = bytes([192 + (size - 192 >> 8), size - 192 & 0xFF])
    else:
        length = b"\xff" + struct.pack(">I", size)
    return bytes([0xC0 | kind]) + length + body


def _subpacket(kind: int, body: bytes) -> bytes:
    return bytes([len(body) + 1, kind]) + body


def _integer(number: bytes) -> bytes:
    """A multiprecision integer (section 3.2): its length in bits, no leading zeros."""
    stripped = number.lstrip(b"\0")
    bits = int.from_bytes(stripped, "big").bit_length()
    return struct.pack(">H", bits) + stripped


def _crc24(data: bytes) -> int:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _bit in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc
