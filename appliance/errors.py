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
import unicodedata
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


_MOST_SHOWN = 4000  # characters of one value in an error


def _shown(value: str) -> str:
    """``value`` as it may reach a terminal: names in a hostile file must not steer one."""
    if len(value) > _MOST_SHOWN:
        value = f"{value[:_MOST_SHOWN]}…"
    if value.isascii() and value.isprintable():
        return value
    hidden = (c for c in set(value) if unicodedata.category(c)[0] == "C" and c not in "\n\t")
    return value.translate({ord(c): ascii(c)[1:-1] for c in hidden})


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
        self.values = {name: _shown(str(value)) for name, value in fields.items()}
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


class FileTooLarge(ApplianceError):
    code = "file-too-large"
    exit_code = ExitCode.PRECONDITION
    what = N_("{path} does not take a file of {size}.")
    why = N_(
        "Its file system, or a limit of this session ('ulimit -f'), ends files before that: "
        "FAT does at 4 GiB, however much is free."
    )
    fix = N_(
        "Format the medium as exFAT, ext4 or XFS, or cut the bundle with "
        "'sovctl bundle split FILE --size 4GB', which every FAT medium takes. Then run it again."
    )


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


# --- trust --------------------------------------------------------------------------------------


class TrustNotPinned(ApplianceError):
    code = "trust-not-pinned"
    exit_code = ExitCode.REFUSED
    what = N_("No supplier is trusted here yet, so {bundle} cannot be judged.")
    why = N_("Trust starts with a fingerprint you have from your supplier by another way.")
    fix = N_("Run 'sovctl trust pin FINGERPRINT', or give 'sovctl install' --trust FINGERPRINT.")


class TrustPinDiffers(ApplianceError):
    code = "trust-pin-differs"
    exit_code = ExitCode.REFUSED
    what = N_("This installation trusts another root than {fingerprint}.")
    why = N_("It is pinned to {pinned}, and what is installed here was signed under that root.")
    fix = N_("Check with your supplier. To start over: 'sovctl trust pin --replace {fingerprint}'.")


class FingerprintMalformed(ApplianceError):
    code = "fingerprint-malformed"
    exit_code = ExitCode.USAGE
    what = N_("'{fingerprint}' is not a fingerprint.")
    why = N_("A fingerprint is 64 hexadecimal digits, or the 32 words that stand for them.")
    fix = N_("Copy it from the supplier's 'sovctl trust show --keys DIR'.")


class TrustStateDamaged(ApplianceError):
    code = "trust-state-damaged"
    exit_code = ExitCode.REFUSED
    what = N_("The record of what this installation trusts is damaged: {path}.")
    why = N_("{reason} Without it an old bundle could pass for a new one.")
    fix = N_(
        "Restore {path} from a backup, or start over: 'sovctl trust pin --replace FINGERPRINT'."
    )


class TrustKeysExist(ApplianceError):
    code = "trust-keys-exist"
    exit_code = ExitCode.USAGE
    what = N_("{folder} already holds signing keys.")
    why = N_("Keys are never overwritten: whoever trusts them would be locked out.")
    fix = N_("Choose another folder: 'sovctl trust init --out DIR'.")


class TrustKeysMissing(ApplianceError):
    code = "trust-keys-missing"
    exit_code = ExitCode.NOT_FOUND
    what = N_("{folder} holds no usable signing keys.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl trust init --out {folder}', or name the folder that holds them.")


class TrustThresholdInvalid(ApplianceError):
    code = "trust-threshold-invalid"
    exit_code = ExitCode.USAGE
    what = N_("{threshold} of {keys} keys cannot sign a root.")
    why = N_("The threshold must be at least 1 and at most the number of keys.")
    fix = N_("Run 'sovctl trust init --threshold 2 --keys 3 --out DIR'.")


class PassphraseNeeded(ApplianceError):
    code = "passphrase-needed"
    exit_code = ExitCode.USAGE
    what = N_("The signing keys need a passphrase, and there is no terminal to ask for it.")
    why = N_("A passphrase is never taken from the command line, where others could read it.")
    fix = N_("Set SOVCTL_PASSPHRASE_FILE to a file only you can read, or use --passphrase-fd N.")


class PassphraseWrong(ApplianceError):
    code = "passphrase-wrong"
    exit_code = ExitCode.REFUSED
    what = N_("{key} cannot be opened.")
    why = N_("{reason}")
    fix = N_("Run it again with the passphrase these keys were made with.")


class KeyUnusable(ApplianceError):
    code = "key-unusable"
    exit_code = ExitCode.USAGE
    what = N_("{key} is not a key that can be used here.")
    why = N_("{reason}")
    fix = N_("Make one with 'sovctl trust key new --out NAME', or name 'hsm:ID?label=TOKEN'.")


class TokenUnusable(ApplianceError):
    code = "token-unusable"
    exit_code = ExitCode.PRECONDITION
    what = N_("The key {key} on a PKCS#11 token cannot be used.")
    why = N_("{reason}")
    fix = N_(
        "Set PYKCS11LIB to the token's module and SOVCTL_PIN_FILE to a file with its PIN; "
        "'pkcs11-tool --list-objects' shows what is on the token."
    )


class RequestInvalid(ApplianceError):
    code = "signing-request-invalid"
    exit_code = ExitCode.USAGE
    what = N_("{request} is not a request that can be signed.")
    why = N_("{reason}")
    fix = N_("Take it again from where it was made: 'sovctl trust rotate' or 'trust init'.")


class RequestUnsigned(ApplianceError):
    code = "signing-request-unsigned"
    exit_code = ExitCode.REFUSED
    what = N_("{request} cannot be published: signatures are missing.")
    why = N_("{reason}")
    fix = N_("Let another holder run 'sovctl trust sign {request} --key KEY', then publish again.")


class SignatureAwaited(ApplianceError):
    code = "signature-awaited"
    exit_code = ExitCode.PRECONDITION
    what = N_("The bundle cannot be signed here: the keys of {roles} are elsewhere.")
    why = N_("Nothing those roles signed before covers exactly what this bundle brings.")
    fix = N_(
        "Have 'sovctl trust sign' run on {requests} where those keys are, then "
        "'sovctl trust publish --keys {folder} REQUEST', then build again."
    )


class RevocationInvalid(ApplianceError):
    code = "revocation-invalid"
    exit_code = ExitCode.USAGE
    what = N_("{subject} cannot be revoked.")
    why = N_("{reason}")
    fix = N_("'sovctl trust show --keys DIR' lists the keys; digests are in 'bundle inspect'.")


class BundleRevoked(ApplianceError):
    code = "bundle-revoked"
    exit_code = ExitCode.REFUSED
    what = N_("{bundle} holds what its supplier has revoked.")
    why = N_("{reason}")
    fix = N_("Ask your supplier for a newer bundle. 'sovctl trust show' lists what is revoked.")


