"""``sovctl.pyz``: the same bytes for the same wheels, and what it refuses before it runs anything.

The archive here carries one tiny wheel that stands for ``sovctl``; the real one runs on a bare
Debian in ``tests/integration``.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from appliance.bundle import bootstrap, bootstrap_main
from appliance.bundle.bootstrap import Prepared
from appliance.bundle.cache import BuildCache
from appliance.errors import ApplianceError, BootstrapDamaged

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
SAYS = "import sys; print('ran', sys.argv[1:], sys.prefix, sys.path)\n"
MACHINE = f"{os.uname().sysname.lower()} {os.uname().machine}"


def wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), text)
    return path


def prepared(folder: Path, python: str = HERE, machine: str = MACHINE) -> Prepared:
    own = wheel(
        folder,
        "appliance",
        {
            "appliance/__init__.py": "",
            "appliance/cli/__init__.py": "",
            "appliance/cli/main.py": SAYS,
            "appliance-1.data/scripts/tool": "#!/bin/sh\n",
            "appliance-1.data/purelib/more.py": "X = 1\n",
        },
    )
    return Prepared(machine, {own.name: own}, {python: (own.name,)})


class Stick:
    """A ``sovctl.pyz`` and the user's cache folder it unpacks into."""

    def __init__(self, folder: Path, made: Prepared) -> None:
        self.cache = folder / "user" / "cache"
        self.cache.mkdir(parents=True)
        self.pyz = bootstrap.write(made, folder / "s.pyz", BuildCache(folder / "build")).path

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, self.pyz, *arguments],
            env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(self.cache), **settings},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def unpacked(self) -> Path:
        (folder,) = (self.cache / "sovctl" / "pyz").glob("*/cp*")
        return folder


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    """A folder that the check of who could replace it accepts."""
    for folder in (tmp_path, *tmp_path.parents):
        state = folder.stat()
        if state.st_mode & 0o022 and not state.st_mode & 0o1000:
            pytest.skip(f"others can write to {folder}")
    return tmp_path


@pytest.fixture
def stick(safe: Path) -> Stick:
    return Stick(safe, prepared(safe))


def test_it_parses_on_a_python_that_is_too_old() -> None:
    source = Path(bootstrap_main.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))


def test_the_same_wheels_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        written.append(Stick(folder, prepared(folder)).pyz.read_bytes())
        os.utime(folder / "appliance-1-py3-none-any.whl", (1, 1))
    assert written[0] == written[1]


def test_it_unpacks_once_and_runs_isolated_in_an_environment_of_its_own(stick: Stick) -> None:
    first = stick.run("plan", "x y", PYTHONPATH="/planted")
    assert first.stdout.startswith("ran ['plan', 'x y'] " + str(stick.unpacked))
    assert "/planted" not in first.stdout
    assert "once" in first.stderr
    made = (stick.unpacked / "pyvenv.cfg").stat().st_ino
    assert stick.run("--json").stderr == ""
    assert (stick.unpacked / "pyvenv.cfg").stat().st_ino == made
    files = [p for p in stick.unpacked.rglob("*") if not p.is_symlink() and "__py" not in str(p)]
    modes = {path.stat().st_mode & 0o077 for path in files}
    assert modes == {0}
    assert os.access(stick.unpacked / "bin" / "tool", os.X_OK)
    assert list(stick.unpacked.glob("lib/*/site-packages/more.py"))


def test_runs_that_start_at_once_share_one_environment(stick: Stick) -> None:
    command = [sys.executable, stick.pyz]
    settings = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(stick.cache)}
    runs = [
        subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _number in range(6)
    ]
    done = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 6
    assert sum(b"once" in said for _out, said in done) == 1
    assert [path.name[:2] for path in stick.unpacked.parent.iterdir()] == ["cp"]


def test_a_run_killed_while_it_unpacks_leaves_nothing_that_is_used(stick: Stick) -> None:
    assert stick.run().returncode == 0
    whole, half = stick.unpacked, stick.unpacked.with_name(".new-half")
    whole.rename(half)
    os.utime(half, (1, 1))
    assert stick.run().returncode == 0
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]


