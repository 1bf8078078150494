"""The private keys of a repository: a folder of files, and where a role's next key waits.

    keys/root-1.pem …                        root keys, where they are not kept elsewhere
    keys/<role>.pem <role>.pub               private keys (0600) and their public halves
    keys/<role>.ref                          instead of a .pem: reference and id of a token's key
    keys/apt.pem apt.pub                     Ed25519: signs offline apt repositories (made late)
    keys/oms.pem oms.pub                     P-256: signs models (OpenSSF Model Signing)
    keys/next/                               new keys whose root is not published yet
    keys/DEMO-KEYS.txt                       present only for passphrase-free demo keys

Keys are found by what the root or a delegation names, in ``keys`` and ``keys/next``, so that a kill
between publishing a root and moving its keys harms nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from securesystemslib.signer import Key, Signer

from appliance.errors import KeyUnusable, TrustKeysExist
from appliance.i18n import _
from appliance.trust.files import replace_file
from appliance.trust.keys import (
    is_token,
    load_model_key,
    new_model_key,
    new_tuf_key,
    open_signer,
    public_key_of,
    public_key_of_pem,
    save_pair,
)
from appliance.trust.model_signature import key_id_of_pem
from appliance.trust.passphrase import Passphrase

OMS = "oms"
"""The key that signs models; no role of TUF."""

APT = "apt"
"""The key that signs the ``Release`` of an offline apt repository (OpenPGP); no role of TUF."""

_DEMO_NOTE = """These keys have no passphrase. Anyone who can read this folder can sign as you.
They are for demonstrations. The root they make says so to every site that pins it.
"""


class Keyring:
    """Keys under ``folder``, opened one by one as they are needed."""

    def __init__(self, folder: Path, passphrase: Passphrase) -> None:
        self._folder = folder
        self._next = folder / "next"
        self._passphrase = passphrase

    def begin(self, roles: Collection[str], *, demo: bool) -> dict[str, Key]:
        """Make the first key of each role and ``oms``; return the roles' public keys.

        Raises :class:`TrustKeysExist` if there are keys already.
        """
        if self._folder.exists() and any(self._folder.iterdir()):
            raise TrustKeysExist(folder=self._folder.parent)
        if not demo:
            self._passphrase()  # ask before anything is written
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if demo:
            (self._folder / "DEMO-KEYS.txt").write_text(_DEMO_NOTE, encoding="utf-8")
        save_pair(self._folder / f"{OMS}.pem", new_model_key(), self._protection())
        return {role: self.add(role) for role in roles}

    def add(self, name: str) -> Key:
        """Make the first key of that name; return its public half."""
        path = self._folder / f"{name}.pem"
        save_pair(path, new_tuf_key(), self._protection())
        return public_key_of_pem(path.with_suffix(".pub").read_bytes())

    def model_key(self) -> EllipticCurvePrivateKey:
        """The P-256 key that signs models."""
        return load_model_key(self._folder / f"{OMS}.pem", self._passphrase)

    def apt_signer(self) -> Signer:
        """The Ed25519 key of offline apt repositories; made when it is first asked for."""
        path = self._folder / f"{APT}.pem"
        if not path.exists():
            save_pair(path, new_tuf_key(), self._protection())
        return open_signer(str(path), self._passphrase)

    def model_key_id(self) -> str:
        """Its id, without opening it."""
        return key_id_of_pem((self._folder / f"{OMS}.pub").read_bytes())

    def signers(self, name: str, wanted: Collection[str]) -> list[Signer]:
        """The signers here called ``name`` (``root-*`` for all root keys) with a ``wanted`` id."""
        found: dict[str, Signer] = {}
        for folder in (self._folder, self._next):
            for path in _private(folder, name):
                keyid = self._key_id(path)
                if keyid in wanted and keyid not in found:
                    signer = self._open(path)
                    if signer.public_key.keyid == keyid:
                        found[keyid] = signer
        return list(found.values())

    # keys to come

    def stage(self, name: str) -> Key | None:
        """Make the next key of that name here; None for ``oms``, which no role of TUF has."""
        path = self._staged(name) / f"{name}.pem"
        save_pair(path, new_model_key() if name == OMS else new_tuf_key(), self._protection())
        return None if name == OMS else public_key_of_pem(path.with_suffix(".pub").read_bytes())

    def stage_given(self, name: str, reference: str) -> Key:
        """The next key of that name: on a token, or (a ``.pub`` file) not on this machine."""
        if name == OMS:
            reason = _("Models are signed with a key in a file: 'trust rotate --role oms'.")
            raise KeyUnusable(key=reference, reason=reason)
        key = public_key_of(reference, self._passphrase)
        folder = self._staged(name)
        if is_token(reference):
            replace_file(folder / f"{name}.ref", f"{reference}\n{key.keyid}\n".encode())
        return key

    def settle(self, roles: Collection[str], used: Collection[str]) -> None:
        """Take next keys into use whose id is ``used``, and drop the keys of ``roles`` and of the
        root that are not; other files are left alone."""
        for path in _private(self._next):
            if path.stem == OMS or self._key_id(path) in used:
                for old in self._folder.glob(f"{path.stem}.*"):
                    old.unlink()
                for half in self._next.glob(f"{path.stem}.*"):
                    half.replace(self._folder / half.name)
        for path in _private(self._folder):
            ours = path.stem in roles or path.stem.startswith("root-")
            if ours and self._key_id(path) not in used:
                path.unlink()
                path.with_suffix(".pub").unlink(missing_ok=True)

    def _staged(self, name: str) -> Path:
        """The folder of keys to come, without one of that name."""
        self._next.mkdir(exist_ok=True, mode=0o700)
        for old in self._next.glob(f"{name}.*"):
            old.unlink()
        return self._next

    def _protection(self) -> Passphrase | None:
        return None if (self._folder / "DEMO-KEYS.txt").exists() else self._passphrase

    def _key_id(self, path: Path) -> str:
        """The id of the key a file holds or refers to; asks for no passphrase if it need not."""
        if path.suffix == ".ref":
            return path.read_text(encoding="utf-8").split("\n")[1]
        public = path.with_suffix(".pub")
        if public.is_file():
            return public_key_of_pem(public.read_bytes()).keyid
        return self._open(path).public_key.keyid

    def _open(self, path: Path) -> Signer:
        token = path.suffix == ".ref"
        reference = path.read_text(encoding="utf-8").split("\n")[0] if token else str(path)
        return open_signer(reference, self._passphrase)


def _private(folder: Path, name: str = "*") -> list[Path]:
    """Keys, and references to keys, in a folder."""
    return sorted(p for p in folder.glob(f"{name}.*") if p.suffix in {".pem", ".ref"})