class ReleaseRevoked(ApplianceError):
    code = "release-revoked"
    exit_code = ExitCode.REFUSED
    what = N_("Release {release} may not be used any more.")
    why = N_("{reason}")
    fix = N_("Install a newer bundle: 'sovctl install BUNDLE'. 'sovctl trust show' says more.")


class BreakGlassUnfit(ApplianceError):
    code = "break-glass-unfit"
    exit_code = ExitCode.USAGE
    what = N_("The reason given with --break-glass cannot be recorded.")
    why = N_("{reason}")
    fix = N_("Give a short one: 'sovctl install --break-glass \"ticket 1234, supplier shut\" …'.")


# --- bundle and store ---------------------------------------------------------------------------


class NotABundle(ApplianceError):
    code = "not-a-bundle"
    exit_code = ExitCode.USAGE
    what = N_("{bundle} is not a sovctl bundle.")
    why = N_("{reason}")
    fix = N_("Check the path; a bundle is made by 'sovctl bundle build'.")


class BundleTruncated(ApplianceError):
    code = "bundle-truncated"
    exit_code = ExitCode.REFUSED
    what = N_("{bundle} is not complete.")
    why = N_("{expected} bytes are expected and {actual} are there: a copy was interrupted.")
    fix = N_("Copy it again from its source, then run 'sovctl bundle verify {bundle}'.")


class MediumFailed(ApplianceError):
    code = "medium-failed"
    exit_code = ExitCode.FAILED
    what = N_("{bundle} cannot be read to its end.")
    why = N_("At byte {offset}, in {member}: {reason}. The medium or its connection is failing.")
    fix = N_("Copy the bundle to another medium, then run the same command again.")


class BundleTampered(ApplianceError):
    code = "bundle-tampered"
    exit_code = ExitCode.REFUSED
    what = N_("{bundle} is not what was signed")
    why = N_("In {member}: {reason}. A medium went bad, or someone changed the file.")
    fix = N_("Do not use it. Copy it again from its source, then 'sovctl bundle verify {bundle}'.")


class BundleUnsigned(ApplianceError):
    code = "bundle-unsigned"
    exit_code = ExitCode.REFUSED
    what = N_("{bundle} carries no complete signature.")
    why = N_("{reason}")
    fix = N_("Ask your supplier for a signed bundle ('sovctl bundle build' signs).")


class BundleUntrusted(ApplianceError):
    code = "bundle-untrusted"
    exit_code = ExitCode.REFUSED
    what = N_("{bundle} is not signed by who is trusted here.")
    why = N_("{reason}")
    fix = N_("Compare 'sovctl trust show' with the fingerprint your supplier publishes.")


class BundleExpired(ApplianceError):
    code = "bundle-expired"
    exit_code = ExitCode.REFUSED
    what = N_("The signature of {bundle} has expired.")
    why = N_("{reason}")
    fix = N_(
        "Check this machine's clock ('date -u'); if it is right, ask for a fresh bundle. In an "
        "emergency: 'sovctl install --break-glass REASON {bundle}', which is recorded."
    )


class BundleRolledBack(ApplianceError):
    code = "bundle-rollback"
    exit_code = ExitCode.REFUSED
    what = N_("{bundle} is older than what was installed here before.")
    why = N_("{reason} An old bundle may carry faults that were mended since.")
    fix = N_("Use the newest bundle. Releases already installed are listed by 'sovctl status'.")


class BundleTooNew(ApplianceError):
    code = "bundle-too-new"
    exit_code = ExitCode.PRECONDITION
    what = N_("{bundle} was made for a newer sovctl.")
    why = N_("Its manifest says schema version {found}; this sovctl reads {supported}.")
    fix = N_("Update sovctl on this machine, then run it again.")


class BundleWithoutRuntime(ApplianceError):
    code = "bundle-without-runtime"
    exit_code = ExitCode.USAGE
    what = N_("{bundle} cannot be installed by itself: it brings no runtime.")
    why = N_("It holds {content}, to be added to an appliance that runs already.")
    fix = N_("Run 'sovctl adapters import {bundle}' for adapters; models come with a release.")


class NothingToImport(ApplianceError):
    code = "nothing-to-import"
    exit_code = ExitCode.USAGE
    what = N_("{bundle} brings no adapter.")
    why = N_("It holds {content}.")
    fix = N_("Run 'sovctl install {bundle}' to install it as a release.")


class WrongPlatform(ApplianceError):
    code = "wrong-platform"
    exit_code = ExitCode.PRECONDITION
    what = N_("This bundle is for {wanted}.")
    why = N_("This machine is {actual}.")
    fix = N_("Ask your supplier for a bundle for {actual}.")


class BlobMissing(ApplianceError):
    code = "blob-missing"
    exit_code = ExitCode.FAILED
    what = N_("{bundle} cannot be written: {blob} is not what was announced.")
    why = N_("{reason}")
    fix = N_("Remove that file from the build cache, then run 'sovctl bundle build' again.")


class StoreDamaged(ApplianceError):
    code = "store-damaged"
    exit_code = ExitCode.REFUSED
    what = N_("The store {store} is damaged at {blob}.")
    why = N_("Of a blob that was verified when it came in: {reason}.")
    fix = N_("Run 'sovctl install BUNDLE' again; it writes what is missing.")


class BaseMissing(ApplianceError):
    code = "base-missing"
    exit_code = ExitCode.PRECONDITION
    what = N_("{bundle} is a delta, and what it builds on is not here: {base}.")
    why = N_("It leaves out {count} files that the bundle {digest} has, and the store lacks them.")
    fix = N_("Run 'sovctl install' with the bundle {base} first, or ask for the full bundle.")


class DeltaBaseIsTarget(ApplianceError):
    code = "delta-base-is-target"
    exit_code = ExitCode.USAGE
    what = N_("{base} is the same bundle as the one to make a delta of.")
    why = N_("A delta from a bundle to itself would carry nothing.")
    fix = N_("Name the bundle the site has now: 'sovctl bundle delta FULL --base OLD --out FILE'.")


class PartMissing(ApplianceError):
    code = "part-missing"
    exit_code = ExitCode.NOT_FOUND
    what = N_("Part {number} of {total} of {bundle} is missing (set {set}).")
    why = N_("It was looked for in {folders}.{found}")
    fix = N_("Name the folder it lies in, or its disk: run it again with --parts DIR.")


class PartRefused(ApplianceError):
    code = "part-refused"
    exit_code = ExitCode.REFUSED
    what = N_("{part} cannot be used as a part of a bundle.")
    why = N_("{reason}")
    fix = N_("Copy that part again from its source ('sovctl bundle copy PART DIR').")


