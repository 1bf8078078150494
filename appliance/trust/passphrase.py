"""Where the passphrase of signing keys comes from: never the command line, never the environment.

In order: a file descriptor the caller names, the file ``SOVCTL_PASSPHRASE_FILE`` names, a prompt on
the terminal. Each is read only when a key turns out to need it.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

from appliance.errors import FileUnreadable, PassphraseNeeded, PassphraseWrong
from appliance.i18n import _

Passphrase = Callable[[], bytes]
"""Called at most once for each key that is encrypted."""

VARIABLE = "SOVCTL_PASSPHRASE_FILE"
PIN_VARIABLE = "SOVCTL_PIN_FILE"


def passphrase_source(descriptor: int | None = None) -> Passphrase:
    """A source for opening existing keys."""
    return _Source(descriptor, _prompt)


def new_passphrase_source(descriptor: int | None = None) -> Passphrase:
    """A source for making keys: a prompt asks twice."""
    return _Source(descriptor, _prompt_twice)


def token_pin(passphrase: Passphrase) -> Passphrase:
    """Where a token's PIN comes from: the file ``SOVCTL_PIN_FILE`` names, else as a passphrase."""
    named = os.environ.get(PIN_VARIABLE)
    return (lambda: _first_line(named)) if named else passphrase


def _first_line(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.readline().rstrip(b"\r\n")
    except OSError as error:
        raise FileUnreadable(path=path, reason=error.strerror or str(error)) from error


class _Source:
    """Asks once and remembers for the length of one command."""

    def __init__(self, descriptor: int | None, prompt: Passphrase) -> None:
        self._descriptor = descriptor
        self._prompt = prompt
        self._known: bytes | None = None

    def __call__(self) -> bytes:
        if self._known is None:
            self._known = self._read()
        return self._known

    def _read(self) -> bytes:
        named = os.environ.get(VARIABLE)
        if self._descriptor is not None:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                secret = file.readline()
        elif named:
            secret = _first_line(named)
        elif sys.stdin.isatty():
            secret = self._prompt()
        else:
            raise PassphraseNeeded
        secret = secret.rstrip(b"\r\n")
        if not secret:
            raise PassphraseNeeded
        return secret


def _prompt() -> bytes:
    return getpass.getpass(_("Passphrase of the signing keys: ")).encode()


def _prompt_twice() -> bytes:
    first = getpass.getpass(_("New passphrase for the signing keys: "))
    if first != getpass.getpass(_("The same again: ")):
        raise PassphraseWrong(key=_("The new key"), reason=_("The two passphrases differ."))
    return first.encode()
