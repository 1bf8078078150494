"""The ``__main__.py`` of ``sovctl.pyz``: unpack once, check always, then become ``sovctl``.

It runs on whatever Python the operator types, so it must parse on old ones (3.6) to be able to say
what is wrong, and imports nothing of ours: all it knows comes from ``manifest.json`` beside it.

Shared libraries cannot be loaded out of a zip, and programs that ``sovctl`` starts must find the
same code. So this unpacks a virtual environment below ``$XDG_CACHE_HOME/sovctl/pyz`` and runs its
interpreter in place of this process: ``sys.executable`` is then right for every child.

The folder is the user's own (0700), made under another name and renamed when whole. Every run
checks that nobody else could have put it there, and that it holds the files the manifest names, in
their sizes, and no others but bytecode; if not, it is made anew.
"""

import hashlib
import json
import os
import stat
import sys
from typing import Any, Dict, List, Tuple

_INTERPRETER = "bin/python"


class Refused(Exception):
    """An error of the catalogue that came with the manifest."""

    def __init__(self, code: str, **fields: object) -> None:
        super().__init__(code)
        self.code = code
        self.fields = {name: str(value) for name, value in fields.items()}


def main() -> None:
    """Become ``sovctl``, or print why that cannot be and exit."""
    raw = __loader__.get_data(os.path.join(__loader__.archive, "manifest.json"))  # type: ignore
    manifest = json.loads(raw.decode("utf-8"))
    mask = os.umask(0o077)  # all folders that are new on the way are this user's alone
    try:
        folder = environment(manifest, hashlib.sha256(raw).hexdigest())
    except Refused as refusal:
        sys.exit(report(refusal, manifest))
    except OSError as error:
        reason = "%s: %s." % (error.filename or "It", error.strerror or error)
        unusable = Refused("bootstrap-folder-unusable", path=base_folder(), reason=reason)
        sys.exit(report(unusable, manifest))
    os.umask(mask)
    python = os.path.join(folder, _INTERPRETER)
    os.execv(python, [python, "-I", "-m", "appliance.cli.main", *sys.argv[1:]])  # noqa: S606


def environment(manifest: Dict[str, Any], identity: str) -> str:
    """The environment of this content under this interpreter, whole and safe to run."""
    check_machine(manifest)
    parent = safe_folder(os.path.join(base_folder(), identity))
    folder = os.path.join(parent, environment_name())
    expected = expected_files(manifest)
    if not is_whole(folder, expected):
        lock = locked(parent)
        if not is_whole(folder, expected):  # another run may have made it meanwhile, and be at it
            unpack(folder, manifest)
        if not is_whole(folder, expected):
            raise Refused("bootstrap-damaged", path=folder, reason="It changes while it is read.")
        os.close(lock)
    return folder


def locked(parent: str) -> int:
    """Wait until no other run unpacks into ``parent``; the lock ends with the descriptor."""
    import fcntl

    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def report(refusal: Refused, manifest: Dict[str, Any]) -> int:
    """Print an error as ``sovctl`` prints its own; return the exit status."""
    error = manifest["errors"][refusal.code]
    what, why, fix = (error[part].format(**refusal.fields) for part in ("what", "why", "fix"))
    if "--json" in sys.argv[1:]:
        value = {"code": refusal.code, "what": what, "why": why, "fix": fix}
        text = json.dumps({"error": dict(value, fields=refusal.fields)})
    else:
        text = "error: %s\n\n  %s\n  %s\n\n  -> %s" % (refusal.code, what, why, fix)
    sys.stderr.write(text + "\n")
    return int(error["exit"])


def check_machine(manifest: Dict[str, Any]) -> None:
    """Refuse a Python or a machine that the wheels in here are not for."""
    here = "%d.%d" % sys.version_info[:2]
    machine = "%s %s" % (os.uname().sysname.lower(), os.uname().machine)
    for_whom = ", ".join(sorted(manifest["pythons"], key=lambda v: int(v.split(".")[1])))
    if sys.implementation.name != "cpython" or here not in manifest["pythons"]:
        found = "%s %s" % (sys.implementation.name, here)
        raise Refused("bootstrap-python-unfit", found=found, supported=for_whom)
    if machine != manifest["machine"]:
        raise Refused(
            "bootstrap-python-unfit",
            found=here + " on " + machine,
            supported="%s on %s" % (for_whom, manifest["machine"]),
        )


