"""Every error an operator can meet: a code, what happened, why, and what to do next.

The idea is pip's ``DiagnosticPipError``, meant for someone at 3 a.m. without a search engine. Each
error is a class, so that code can catch it by name; its sentences are templates, so that
``docs/errors.md`` can be generated from the classes and translated. One boundary
(:func:`appliance.cli.main.main`) turns it into text or JSON and an exit status; nothing else prints
an error or exits.

>>> raise BundleTampered(bundle="b.tar", member="blobs/sha256/ab", reason="digest differs")
Traceback (most recent call last):
...
appliance.errors.BundleTampered: bundle-tampered: b.tar is not what was signed
"""

from __future__ import annotations

import string
from enum import IntEnum
from typing import ClassVar

from appliance.i18n import N_, _


class ExitCode(IntEnum):
    """The exit statuses of ``sovctl``; they never change meaning between releases."""

    OK = 0
    INTERNAL = 1  # a defect of ours
    USAGE = 2  # the command line or a file the operator wrote is wrong
    REFUSED = 3  # trust: unsigned, tampered, expired, not authorised
    PRECONDITION = 4  # the machine is not fit for it: space, kernel, platform
    NOT_FOUND = 5  # nothing of that name here
    BUSY = 6  # another sovctl holds the lock
    FAILED = 7  # it was started and did not succeed
    VERDICT = 8  # a check ran and its answer is no (doctor, egress prove, audit verify)
    INTERRUPTED = 130


class ApplianceError(Exception):
    """Base of all operator-facing errors.

    Subclasses set ``code`` (kebab-case, unique, never reused), ``exit_code`` and the sentences
    ``what``, ``why`` and ``fix``, templates whose ``{fields}`` are the constructor's keyword
    arguments. A missing field is a programming error and raises ``TypeError`` at once.
    """

    code: ClassVar[str] = ""
    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    what: ClassVar[str] = ""
    why: ClassVar[str] = ""
    fix: ClassVar[str] = ""

    catalogue: ClassVar[dict[str, type[ApplianceError]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.code in ApplianceError.catalogue:
            raise TypeError(f"error code {cls.code!r} is already taken")
        ApplianceError.catalogue[cls.code] = cls

    def __init__(self, **fields: object) -> None:
        missing = self.fields() - fields.keys()
        if missing:
            raise TypeError(f"{type(self).__name__} needs {sorted(missing)}")
        self.values = {name: str(value) for name, value in fields.items()}
        super().__init__(f"{self.code}: {self.what.format(**self.values)}")

    @classmethod
    def fields(cls) -> set[str]:
        """Names of the template fields this error needs."""
        templates = (cls.what, cls.why, cls.fix)
        return {name for t in templates for _t, name, _s, _c in string.Formatter().parse(t) if name}

    def sentences(self) -> tuple[str, str, str]:
        """What happened, why, and what to do next, in the operator's language."""
        what, why, fix = (_(t).format(**self.values) for t in (self.what, self.why, self.fix))
        return what, why, fix

    def as_json(self) -> dict[str, object]:
        """The error for machines (``--json``)."""
        what, why, fix = self.sentences()
        return {"code": self.code, "what": what, "why": why, "fix": fix, "fields": self.values}


# --- general ------------------------------------------------------------------------------------


class InternalError(ApplianceError):
    """Raised by the boundary itself for an exception nobody foresaw."""

    code = "internal-error"
    exit_code = ExitCode.INTERNAL
    what = N_("sovctl stopped on an error it does not know: {error}")
    why = N_("This is a defect in sovctl, not in what you typed. The details are in {log}.")
    fix = N_("Run 'sovctl doctor'. If it finds nothing, send {log} to your supplier.")


class NotInstalled(ApplianceError):
    code = "not-installed"
    exit_code = ExitCode.NOT_FOUND
    what = N_("No appliance is installed under {home}.")
    why = N_("This command works on an installed appliance, and this folder holds none.")
    fix = N_("Run 'sovctl install BUNDLE', or set SOVCTL_HOME to where the appliance is.")


class NotRunning(ApplianceError):
    code = "not-running"
    exit_code = ExitCode.FAILED
    what = N_("The appliance under {home} does not answer.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl doctor' to see what is wrong, or 'sovctl start' to start it.")


class PermissionRefused(ApplianceError):
    code = "permission-refused"
    exit_code = ExitCode.PRECONDITION
    what = N_("{path} cannot be {action}.")
    why = N_("{reason}")
    fix = N_("Run as the user who owns it, or correct its owner with chown.")


class DiskFull(ApplianceError):
    code = "disk-full"
    exit_code = ExitCode.PRECONDITION
    what = N_("Not enough space in {path}: {needed} needed, {free} free.")
    why = N_("{reason}")
    fix = N_("Free space there ('sovctl status' lists what the appliance uses), then run it again.")


class FileUnreadable(ApplianceError):
    code = "file-unreadable"
    exit_code = ExitCode.USAGE
    what = N_("{path} cannot be read.")
    why = N_("{reason}")
    fix = N_("Check the path and its permissions.")


# --- manifests ----------------------------------------------------------------------------------


class ManifestInvalid(ApplianceError):
    code = "manifest-invalid"
    exit_code = ExitCode.USAGE
    what = N_("{path}, line {line}: {field} is wrong.")
    why = N_("{reason}")
    fix = N_("Correct that line; {expected}.")
