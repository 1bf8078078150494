"""Make a release's virtual environment on a host. Only Python's own library; run as root.

``install_runtime.py RELEASE CACHE``

The same as :mod:`appliance.install.runtime` does on one machine, for a host that has nothing yet:
``uv`` comes out of its own wheel in the release, gets no index, no proxy and no configuration, runs
in a network namespace without any interface, and must find every file's hash in the requirements.
The mark ``venv/.complete`` is written last and holds the digest of those; a half made environment
is removed and made again. One at a time: whom a silent link lost goes on, and is waited for.
"""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

_ENVIRONMENT = re.compile(r"(\d{1,2}) (3\.\d{1,2}) ([a-z0-9]{1,32}) ([a-z0-9_]{1,32}) (cpu|cuda)")


def requirements(release, manifest, machine, cuda):
    """The requirements for this host: as :func:`appliance.manifests.environment.choose` picks.

    ``machine`` is (python, system, machine). Exits if the release has none for it.
    """
    found = []
    for artefact in manifest["artefacts"]:
        for key, value in artefact.get("attributes", {}).items():
            match = _ENVIRONMENT.fullmatch(value)
            if artefact["kind"] == "wheelhouse" and key.startswith("environment.") and match:
                rank, python, system, arch, accelerator = match.groups()
                name = key.partition(".")[2]
                found.append(((int(rank), name), (python, system, arch), accelerator))
    found.sort()
    if not found:
        return release / "wheelhouse/requirements.lock"
    fitting = [one for one in found if one[1] == machine and (cuda or one[2] == "cpu")]
    fitting.sort(key=lambda one: cuda and one[2] != "cuda")
    if not fitting:
        sys.exit(f"the release has no runtime for {' '.join(machine)}")
    return release / f"wheelhouse/requirements-{fitting[0][0][1]}.lock"


def unpack_uv(release, folder):
    """uv's program, out of its wheel. Exits unless there is exactly one."""
    wheels = list((release / "wheelhouse").glob("uv-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"{len(wheels)} wheels of uv in {release / 'wheelhouse'}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = [n for n in wheel.namelist() if re.fullmatch(r"uv-[^/]+\.data/scripts/uv", n)]
        if len(inside) != 1:
            sys.exit(f"no uv in {wheels[0].name}")
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "uv-program"
        with wheel.open(inside[0]) as source, program.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    program.chmod(0o755)
    return program


def run(command, cache):
    """Run uv without a network; exits with the end of what it said if it fails."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(cache),
        "TMPDIR": str(cache),
        "LC_ALL": "C.UTF-8",
        "UV_CACHE_DIR": str(cache / "uv"),
        "UV_OFFLINE": "1",
        "UV_NO_CONFIG": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_PYTHON_PREFERENCE": "only-system",
    }
    alone = ["unshare", "--net", "--", *map(str, command)]
    done = subprocess.run(
        alone, env=environment, capture_output=True, text=True, cwd="/", check=False,
        close_fds=False,  # it holds the lock too, and may outlive us
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit("\n".join((done.stdout + done.stderr).strip().splitlines()[-12:]))


def main(release, cache):
    """Do it."""
    os.umask(0o022)
    manifest = json.loads((release / "bundle.json").read_bytes())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    cuda = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    machine = (python, platform.system().lower(), platform.machine())
    lock = requirements(release, manifest, machine, cuda)
    venv = release / "venv"
    alone = cache.with_name("runtime.lock").open("w")
    os.set_inheritable(alone.fileno(), True)
    fcntl.flock(alone, fcntl.LOCK_EX)
    if (venv / ".complete").exists():
        return  # by the one we waited for
    if venv.exists():
        shutil.rmtree(venv)
    uv = unpack_uv(release, cache)
    base = Path(sys.executable).resolve()
    run([uv, "venv", "--no-project", "--python", base, venv], cache)
    run(
        [
            uv, "pip", "install", "--python", venv / "bin/python",
            "--no-index", "--find-links", release / "wheelhouse",
            "--no-deps", "--require-hashes", "--no-build", "--strict",
            "--link-mode", "hardlink", "--compile-bytecode", "--requirements", lock,
        ],
        cache,
    )  # fmt: skip
    subprocess.run(["sync", "--file-system", str(venv)], check=False)
    fresh = venv / ".complete.new"
    with fresh.open("w", encoding="ascii") as file:
        file.write(hashlib.sha256(lock.read_bytes()).hexdigest())
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(venv / ".complete")
    shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