def base_folder() -> str:
    """Where everything of this kind is unpacked."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(os.path.abspath(cache), "sovctl", "pyz")


def interpreter() -> str:
    """The real file of the interpreter this runs on, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def environment_name() -> str:
    """The name of the environment for this interpreter."""
    python = hashlib.sha256(interpreter().encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return "cp%d%d-%s" % (sys.version_info[0], sys.version_info[1], python)


def safe_folder(folder: str) -> str:
    """Make ``folder``; return its real path, which nobody but this user and root can replace.

    With 'sudo' and the caller's HOME, say, the caller could have prepared what root would run.
    """
    os.makedirs(folder, 0o700, exist_ok=True)
    real = path = os.path.realpath(folder)
    while True:
        state = os.lstat(path)
        writable = state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX
        if state.st_uid not in (0, os.geteuid()) or writable:
            reason = "Other users can write to %s or own it." % path
            raise Refused("bootstrap-folder-unusable", path=base_folder(), reason=reason)
        if path == os.path.dirname(path):
            break
        path = os.path.dirname(path)
    if os.statvfs(real).f_flag & getattr(os, "ST_NOEXEC", 0):
        reason = "Programs may not be run from there (it is mounted 'noexec')."
        raise Refused("bootstrap-folder-unusable", path=base_folder(), reason=reason)
    return real


def placed(path: str) -> str:
    """A path of the manifest (``site/…`` or ``bin/…``) inside the environment."""
    if path.startswith("site/"):
        return "lib/python%d.%d/site-packages/%s" % (
            sys.version_info[0],
            sys.version_info[1],
            path[len("site/") :],
        )
    return path


def configuration() -> str:
    """``pyvenv.cfg``: what makes the folder an environment of its own."""
    home = os.path.dirname(interpreter())
    return "home = %s\ninclude-system-site-packages = false\n" % home


def expected_files(manifest: Dict[str, Any]) -> Dict[str, int]:
    """Path in the environment → size in bytes, of every file but bytecode."""
    files = {"pyvenv.cfg": len(configuration().encode("utf-8", "surrogateescape"))}
    wheels = manifest["pythons"]["%d.%d" % sys.version_info[:2]]
    for name in wheels:
        for path, size, _sha256, _mode, _member in manifest["wheels"][name]["files"]:
            files[placed(path)] = size
    return files


def is_whole(folder: str, expected: Dict[str, int]) -> bool:
    """Whether ``folder`` is this user's alone and holds exactly what it should."""
    try:
        state = os.lstat(folder)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
            return False
        if os.readlink(os.path.join(folder, _INTERPRETER)) != interpreter():
            return False
        with open(os.path.join(folder, "pyvenv.cfg"), "rb") as file:
            if file.read() != configuration().encode("utf-8", "surrogateescape"):
                return False
        return dict(sizes_in(folder, "")) == expected
    except OSError:
        return False


def sizes_in(folder: str, below: str) -> List[Tuple[str, int]]:
    """(path, size) of every file; a link or a special file has the size -1, which none should."""
    found = []
    with os.scandir(os.path.join(folder, below)) as entries:
        for entry in entries:
            path = below + entry.name
            if path == _INTERPRETER:
                continue
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    found += sizes_in(folder, path + "/")
            elif entry.is_file(follow_symlinks=False):
                found.append((path, entry.stat(follow_symlinks=False).st_size))
            else:
                found.append((path, -1))
    return found


def unpack(folder: str, manifest: Dict[str, Any]) -> None:
    """Make ``folder``: under another name, checked file by file, then renamed."""
    import shutil
    import tempfile

    needed = sum(expected_files(manifest).values())
    parent = os.path.dirname(folder)
    free = os.statvfs(parent)
    if needed * 1.1 > free.f_bavail * free.f_frsize:
        reason = "It takes %d MB, and %d MB are free." % (
            needed * 1.1 / 1e6 + 1,
            free.f_bavail * free.f_frsize / 1e6,
        )
        raise Refused("bootstrap-folder-unusable", path=base_folder(), reason=reason)
    sweep(parent)
    if "--json" not in sys.argv[1:]:
        sys.stderr.write("Unpacking sovctl into %s, once ...\n" % parent)
    fresh = tempfile.mkdtemp(prefix=".new-", dir=parent)
    try:
        fill(fresh, manifest, os.path.abspath(sys.argv[0]))
        if os.path.lexists(folder):
            old = tempfile.mkdtemp(prefix=".old-", dir=parent)
            os.rename(folder, os.path.join(old, "it"))
            shutil.rmtree(old, ignore_errors=True)
        os.rename(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def sweep(parent: str) -> None:
    """Remove what runs that were killed left behind, once nobody can still be at it."""
    import shutil
    import time

    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if name.startswith((".new-", ".old-")) and os.lstat(path).st_mtime < time.time() - 86400:
            shutil.rmtree(path, ignore_errors=True)


def fill(fresh: str, manifest: Dict[str, Any], archive: str) -> None:
    """Write the environment's files, each compared with its digest."""
    import zipfile

    os.makedirs(os.path.join(fresh, "bin"), 0o700)
    os.symlink(interpreter(), os.path.join(fresh, _INTERPRETER))
    with open(os.path.join(fresh, "pyvenv.cfg"), "wb") as file:
        file.write(configuration().encode("utf-8", "surrogateescape"))
    try:
        with zipfile.ZipFile(archive) as outer:
            for name in manifest["pythons"]["%d.%d" % sys.version_info[:2]]:
                with outer.open("wheels/" + name) as raw, zipfile.ZipFile(raw) as wheel:
                    for path, size, sha256, mode, member in manifest["wheels"][name]["files"]:
                        target = os.path.join(fresh, placed(path))
                        os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
                        with wheel.open(member or path[len("site/") :]) as source:
                            if copy(source, target, mode) != (size, sha256):
                                raise zipfile.BadZipFile("%s in %s" % (path, name))
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        reason = "What it holds is not what was put in: %s." % error
        raise Refused("bootstrap-damaged", path=archive, reason=reason)


def copy(source: Any, target: str, mode: int) -> Tuple[int, str]:
    """Copy a stream into a new file; return its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        while True:
            part = source.read(1 << 20)
            if not part:
                return size, digest.hexdigest()
            digest.update(part)
            size += len(part)
            file.write(part)


if __name__ == "__main__":
    main()