class PartSizeInvalid(ApplianceError):
    code = "part-size-invalid"
    exit_code = ExitCode.USAGE
    what = N_("A file of {size} bytes cannot be cut into parts of {part_size}.")
    why = N_("{reason}")
    fix = N_("Choose another size: 'sovctl bundle split FILE --size 4GB --out DIR'.")


class TargetTaken(ApplianceError):
    code = "target-taken"
    exit_code = ExitCode.USAGE
    what = N_("{path} is in the way.")
    why = N_("{reason} Nothing was changed.")
    fix = N_("Choose another place, or remove it: rm {path}")


class CopyDamaged(ApplianceError):
    code = "copy-damaged"
    exit_code = ExitCode.FAILED
    what = N_("{path} does not hold what was written to it.")
    why = N_("Read back, {member} is not what was signed. The medium or its connection is failing.")
    fix = N_("Use another medium, then run the same command again; what is right there is kept.")


class IdentityNeeded(ApplianceError):
    code = "identity-needed"
    exit_code = ExitCode.USAGE
    what = N_("{bundle} is encrypted.")
    why = N_("Only who holds an identity (private key) it was encrypted to can read it.")
    fix = N_("Run it again with --identity FILE, the file that 'age-keygen' made.")


class IdentityUnusable(ApplianceError):
    code = "identity-unusable"
    exit_code = ExitCode.USAGE
    what = N_("{path} holds no age identity.")
    why = N_("{reason}")
    fix = N_("Give the file that 'age-keygen -o FILE' made; its lines begin with AGE-SECRET-KEY-1.")


class IdentityRefused(ApplianceError):
    code = "identity-refused"
    exit_code = ExitCode.REFUSED
    what = N_("{bundle} is not encrypted to the identity in {path}.")
    why = N_("None of its recipients is the public half of that identity.")
    fix = N_("Use the identity whose public half ('age-keygen -y FILE') your supplier was given.")


class RecipientInvalid(ApplianceError):
    code = "recipient-invalid"
    exit_code = ExitCode.USAGE
    what = N_("'{recipient}' is not an age recipient.")
    why = N_("A recipient is a public key that begins with age1; each is 62 characters long.")
    fix = N_("Ask its holder for the output of 'age-keygen -y FILE'.")


class EncryptionFailed(ApplianceError):
    code = "encryption-failed"
    exit_code = ExitCode.FAILED
    what = N_("{path} cannot be encrypted.")
    why = N_("{reason}")
    fix = N_("Check the path and the space beside it ('df -h'), then run it again.")


class NotEncrypted(ApplianceError):
    code = "not-encrypted"
    exit_code = ExitCode.USAGE
    what = N_("{bundle} is {state}.")
    why = N_("'sovctl bundle encrypt' takes a bundle in clear, 'sovctl bundle decrypt' not.")
    fix = N_("Use it as it is; 'sovctl bundle inspect {bundle}' shows what it holds.")


class ExportUnknown(ApplianceError):
    code = "export-unknown"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no {kind} {name} here to export.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl models list' or 'sovctl adapters list' to see what is here.")


class ReleaseUnknown(ApplianceError):
    code = "release-unknown"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no release {release} under {home}.")
    why = N_("It was never installed here, or it was removed.")
    fix = N_("Run 'sovctl status' to see the releases that are installed.")


class ReleaseInUse(ApplianceError):
    code = "release-in-use"
    exit_code = ExitCode.USAGE
    what = N_("Release {release} cannot be removed: it is the current one.")
    why = N_("The appliance runs from its files.")
    fix = N_("Install another release first, or run 'sovctl uninstall'.")


class ReleaseDamaged(ApplianceError):
    code = "release-damaged"
    exit_code = ExitCode.REFUSED
    what = N_("Release {release} is damaged.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl install BUNDLE' again with the bundle it came from.")


# --- egress and cluster -------------------------------------------------------------------------


class SealUnavailable(ApplianceError):
    code = "seal-unavailable"
    exit_code = ExitCode.PRECONDITION
    what = N_("This machine cannot seal the appliance: {reason}.")
    why = N_("Without a network namespace nothing would keep data from leaving.")
    fix = N_("{remedy}. Then run 'sovctl start' again.")


class PortTaken(ApplianceError):
    code = "port-taken"
    exit_code = ExitCode.PRECONDITION
    what = N_("Port {port} on 127.0.0.1 is in use by another program.")
    why = N_("The appliance listens there for its API.")
    fix = N_("Choose another with '--port PORT'. 'ss -ltnp' names who holds this one.")


class StartFailed(ApplianceError):
    code = "start-failed"
    exit_code = ExitCode.FAILED
    what = N_("The appliance did not become healthy: it stopped at {phase}.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl logs' for the whole story, then 'sovctl start' again.")


class StopFailed(ApplianceError):
    code = "stop-failed"
    exit_code = ExitCode.FAILED
    what = N_("The appliance did not stop: process {pid} is still there.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl stop' again; if it persists, restart the machine.")


class JobUnknown(ApplianceError):
    code = "job-unknown"
    exit_code = ExitCode.NOT_FOUND
    what = N_("Ray knows no job {job}.")
    why = N_("It was never submitted, or the appliance was restarted since.")
    fix = N_("List the jobs with 'sovctl tune list'.")


class RayRefused(ApplianceError):
    code = "ray-refused"
    exit_code = ExitCode.FAILED
    what = N_("Ray did not carry out '{action}'.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl status'; if Ray is not healthy, 'sovctl stop' and 'sovctl start'.")


class SealBroken(ApplianceError):
    code = "seal-broken"
    exit_code = ExitCode.FAILED
    what = N_("The appliance was stopped: its seal is not closed.")
    why = N_("Looked at from outside, it is not what it must be: {reason}.")
    fix = N_("Do not use this machine for private data. Run 'sovctl doctor' and report this.")


class ReleaseForeign(ApplianceError):
    code = "release-foreign"
    exit_code = ExitCode.REFUSED
    what = N_("{release} is not a release that was installed here.")
    why = N_("Only what was verified and lies in the installation's releases folder is run.")
    fix = N_("Run 'sovctl install BUNDLE' again; if you did not change it, report this.")


class NodeFileInvalid(ApplianceError):
    code = "node-file-invalid"
    exit_code = ExitCode.PRECONDITION
    what = N_("This host does not know its place in the site: {path} cannot be used.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl install BUNDLE --site SITE' again on the controller, which writes it.")


class RayUnguarded(ApplianceError):
    code = "ray-unguarded"
    exit_code = ExitCode.PRECONDITION
    what = N_("Ray was not started on this host.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl install BUNDLE --site SITE' again on the controller.")


class GatewayCertificateUnfit(ApplianceError):
    code = "gateway-certificate-unfit"
    exit_code = ExitCode.USAGE
    what = N_("The certificate in {chain} cannot be the gateway's.")
    why = N_("{reason}.")
    fix = N_("Put the leaf, then each issuer up to the root, into the file; correct 'gateway'.")


