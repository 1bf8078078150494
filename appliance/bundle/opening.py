"""How a bundle is opened: where its other parts lie, and with which identity it is decrypted.

    opening = Opening(parts=(Path("/media/b"),), identity=Path("identity.txt"))
    with BundleReader(path, opening) as bundle: …

One value goes through install and every command, so that a further medium adds a field here and a
line below, not a parameter everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.bundle import age
from appliance.bundle.medium import FileMedium, Medium
from appliance.bundle.parts import Ask, PartsMedium, is_part


@dataclass(frozen=True)
class Opening:
    """``parts``: folders to look for further parts in, besides that of the one named.

    ``identity``: an age identity file. ``ask``: how to ask a person for a part (None: nobody is
    there).
    """

    parts: tuple[Path, ...] = ()
    identity: Path | None = None
    ask: Ask | None = None


PLAIN = Opening()
"""One file in clear, or parts beside each other."""


def open_raw(path: Path, opening: Opening = PLAIN) -> Medium:
    """The file at ``path``, or the file it is a part of; encrypted or not, as it is.

    Raises FileUnreadable, NotABundle, PartRefused, PartMissing.
    """
    if is_part(path):
        return PartsMedium(path, opening.parts, opening.ask)
    return FileMedium(path)


def open_medium(path: Path, opening: Opening = PLAIN) -> Medium:
    """The bytes of the bundle at ``path``: joined if it is a part, decrypted if it is an age file.

    Raises what :func:`open_raw` raises, IdentityNeeded, IdentityUnusable, IdentityRefused.
    """
    raw = open_raw(path, opening)
    try:
        if not age.is_age(raw):
            return raw
        return age.AgeMedium(raw, opening.identity)
    except BaseException:
        raw.close()
        raise