@pytest.mark.parametrize("harm", ["shorter", "missing", "more", "link", "open", "interpreter"])
def test_what_is_not_as_it_was_unpacked_is_made_anew(stick: Stick, harm: str) -> None:
    assert stick.run().returncode == 0
    main = next(stick.unpacked.glob("lib/*/site-packages/appliance/cli/main.py"))
    if harm == "shorter":
        main.write_text("print('planted')\n")
    elif harm == "missing":
        main.unlink()
    elif harm == "more":
        (main.parents[2] / "sitecustomize.py").write_text("print('planted')\n")
    elif harm == "link":
        (main.parents[2] / "click").symlink_to("/tmp")
    elif harm == "open":
        stick.unpacked.chmod(0o770)
    else:
        python = stick.unpacked / "bin" / "python"
        python.unlink()
        python.symlink_to("/bin/false")
    again = stick.run()
    assert again.returncode == 0
    assert again.stdout.startswith("ran")
    assert "planted" not in again.stdout


def test_a_folder_that_others_can_write_to_is_refused(stick: Stick) -> None:
    stick.cache.chmod(0o777)
    refused = stick.run("--json")
    error = json.loads(refused.stderr)["error"]
    assert (refused.returncode, error["code"]) == (4, "bootstrap-folder-unusable")
    assert str(stick.cache) in error["why"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to somebody else")
def test_a_folder_of_somebody_else_is_refused(stick: Stick) -> None:
    """What 'sudo ./sovctl.pyz' with the caller's HOME would run into."""
    os.chown(stick.cache, 12345, 12345)
    assert "bootstrap-folder-unusable" in stick.run().stderr
    assert not list(stick.cache.rglob("cp*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
@pytest.mark.parametrize(
    ("options", "says"), [("size=64k", "MB are free"), ("ro", "Read-only"), ("noexec", "noexec")]
)
def test_a_folder_that_will_not_do_is_said_and_nothing_is_left(
    safe: Path, options: str, says: str
) -> None:
    folder = safe / "w"
    folder.mkdir()
    body = {"appliance/__init__.py": "#" * 200_000, "appliance/cli/main.py": SAYS}
    own = wheel(folder, "appliance", body)
    stick = Stick(safe, Prepared(MACHINE, {own.name: own}, {HERE: (own.name,)}))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", stick.cache], check=False
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        refused = stick.run()
        assert refused.returncode == 4
        assert "bootstrap-folder-unusable" in refused.stderr
        assert says in refused.stderr
        assert not [p for p in stick.cache.rglob("*") if p.is_file()]
    finally:
        subprocess.run(["umount", stick.cache], check=True)


@pytest.mark.parametrize(("python", "machine"), [("3.99", MACHINE), (HERE, "linux riscv64")])
def test_another_python_or_machine_is_named(safe: Path, python: str, machine: str) -> None:
    refused = Stick(safe, prepared(safe, python, machine)).run()
    assert refused.returncode == 4
    assert "bootstrap-python-unfit" in refused.stderr
    assert (python if python != HERE else machine) in refused.stderr


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.10"])
def test_a_real_old_python_says_so(stick: Stick, version: str) -> None:
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = [*versions.glob(f"{version}.*/bin/python"), shutil.which(f"python{version}")]
    if not found[0]:
        pytest.skip(f"no Python {version} is installed")
    done = subprocess.run([found[0], stick.pyz], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert f"cpython {version}" in done.stderr


def test_a_flipped_bit_in_a_wheel_is_found_before_it_runs(stick: Stick) -> None:
    data = stick.pyz.read_bytes().replace(SAYS.encode(), SAYS.replace("ran", "raN").encode())
    stick.pyz.write_bytes(data)
    refused = stick.run()
    assert refused.returncode == 3
    assert "bootstrap-damaged" in refused.stderr
    assert not list(stick.cache.rglob("*.py"))


@pytest.mark.parametrize("member", ["../../../up.py", "/etc/up.py", "a/../../up.py"])
def test_a_wheel_that_leaves_its_folder_is_refused_at_build(tmp_path: Path, member: str) -> None:
    own = wheel(tmp_path, "bad", {member: ""})
    with pytest.raises(BootstrapDamaged):
        bootstrap.manifest_of(Prepared(MACHINE, {own.name: own}, {HERE: (own.name,)}))


def test_its_errors_are_those_of_the_catalogue(stick: Stick) -> None:
    with zipfile.ZipFile(stick.pyz) as archive:
        errors = json.loads(archive.read("manifest.json"))["errors"]
    for code, error in errors.items():
        known = ApplianceError.catalogue[code]
        assert (known.what, known.why, known.fix) == (error["what"], error["why"], error["fix"])