class SealUnknown(ApplianceError):
    code = "seal-unknown"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no seal to report on under {home}.")
    why = N_("{reason}")
    fix = N_("Start the appliance with 'sovctl start'.")


# --- install ------------------------------------------------------------------------------------


class Busy(ApplianceError):
    code = "busy"
    exit_code = ExitCode.BUSY
    what = N_("Another command is changing {home}: '{command}' (process {pid}).")
    why = N_("Only one command at a time may change an installation.")
    fix = N_("Wait for it to end, or stop it with 'kill {pid}', then run this again.")


class PreflightFailed(ApplianceError):
    code = "preflight-failed"
    exit_code = ExitCode.PRECONDITION
    what = N_("This machine is not ready for {bundle}; nothing was installed.")
    why = N_("{findings}")
    fix = N_("{remedy}")


class HomeNotOurs(ApplianceError):
    code = "home-not-ours"
    exit_code = ExitCode.PRECONDITION
    what = N_("{home} is not an installation of sovctl.")
    why = N_("{reason}")
    fix = N_("Set SOVCTL_HOME to an empty folder or to an existing installation.")


class JournalDamaged(ApplianceError):
    code = "journal-damaged"
    exit_code = ExitCode.FAILED
    what = N_("The journal {path} is damaged at line {line}.")
    why = N_("{reason}")
    fix = N_("Move it away ('mv {path} {path}.bad'), then run 'sovctl install BUNDLE' again.")


class RuntimeInstallFailed(ApplianceError):
    code = "runtime-install-failed"
    exit_code = ExitCode.FAILED
    what = N_("The runtime of {release} could not be installed.")
    why = N_("{reason}")
    fix = N_("The full output is in {log}. Run 'sovctl doctor', then the same install again.")


class InterpreterMissing(ApplianceError):
    code = "interpreter-missing"
    exit_code = ExitCode.PRECONDITION
    what = N_("No usable Python {python} was found on this machine.")
    why = N_("The bundle's runtime is built for CPython {python} and brings no interpreter.")
    fix = N_("Install it ('apt-get install python{python}'), then try again.")


class EnvironmentUnfit(ApplianceError):
    code = "environment-unfit"
    exit_code = ExitCode.PRECONDITION
    what = N_("SOVCTL_ENVIRONMENT names '{name}', which cannot be installed here.")
    why = N_("This machine is {actual}, and the bundle offers: {offered}.")
    fix = N_("Name another one, or let this machine decide: 'unset SOVCTL_ENVIRONMENT'.")


class ReleaseUnhealthy(ApplianceError):
    code = "release-unhealthy"
    exit_code = ExitCode.FAILED
    what = N_("{release} was installed but does not work: {reason}")
    why = N_("{previous}")
    fix = N_("Run 'sovctl logs' and 'sovctl doctor' to see why.")


class ConfirmationNeeded(ApplianceError):
    code = "confirmation-needed"
    exit_code = ExitCode.USAGE
    what = N_("'{command}' needs your consent.")
    why = N_("{reason} There is no terminal to ask on.")
    fix = N_("Run '{command} --yes'.")


class UninstallRefused(ApplianceError):
    code = "uninstall-refused"
    exit_code = ExitCode.PRECONDITION
    what = N_("Nothing was removed from {home}.")
    why = N_("{reason}")
    fix = N_("Look at it with 'ls -la {home}', put it right, then run 'sovctl uninstall' again.")


class NoSuchLog(ApplianceError):
    code = "no-such-log"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no log of '{component}'.")
    why = N_("Logs here: {known}.")
    fix = N_("Run 'sovctl logs --component NAME' with one of these.")


# --- sites: hosts over SSH ----------------------------------------------------------------------


class SiteFileExists(ApplianceError):
    code = "site-file-exists"
    exit_code = ExitCode.USAGE
    what = N_("{path} is there already.")
    why = N_("A site file is written by hand after it was drafted; it is not replaced by itself.")
    fix = N_("Give another name with --out, or --force to replace it.")


class HostUnreachable(ApplianceError):
    code = "host-unreachable"
    exit_code = ExitCode.PRECONDITION
    what = N_("Host {host} does not answer at {address} port {port}.")
    why = N_("{reason}")
    fix = N_("Try 'ssh -p {port} {user}@{address}'; correct the address in the site file if wrong.")


class HostKeyUnknown(ApplianceError):
    code = "host-key-unknown"
    exit_code = ExitCode.REFUSED
    what = N_("Nobody has said which host key {host} ({address}) has.")
    why = N_("It offers {offered}. A key is never accepted blindly: it could be another machine's.")
    fix = N_(
        "Compare with 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on the host's console, "
        "then 'sovctl site host-keys SITE_FILE --accept {host}=SHA256:…', or write it into the "
        "site file under ssh: host_keys."
    )


class HostKeyChanged(ApplianceError):
    code = "host-key-changed"
    exit_code = ExitCode.REFUSED
    what = N_("Host {host} ({address}) is not the machine it was: its host key differs.")
    why = N_("Expected {expected}; it offers {offered}. Somebody may stand in between.")
    fix = N_(
        "If the host was installed anew, compare the key on its console, then write it into the "
        "site file, or run 'sovctl site host-keys SITE_FILE --accept {host}=SHA256:…'."
    )


class LoginRefused(ApplianceError):
    code = "login-refused"
    exit_code = ExitCode.PRECONDITION
    what = N_("Host {host} does not let {user} in with {key}.")
    why = N_("{reason}")
    fix = N_("Add it with 'ssh-copy-id -p {port} {user}@{address}', or correct ssh: in the site.")


class SudoRefused(ApplianceError):
    code = "sudo-refused"
    exit_code = ExitCode.PRECONDITION
    what = N_("On host {host}, {user} may not become root without a password.")
    why = N_("{reason}")
    fix = N_(
        "On the host, as root: echo '{user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{user}"
        " && chmod 440 /etc/sudoers.d/{user}"
    )


class ConnectionLost(ApplianceError):
    code = "connection-lost"
    exit_code = ExitCode.FAILED
    what = N_("The connection to host {host} ({address}) broke off.")
    why = N_("{reason}")
    fix = N_("See that the host is up and its network works, then run the same command again.")


class HostCommandFailed(ApplianceError):
    code = "host-command-failed"
    exit_code = ExitCode.FAILED
    what = N_("'{command}' failed on host {host}.")
    why = N_("{reason}")
    fix = N_("Look at it with 'ssh -p {port} {user}@{address}', then run the same command again.")


