"""Is this installation in order: checks of the machine and of every part, each with its remedy.

A check never raises: what it meets becomes a finding. Nothing is changed.
"""

from __future__ import annotations

import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from appliance.cluster import lifecycle
from appliance.errors import ApplianceError
from appliance.i18n import _
from appliance.install.embedded import damaged, journal_of
from appliance.install.home import is_ours
from appliance.install.lock import holder
from appliance.install.preflight import Finding, Level
from appliance.ledger.files import LedgerFiles
from appliance.progress import Silent
from appliance.store.releases import Releases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from appliance.layout import Home

_LOW_DISK = 2 << 30
_SOON = timedelta(days=30)


def examine(home: Home, ask: Callable[[], Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Run every check on ``home``; ``ask`` gets the gateway's account of itself."""
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        lambda: _seal(home),
        lambda: _folder(home),
        lambda: _disk(home),
        lambda: _lock(home),
        lambda: _journal(home),
        lambda: _release(home),
        lambda: _secrets(home),
        lambda: _certificates(home),
        lambda: _ledger(home),
        lambda: _running(home, ask),
    )
    return tuple(finding for check in checks for finding in _guarded(check))


def _guarded(check: Callable[[], Iterable[Finding]]) -> Iterable[Finding]:
    try:
        return list(check())
    except ApplianceError as error:
        what, why, fix = error.sentences()
        return [Finding(error.code, "fail", f"{what} {why}", fix)]
    except OSError as error:
        text = f"{error.filename}: {error.strerror}"
        return [Finding("files", "fail", text, _("Correct its owner or mode, then try again."))]


def _seal(home: Home) -> Iterable[Finding]:
    from appliance.egress.seal import check_supported

    endpoint = lifecycle.state(home).endpoint
    if endpoint is not None and not endpoint.sealed:
        remedy = _("Stop it and start it sealed: 'sovctl stop', 'sovctl start'.")
        yield Finding("seal", "fail", _("the appliance runs unsealed"), remedy)
        return
    check_supported()
    yield Finding("seal", "pass", _("user and network namespaces work"))


def _folder(home: Home) -> Iterable[Finding]:
    if not is_ours(home):
        remedy = _("Run 'sovctl install BUNDLE', or set SOVCTL_HOME to where it is.")
        text = _("{home} is no installation").format(home=home.root)
        yield Finding("installation", "fail", text, remedy)
        return
    yield Finding("installation", "pass", str(home.root))


def _disk(home: Home) -> Iterable[Finding]:
    place = home.root if home.root.exists() else home.root.parent
    if not place.exists():
        return
    free = shutil.disk_usage(place).free
    text = _("{free:.1f} GB free").format(free=free / 1e9)
    if free < _LOW_DISK:
        remedy = _("Free space there; 'sovctl status' lists what the appliance uses.")
        yield Finding("disk", "fail", text, remedy)
    else:
        yield Finding("disk", "pass", text)


def _lock(home: Home) -> Iterable[Finding]:
    owner = holder(home)
    if owner is None:
        yield Finding("lock", "pass", _("free"))
        return
    text = _("held by '{command}' (process {pid})").format(command=owner.command, pid=owner.pid)
    yield Finding("lock", "warn", text, _("Wait for it to end."))


def _journal(home: Home) -> Iterable[Finding]:
    unfinished = journal_of(home).unfinished()
    if unfinished is None or holder(home) is not None:
        yield Finding("journal", "pass", _("no installation was broken off"))
        return
    if unfinished.reason:
        said = _("the installation of {release} failed: {reason}")
        text = said.format(release=unfinished.release, reason=unfinished.reason)
        remedy = _("What runs is not affected. Mend it and run 'sovctl install BUNDLE' again.")
    else:
        text = _("the installation of {release} was broken off").format(release=unfinished.release)
        remedy = _("Run the same 'sovctl install' again; it goes on.")
    yield Finding("journal", "warn", text, remedy)


def _release(home: Home) -> Iterable[Finding]:
    release = Releases(home).current()
    if release is None:
        text, remedy = _("no release is current"), _("Run 'sovctl install BUNDLE'.")
        yield Finding("release", "fail", text, remedy)
        return
    problem = damaged(release)
    if problem is not None:
        raise problem
    yield Finding("release", "pass", release.id)
    python = release.venv / "bin" / "python"
    if not os.access(python, os.X_OK):
        text = _("{python} cannot be run: its Python was removed").format(python=python)
        remedy = _("Install that Python again, or run 'sovctl install BUNDLE' again.")
        yield Finding("interpreter", "fail", text, remedy)
    else:
        yield Finding("interpreter", "pass", str(python.resolve()))


def _secrets(home: Home) -> Iterable[Finding]:
    if not home.secrets.is_dir():
        return
    open_ones = [home.secrets] if home.secrets.stat().st_mode & 0o077 else []
    for path in home.secrets.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & 0o077:
            open_ones.append(path)
    if open_ones:
        text = _("others can read {paths}").format(paths=", ".join(map(str, open_ones)))
        remedy = _("Run 'chmod -R go= {folder}', then replace what others may have seen.")
        yield Finding("secrets", "fail", text, remedy.format(folder=home.secrets))
    else:
        yield Finding("secrets", "pass", _("readable by their owner only"))


def _certificates(home: Home) -> Iterable[Finding]:
    from cryptography import x509

    now = datetime.now(UTC)
    for path in sorted(home.tls.glob("*.pem")):
        name = f"tls/{path.name}"
        try:
            end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
        except ValueError:
            text = _("it is not a certificate")
            yield Finding(name, "fail", text, _("Delete {p}, then 'sovctl start'.").format(p=path))
            continue
        text = _("valid until {end}").format(end=f"{end:%Y-%m-%d}")
        renew = _("Renew it: 'sovctl stop', then 'sovctl start'.")
        if end <= now:
            yield Finding(name, "fail", text, renew)
        elif end <= now + _SOON:
            yield Finding(name, "warn", text, renew)
        else:
            yield Finding(name, "pass", text)


def _ledger(home: Home) -> Iterable[Finding]:
    from appliance.ledger.verify import verify

    if not home.ledger.is_dir() and not home.current.is_symlink():
        return
    verdict = verify(home.ledger, LedgerFiles(home.ledger).verifier(), Silent())
    if verdict.ok and verdict.checkpoint is not None:
        text = _("{n} entries verify").format(n=verdict.checkpoint.size)
        yield Finding("ledger", "pass", text)
        return
    first = verdict.faults[0]
    remedy = _("Run 'sovctl audit verify' for all faults; keep the files and tell your auditor.")
    yield Finding("ledger", "fail", f"{first.path}: {first.reason}", remedy)


def _running(home: Home, ask: Callable[[], Mapping[str, Any]]) -> Iterable[Finding]:
    state = lifecycle.state(home)
    logs = _("Look at 'sovctl logs'; restart with 'sovctl stop' and 'sovctl start'.")
    if not state.running:
        text = _("stopped") if state.phase == "stopped" else f"{state.phase}: {state.detail}"
        level: Level = "fail" if state.phase == "failed" else "warn"
        yield Finding("appliance", level, text, _("Start it: 'sovctl start'."))
        return
    if state.phase != "healthy":
        yield Finding("appliance", "fail", f"{state.phase} {state.detail}".strip(), logs)
        return
    yield Finding("appliance", "pass", _("healthy"))
    account = ask()
    yield Finding("gateway", "pass", state.endpoint.url if state.endpoint else "")
    yield from judge_account(account)


def judge_account(account: Mapping[str, Any]) -> Iterable[Finding]:
    """What the gateway's own account (``GET /admin/v1/status``) says of Ray, Serve and seal. Pure.

    A part it does not speak of is a failure: nothing is taken for healthy by silence.
    """
    logs = _("Look at 'sovctl logs'; restart with 'sovctl stop' and 'sovctl start'.")
    nodes = account.get("nodes") or []
    alive = [node for node in nodes if not _is_down(node)]
    text = _("{n} of {all} nodes alive").format(n=len(alive), all=len(nodes))
    if nodes and len(alive) == len(nodes):
        yield Finding("ray", "pass", text)
    else:
        yield Finding("ray", "fail", text, logs)
    serve = account.get("serve")
    if isinstance(serve, dict) and serve.get("model"):
        yield Finding("serve", "pass", _("serves {model}").format(model=serve["model"]))
    else:
        yield Finding("serve", "fail", _("no model is served"), logs)
    seal = account.get("seal")
    if isinstance(seal, dict) and seal.get("sealed") and not seal.get("no_way_out"):
        remedy = _("Run 'sovctl egress prove' and 'sovctl stop'; do not use private data.")
        yield Finding("way out", "fail", _("it has a way out"), remedy)


def _is_down(node: Mapping[str, Any]) -> bool:
    return node.get("alive") is not True
