"""Take an installation away: everything, or everything but the site's own data.

Only names that :mod:`appliance.install.home` knows are removed, only directly below a folder that
carries our marker, and never through a symbolic link. The marker goes last, so an uninstall that
was killed is simply run again.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import NotInstalled, UninstallRefused
from appliance.i18n import _
from appliance.install.home import is_known, is_ours

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from appliance.layout import Home
    from appliance.progress import Progress


@dataclass(frozen=True, slots=True)
class Removal:
    """What would be removed, what stays by wish, and what is there that is not ours."""

    remove: tuple[Path, ...]
    keep: tuple[Path, ...]
    foreign: tuple[Path, ...]


def is_data(home: Home, name: str) -> bool:
    """What ``--keep-data`` leaves: data sets, adapters, ledger, registry, and the keys to them.

    The trust state stays too: without its highest-seen versions a later install would take an old
    bundle for a new one.
    """
    kept = (
        home.datasets, home.adapters, home.ledger, home.secrets, home.tls, home.trust, home.marker,
        home.registry.parent, home.sites,
    )  # fmt: skip
    return name in {path.name for path in kept}


def is_nothing(_home: Home, _name: str) -> bool:
    """What a full uninstall leaves."""
    return False


def plan_removal(home: Home, keep: Callable[[Home, str], bool]) -> Removal:
    """Decide what goes; removes nothing.

    Raises :class:`NotInstalled`, or :class:`UninstallRefused` if the folder is not ours or a part
    of it is a symbolic link to somewhere else.
    """
    if not home.root.is_dir():
        raise NotInstalled(home=home.root)
    if home.root.is_symlink():
        _refuse(home, _("It is a symbolic link; set SOVCTL_HOME to the folder itself."))
    if not is_ours(home):
        _refuse(home, _("It carries no mark of sovctl, so it may hold other things."))
    if home.root.stat().st_uid != os.geteuid() and os.geteuid() != 0:
        _refuse(home, _("It belongs to another user."))
    managed = sorted(path.parent.name for path in home.sites.glob("*/endpoint.json"))
    if managed and not keep(home, home.sites.name):
        text = _("It holds the authorities of sites that run ({names}); give --keep-data.")
        _refuse(home, text.format(names=", ".join(managed)))
    links = {name for link in ("current", "previous") for name in (link, f".{link}.new")}
    remove, kept, foreign = [], [], []
    for entry in sorted(home.root.iterdir()):
        if not is_known(home, entry.name):
            foreign.append(entry)
        elif entry.is_symlink() and entry.name not in links:
            _refuse(home, _("{path} is a symbolic link.").format(path=entry))
        elif keep(home, entry.name):
            kept.append(entry)
        else:
            remove.append(entry)
    return Removal(tuple(remove), tuple(kept), tuple(foreign))


def remove(home: Home, removal: Removal, progress: Progress) -> None:
    """Remove what ``removal`` names, the marker last, then the folder if it is empty."""
    last = {home.marker, home.lock}
    ordered = [path for path in removal.remove if path not in last]
    with progress.task(_("Removing"), len(removal.remove), "items") as task:
        for path in [*ordered, *(path for path in removal.remove if path in last)]:
            task.note(path.name)
            _remove_one(path)
            task.advance(1)
    if not any(home.root.iterdir()):
        home.root.rmdir()


def _remove_one(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        # Follows no link, and cannot be made to by renames meanwhile (it works by descriptors).
        shutil.rmtree(path, onerror=_open_up)


def _open_up(
    function: Callable[..., object],
    path: str,
    failure: tuple[type[BaseException], BaseException, TracebackType],
) -> None:
    """A folder without write permission for us: give it, try again."""
    if isinstance(failure[1], FileNotFoundError):
        return
    parent = Path(path).parent
    if parent.is_symlink() or function not in {os.unlink, os.rmdir}:
        raise failure[1]
    parent.chmod(parent.stat().st_mode | stat.S_IRWXU)
    function(path)


def last_checkpoint(home: Home) -> str | None:
    """The ledger's newest signed checkpoint, to be kept as evidence of what it held."""
    try:
        return (home.ledger / "checkpoint").read_text(encoding="utf-8")
    except OSError:
        return None


def _refuse(home: Home, reason: str) -> None:
    raise UninstallRefused(home=home.root, reason=reason)