class HostBusy(ApplianceError):
    code = "host-busy"
    exit_code = ExitCode.BUSY
    what = N_("Host {host} is being changed by {operator}, since {since}.")
    why = N_("Only one operator at a time may change a host; that one works from another place.")
    fix = N_("Wait for it to end. If it was killed: 'sovctl site break-lock SITE_FILE {host}'.")


class HostLockLost(ApplianceError):
    code = "host-lock-lost"
    exit_code = ExitCode.BUSY
    what = N_("The lock on host {host} is not held by this command any more.")
    why = N_("Somebody broke it with 'sovctl site break-lock', or removed it.")
    fix = N_("Agree on who goes on; that one runs the same command again.")


class DeliveryDamaged(ApplianceError):
    code = "delivery-damaged"
    exit_code = ExitCode.FAILED
    what = N_("{blob} did not arrive on host {host} as it was sent; nothing of it was kept.")
    why = N_("Its digest differs: this machine's store is damaged, or the host's memory or disk.")
    fix = N_("Run 'sovctl doctor' here, look at the host's kernel log, then run this again.")


class ReleaseDiffers(ApplianceError):
    code = "release-differs"
    exit_code = ExitCode.REFUSED
    what = N_("Host {host} has another release under the name {release}.")
    why = N_("What is there was not made from this bundle, or it was altered.")
    fix = N_("Look at it on the host ('ls {folder}'), move it away, then run this again.")


class AnsibleMissing(ApplianceError):
    code = "ansible-missing"
    exit_code = ExitCode.PRECONDITION
    what = N_("Ansible is not installed beside sovctl.")
    why = N_("Hosts of a site are configured with ansible-core, through ansible-runner.")
    fix = N_("Install sovctl with it: 'pip install sovereign-appliance[site]'.")


class SiteTaskFailed(ApplianceError):
    code = "site-task-failed"
    exit_code = ExitCode.FAILED
    what = N_("On host {host}, '{task}' failed.")
    why = N_("{message}")
    fix = N_("{remedy}")


class PlaybookFailed(ApplianceError):
    code = "playbook-failed"
    exit_code = ExitCode.FAILED
    what = N_("Ansible ended with status {status} before it reached a host.")
    why = N_("What it said is in {log}.")
    fix = N_("Read its last lines ('tail {log}'), then run the same command again.")


class SiteAmbiguous(ApplianceError):
    code = "site-ambiguous"
    exit_code = ExitCode.USAGE
    what = N_("Several sites are installed from here: {sites}.")
    why = N_("The command does not say which of them it means.")
    fix = N_("Add '--site NAME', or set SOVCTL_SITE.")


class SiteNotInstalled(ApplianceError):
    code = "site-not-installed"
    exit_code = ExitCode.NOT_FOUND
    what = N_("Site {site} is not installed from here.")
    why = N_("There is no {path}.")
    fix = N_("Run 'sovctl install BUNDLE --site SITE_FILE', or correct the name given with --site.")


class SiteEndpointDamaged(ApplianceError):
    code = "site-endpoint-damaged"
    exit_code = ExitCode.FAILED
    what = N_("Where site {site} answers, and what it runs, cannot be read.")
    why = N_("{path} is damaged.")
    fix = N_("Move it away, then run 'sovctl install' with the bundle that the site runs.")


class HostsNotReady(ApplianceError):
    code = "hosts-not-ready"
    exit_code = ExitCode.PRECONDITION
    what = N_("{count} hosts of site {site} are not ready for it: {hosts}. Nothing was changed.")
    why = N_("{findings}")
    fix = N_("{remedy}")


class SiteUpgradeLater(ApplianceError):
    code = "site-upgrade-not-in-this-release"
    exit_code = ExitCode.PRECONDITION
    what = N_("Site {site} runs {installed}; this bundle is {release}.")
    why = N_("Replacing or removing the release of a site is not in this release of sovctl.")
    fix = N_("Run 'sovctl install' with the bundle of {installed}, or install another site.")


class SiteGatewaySilent(ApplianceError):
    code = "site-gateway-silent"
    exit_code = ExitCode.FAILED
    what = N_("The gateway of site {site} does not answer at {url}.")
    why = N_("{reason}")
    fix = N_(
        "Read 'ssh {user}@{address} journalctl -u sovctl-gateway -n 50', and see that this machine "
        "may reach that address; then run the same command again."
    )


class SiteSealUnproven(ApplianceError):
    code = "site-seal-unproven"
    exit_code = ExitCode.FAILED
    what = N_("Site {site} is installed, and its seal is not proven: the answer is {answer}.")
    why = N_("{reason}")
    fix = N_("See every probe with 'sovctl egress prove --site {site}'. Keep private data away.")


class SeveralHostsFailed(ApplianceError):
    code = "several-hosts-failed"
    exit_code = ExitCode.FAILED
    what = N_("{count} hosts failed: {hosts}.")
    why = N_("{reasons}")
    fix = N_("{remedies}")


# --- ledger -------------------------------------------------------------------------------------


class LedgerMissing(ApplianceError):
    code = "ledger-missing"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no ledger under {path}.")
    why = N_("The ledger is made when an appliance is installed, and this folder has none.")
    fix = N_("Run 'sovctl install BUNDLE', or set SOVCTL_HOME to where the appliance is.")


class LedgerExists(ApplianceError):
    code = "ledger-exists"
    exit_code = ExitCode.PRECONDITION
    what = N_("{path} already holds a ledger.")
    why = N_("A ledger is never started anew over an older one: that would erase the record.")
    fix = N_("Run 'sovctl audit verify' to check it, then go on using it.")


class LedgerDamaged(ApplianceError):
    code = "ledger-damaged"
    exit_code = ExitCode.REFUSED
    what = N_("The ledger does not fit together: {reason}")
    why = N_("{path} was changed by something else, or the disk lost it. Nothing is added to it.")
    fix = N_("Run 'sovctl audit verify' to see where, keep a copy, and restore it from a backup.")


class LedgerUnwritable(ApplianceError):
    code = "ledger-unwritable"
    exit_code = ExitCode.FAILED
    what = N_("Nothing can be recorded in the ledger {path}: {reason}")
    why = N_("What cannot be recorded is not done, so this action was stopped.")
    fix = N_("Run 'sovctl doctor', correct the disk or its permissions, then run it again.")


class LedgerKeyUnusable(ApplianceError):
    code = "ledger-key-unusable"
    exit_code = ExitCode.REFUSED
    what = N_("The key in {path} cannot sign or check this ledger.")
    why = N_("{reason}")
    fix = N_("Restore the key this ledger was made with; 'sovctl audit checkpoint' names it.")


class LedgerEntryMissing(ApplianceError):
    code = "ledger-entry-missing"
    exit_code = ExitCode.NOT_FOUND
    what = N_("The ledger has no entry {index}.")
    why = N_("It holds {size} entries, counted from 0.")
    fix = N_("Run 'sovctl audit log' to see the entries and their numbers.")


# --- registry -----------------------------------------------------------------------------------


class RegistryDamaged(ApplianceError):
    code = "registry-damaged"
    exit_code = ExitCode.FAILED
    what = N_("The registry {path} cannot be read.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl stop', restore the file from a backup, then run 'sovctl start'.")


class RegistryNewer(ApplianceError):
    code = "registry-newer"
    exit_code = ExitCode.PRECONDITION
    what = N_("The registry {path} was written by a newer release.")
    why = N_("Its format is {found}; this release knows up to {known}.")
    fix = N_("Run 'sovctl install' with the newer bundle, or restore the older registry.")


class RegistryBusy(ApplianceError):
    code = "registry-busy"
    exit_code = ExitCode.BUSY
    what = N_("The registry {path} is in use by another process.")
    why = N_("It stayed locked for longer than a normal change takes.")
    fix = N_("Run the same command again; if it stays so, run 'sovctl doctor'.")


class RecordMissing(ApplianceError):
    code = "record-missing"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no {kind} named {name}.")
    why = N_("The registry of this appliance does not list it.")
    fix = N_("Run 'sovctl {group} list' to see what there is.")


class RecordInvalid(ApplianceError):
    code = "record-invalid"
    exit_code = ExitCode.USAGE
    what = N_("{name} cannot be the name of a {kind}.")
    why = N_("{reason}")
    fix = N_("Choose another name and run it again.")


class NameTaken(ApplianceError):
    code = "name-taken"
    exit_code = ExitCode.USAGE
    what = N_("There is already a {kind} named {name}, with other content.")
    why = N_("A name always stands for the same bytes; this one stands for {digest}.")
    fix = N_("Choose another name. 'sovctl {group} list' shows those in use.")


class TransitionRefused(ApplianceError):
    code = "transition-refused"
    exit_code = ExitCode.PRECONDITION
    what = N_("The {kind} {name} cannot become {wanted}.")
    why = N_("It is {now}, and nothing leads from there to {wanted}.")
    fix = N_("Run 'sovctl {group} list' to see how things stand.")


# --- gateway ------------------------------------------------------------------------------------


class ApiKeyRefused(ApplianceError):
    code = "api-key-refused"
    exit_code = ExitCode.REFUSED
    what = N_("The gateway does not know this API key.")
    why = N_("The request carried no key, or one that was never issued here or is revoked.")
    fix = N_("Send 'Authorization: Bearer KEY'; make a key with 'sovctl keys create NAME'.")


class RoleInsufficient(ApplianceError):
    code = "role-insufficient"
    exit_code = ExitCode.REFUSED
    what = N_("This key may not do that: {action}.")
    why = N_("It has the role {role}; {needed} is needed.")
    fix = N_("Ask an operator for a key: 'sovctl keys create NAME --role {needed}'.")


class RouteUnknown(ApplianceError):
    code = "route-unknown"
    exit_code = ExitCode.NOT_FOUND
    what = N_("The gateway does not serve {action}.")
    why = N_("Only the paths it lists are open; everything else is refused.")
    fix = N_("See the table of doors in docs/architecture.md.")


class RequestMalformed(ApplianceError):
    code = "request-malformed"
    exit_code = ExitCode.USAGE
    what = N_("The request is not what {action} takes.")
    why = N_("{reason}")
    fix = N_("Correct the request and send it again.")


class RequestTooLarge(ApplianceError):
    code = "request-too-large"
    exit_code = ExitCode.USAGE
    what = N_("The request is larger than {limit} bytes.")
    why = N_("The gateway bounds what one request may hold.")
    fix = N_("Send less text in one request.")


class RateLimited(ApplianceError):
    code = "rate-limited"
    exit_code = ExitCode.BUSY
    what = N_("This key asks more than it may: {limit}.")
    why = N_("Each key has a rate and a number of requests at once, so that none starves others.")
    fix = N_("Try again in {seconds} s.")


class AuditUnavailable(ApplianceError):
    code = "audit-unavailable"
    exit_code = ExitCode.FAILED
    what = N_("The appliance refuses service: the ledger cannot be written.")
    why = N_("{reason} What cannot be accounted for is not done.")
    fix = N_("Check disk space and permissions with 'sovctl doctor', then try again.")


class ServiceUnavailable(ApplianceError):
    code = "service-unavailable"
    exit_code = ExitCode.FAILED
    what = N_("{service} does not answer inside the appliance.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl status', and 'sovctl logs' for the whole story.")


class ApiKeyUnknown(ApplianceError):
    code = "api-key-unknown"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no API key {key}.")
    why = N_("It was never issued here.")
    fix = N_("List the keys with 'sovctl keys list'.")


class RunInProgress(ApplianceError):
    code = "run-in-progress"
    exit_code = ExitCode.BUSY
    what = N_("The adapter {adapter} is being made already, by the job {job}.")
    why = N_("A name stands for one adapter, and one run has one folder.")
    fix = N_("Follow it with 'sovctl tune logs {job}', or choose another name in the spec.")


class GatewayAnswerUnclear(ApplianceError):
    code = "gateway-answer-unclear"
    exit_code = ExitCode.FAILED
    what = N_("The appliance refused, with status {status}.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl status', and 'sovctl logs' for the whole story.")


# --- building a bundle --------------------------------------------------------------------------


class SourceMissing(ApplianceError):
    code = "source-missing"
    exit_code = ExitCode.USAGE
    what = N_("{recipe}: the source of '{artefact}' is not usable.")
    why = N_("{path}: {reason}")
    fix = N_("Correct 'source' of '{artefact}' in {recipe}.")


class PublisherRefused(ApplianceError):
    code = "publisher-refused"
    exit_code = ExitCode.REFUSED
    what = N_("'{artefact}' is not what its publisher signed.")
    why = N_("{path}: {reason}. The files changed, or somebody else signed them.")
    fix = N_("Do not use it. Fetch model and signature again from the publisher, then compare.")


class LockInvalid(ApplianceError):
    code = "lock-invalid"
    exit_code = ExitCode.USAGE
    what = N_("{lock}, line {line}: this is not a lock with hashes.")
    why = N_("{reason}")
    fix = N_("Write it anew with 'uv pip compile --generate-hashes', one exact version a package.")


class DownloadUnreachable(ApplianceError):
    code = "download-unreachable"
    exit_code = ExitCode.FAILED
    what = N_("{package} cannot be fetched: no package index answers.")
    why = N_("{reason}")
    fix = N_(
        "Check the network and 'python -m pip config list', then run the same command again; "
        "what was fetched is kept in {cache}."
    )


class DownloadMismatch(ApplianceError):
    code = "download-mismatch"
    exit_code = ExitCode.REFUSED
    what = N_("{package} came with another content than the one pinned.")
    why = N_("{reason} It was replaced at its source, or changed on the way.")
    fix = N_("Do not use it. Ask who maintains the recipe before pinning the new digest.")


class SourceUnreachable(ApplianceError):
    code = "source-unreachable"
    exit_code = ExitCode.FAILED
    what = N_("{file} cannot be fetched from {host}.")
    why = N_("{reason}")
    fix = N_(
        "Check the network and the proxy ('env | grep -i _proxy'), then run the same command "
        "again; it goes on where it stopped, from what is kept in {cache}."
    )


class SourceRefused(ApplianceError):
    code = "source-refused"
    exit_code = ExitCode.FAILED
    what = N_("{host} does not give out {file}.")
    why = N_("{reason}")
    fix = N_(
        "Check the address in the recipe. If it needs a token, put 'token_env: NAME' or "
        "'token_file: PATH' beside it and run 'export NAME=…'."
    )


class TokenMissing(ApplianceError):
    code = "token-missing"
    exit_code = ExitCode.USAGE
    what = N_("The token for '{artefact}' is not there.")
    why = N_("{reason}")
    fix = N_("Set it ('read -rs NAME; export NAME', or write the file), then run it again.")


class WeightsRefused(ApplianceError):
    code = "weights-refused"
    exit_code = ExitCode.REFUSED
    what = N_("'{file}' does not enter the artefact '{artefact}'.")
    why = N_("{reason}")
    fix = N_(
        "Leave it out with 'deny: [\"{file}\"]' in {recipe}; take a repository or a revision that "
        "has the weights as safetensors."
    )


class BundleLockMissing(ApplianceError):
    code = "bundle-lock-missing"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no {lock}, and --locked builds only what it pins.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl bundle lock {recipe}', read what it wrote, and commit it.")


class BundleLockInvalid(ApplianceError):
    code = "bundle-lock-invalid"
    exit_code = ExitCode.USAGE
    what = N_("{lock} is not a lock that 'sovctl bundle lock' wrote.")
    why = N_("{reason}")
    fix = N_("Restore it ('git checkout -- {lock}'), or remove it and run 'sovctl bundle lock'.")


class BundleLockStale(ApplianceError):
    code = "bundle-lock-stale"
    exit_code = ExitCode.REFUSED
    what = N_("{lock} is for another recipe than {recipe} is now.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl bundle lock {recipe}', then look at what changed: 'git diff {lock}'.")


class BundleLockDiffers(ApplianceError):
    code = "bundle-lock-differs"
    exit_code = ExitCode.REFUSED
    what = N_("'{file}' of '{artefact}' is not as {lock} has it.")
    why = N_("{reason}")
    fix = N_(
        "Find out who changed it. If the change is wanted: 'sovctl bundle lock {recipe}', and "
        "commit what it writes."
    )


class AptMissing(ApplianceError):
    code = "apt-missing"
    exit_code = ExitCode.PRECONDITION
    what = N_("{tool} is needed to collect Debian packages, and it is not here.")
    why = N_("Only apt knows how apt resolves and verifies them, so it does it here too.")
    fix = N_("Build on Debian 12, Ubuntu 22.04 or newer: 'apt-get install {package}'.")


class ArchiveUntrusted(ApplianceError):
    code = "archive-untrusted"
    exit_code = ExitCode.REFUSED
    what = N_("Nothing is taken from {archive}: apt does not accept its signature or contents.")
    why = N_("{reason}")
    fix = N_(
        "Compare the keyring with the publisher's: 'gpg --show-keys KEYRING'. If the archive's "
        "date has run out because it is a snapshot, write 'valid_until: ignored' beside it."
    )


class PackagesUnresolved(ApplianceError):
    code = "packages-unresolved"
    exit_code = ExitCode.FAILED
    what = N_("apt cannot install {packages} from the archives of the recipe.")
    why = N_("{reason}")
    fix = N_("Correct 'packages', or add the suite, component or archive that has what is missing.")


class PackageRefused(ApplianceError):
    code = "package-refused"
    exit_code = ExitCode.REFUSED
    what = N_("{file} does not enter the artefact '{artefact}'.")
    why = N_("{reason}")
    fix = N_("Do not use it. Ask its publisher, or pin another version in the recipe.")


class CollectionsIncomplete(ApplianceError):
    code = "collections-incomplete"
    exit_code = ExitCode.USAGE
    what = N_("The collections of '{artefact}' need others that the recipe does not pin.")
    why = N_("{reason}")
    fix = N_("Add them to 'collections' in {recipe}, each with its version and sha256.")


class WheelUnavailable(ApplianceError):
    code = "wheel-unavailable"
    exit_code = ExitCode.FAILED
    what = N_("There is no wheel of {package} for {platform}.")
    why = N_("{reason}")
    fix = N_(
        "Pin a version that has one, or add an index: 'python -m pip config list' shows yours."
    )


class BuildToolMissing(ApplianceError):
    code = "build-tool-missing"
    exit_code = ExitCode.PRECONDITION
    what = N_("{tool} is needed to build this bundle, and it is not here.")
    why = N_("{reason}")
    fix = N_("Install it beside sovctl: 'python -m pip install \"sovereign-appliance[build]\"'.")


class BuildStepFailed(ApplianceError):
    code = "build-step-failed"
    exit_code = ExitCode.FAILED
    what = N_("Building '{artefact}' stopped at: {step}.")
    why = N_("{reason}")
    fix = N_("The whole output is in {log}. Mend the cause and run the same command again.")


class EpochInvalid(ApplianceError):
    code = "epoch-invalid"
    exit_code = ExitCode.USAGE
    what = N_("SOURCE_DATE_EPOCH is '{value}', which dates nothing.")
    why = N_("It must be whole seconds since 1970, not before 1980 (ZIP has no earlier dates).")
    fix = N_("Set it, for example: export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)")


class LicenceDenied(ApplianceError):
    code = "licence-denied"
    exit_code = ExitCode.REFUSED
    what = N_("{recipe} forbids the licences of {count} components.")
    why = N_("{components}.")
    fix = N_("Leave them out, or name them in {recipe} under 'licences: except:' with the reason.")


class ProvenanceMissing(ApplianceError):
    code = "provenance-missing"
    exit_code = ExitCode.NOT_FOUND
    what = N_("{bundle} does not say how it was built.")
    why = N_("It was written by a sovctl that did not record that, or by other software.")
    fix = N_("Ask your supplier to build it anew with 'sovctl bundle build'.")


class SbomInvalid(ApplianceError):
    code = "sbom-invalid"
    exit_code = ExitCode.FAILED
    what = N_("The bill of materials of {bundle} does not follow the CycloneDX {version} schema.")
    why = N_("{reason}")
    fix = N_("This is a defect in sovctl. Run 'sovctl bundle build … --json' and send its output.")


class BootstrapPythonUnfit(ApplianceError):
    code = "bootstrap-python-unfit"
    exit_code = ExitCode.PRECONDITION
    what = N_("sovctl.pyz does not run on {found}.")
    why = N_("The libraries it carries are for CPython {supported}.")
    fix = N_("Start it with one of these, such as 'python3.11 sovctl.pyz', or ask your supplier.")


class BootstrapFolderUnusable(ApplianceError):
    code = "bootstrap-folder-unusable"
    exit_code = ExitCode.PRECONDITION
    what = N_("sovctl.pyz cannot unpack itself into {path}.")
    why = N_("{reason}")
    fix = N_("Name a folder of your own: 'XDG_CACHE_HOME=/path/to/folder ./sovctl.pyz …'.")


class BootstrapDamaged(ApplianceError):
    code = "bootstrap-damaged"
    exit_code = ExitCode.REFUSED
    what = N_("{path} cannot be used for sovctl.pyz.")
    why = N_("{reason}")
    fix = N_("Copy it anew and compare 'sha256sum' of it with the fingerprint you were given.")


# --- tuning -------------------------------------------------------------------------------------


class DatasetRowsInvalid(ApplianceError):
    code = "dataset-rows-invalid"
    exit_code = ExitCode.USAGE
    what = N_("{path} has {count} rows that cannot be used: {lines}.")
    why = N_("{reason}")
    fix = N_(
        'Each line must be {{"prompt": …, "completion": …}} or {{"messages": […]}} in UTF-8.'
        " Correct these, then run 'sovctl data import' again."
    )


class DatasetUnusable(ApplianceError):
    code = "dataset-unusable"
    exit_code = ExitCode.USAGE
    what = N_("{path} cannot be imported as a data set.")
    why = N_("{reason}")
    fix = N_("Give a .jsonl file, or a folder with train.jsonl and heldout.jsonl.")


class TuneRunInvalid(ApplianceError):
    code = "tune-run-invalid"
    exit_code = ExitCode.USAGE
    what = N_("The tuning run described in {path} cannot be started.")
    why = N_("{reason}")
    fix = N_("Submit it again with 'sovctl tune submit'.")


class TuneInputChanged(ApplianceError):
    code = "tune-input-changed"
    exit_code = ExitCode.REFUSED
    what = N_("The {kind} {name} is not the one this run was submitted with.")
    why = N_("Its content in {path} has digest {found}; the run names {wanted}.")
    fix = N_("Run 'sovctl doctor' to check the installation, then submit the run again.")


class TuneNoRows(ApplianceError):
    code = "tune-no-rows"
    exit_code = ExitCode.USAGE
    what = N_("The data set {name} has no {split} row of at most {max_length} tokens.")
    why = N_("{left_out} rows are longer than that and were left out.")
    fix = N_("Raise max_length in the spec, or import shorter rows, then 'sovctl tune submit'.")


class TuneTemplateUnfit(ApplianceError):
    code = "tune-template-unfit"
    exit_code = ExitCode.USAGE
    what = N_("The data set {name} holds conversations that {base} cannot be tuned on.")
    why = N_("{reason}")
    fix = N_("Import rows of prompt and completion instead ('sovctl data import').")


class TuneLossNotFinite(ApplianceError):
    code = "tune-loss-not-finite"
    exit_code = ExitCode.FAILED
    what = N_("Training stopped at step {step}: the loss is {loss}.")
    why = N_("The updates became too large for the numbers; learning_rate is {learning_rate}.")
    fix = N_("Lower learning_rate in the spec (try a third), then run 'sovctl tune submit'.")


class TuneOutOfMemory(ApplianceError):
    code = "tune-out-of-memory"
    exit_code = ExitCode.PRECONDITION
    what = N_("Training ran out of memory at step {step}.")
    why = N_("{batch_rows} rows of up to {max_length} tokens a step did not fit.")
    fix = N_("Halve batch_rows (or max_length) in the spec, then run 'sovctl tune submit'.")


class TuneWorkersTooMany(ApplianceError):
    code = "tune-workers-too-many"
    exit_code = ExitCode.USAGE
    what = N_("The job wants {workers} workers, and {hosts} can run at once.")
    why = N_("Each worker runs on a host of its own, and so many hosts tune models here.")
    fix = N_("Set workers to {hosts} or less in the spec, then run 'sovctl tune submit'.")


class TuneClusterUnreachable(ApplianceError):
    code = "tune-cluster-unreachable"
    exit_code = ExitCode.FAILED
    what = N_("The tuning job cannot reach Ray.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl doctor'; if the appliance is stopped, 'sovctl start'.")


class TuneWorkerLost(ApplianceError):
    code = "tune-worker-lost"
    exit_code = ExitCode.FAILED
    what = N_("The training worker was lost {times} times and the run ended.")
    why = N_("{reason}")
    fix = N_(
        "Run 'sovctl doctor' (memory, disk), then submit the same spec: it goes on from its last"
        " checkpoint."
    )


class TuneStopped(ApplianceError):
    code = "tune-stopped"
    exit_code = ExitCode.INTERRUPTED
    what = N_("The tuning run was asked to stop, and stopped at step {step} of {steps}.")
    why = N_("A checkpoint holds what was learnt so far.")
    fix = N_("Submit the same spec again ('sovctl tune submit') and it goes on from there.")


class AdapterRunIncomplete(ApplianceError):
    code = "adapter-run-incomplete"
    exit_code = ExitCode.FAILED
    what = N_("The run in {path} has no adapter to register.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl tune list' to see how the run ended, then 'sovctl tune submit'.")


class AdapterRefused(ApplianceError):
    code = "adapter-refused"
    exit_code = ExitCode.REFUSED
    what = N_("The adapter {name} is not loaded.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl adapters list' to see each adapter's status; tune it again if damaged.")


class AdapterKeyUnusable(ApplianceError):
    code = "adapter-key-unusable"
    exit_code = ExitCode.PRECONDITION
    what = N_("The key that signs adapters, {path}, cannot be used.")
    why = N_("{reason}")
    fix = N_("Restore it from a backup, or run 'sovctl install' again to make a new one.")


# --- serving ------------------------------------------------------------------------------------


class NoModelToServe(ApplianceError):
    code = "no-model-to-serve"
    exit_code = ExitCode.NOT_FOUND
    what = N_("There is no model to serve in {folder}.")
    why = N_("The installed release holds no folder there with a model's config.json.")
    fix = N_(
        "Run 'sovctl bundle inspect BUNDLE' to see what it holds, and install one with a model."
    )


class ServingUnhealthy(ApplianceError):
    code = "serving-unhealthy"
    exit_code = ExitCode.FAILED
    what = N_("The model server did not become healthy.")
    why = N_("{reason}")
    fix = N_("Run 'sovctl logs serve' for what it printed, then 'sovctl doctor'.")
