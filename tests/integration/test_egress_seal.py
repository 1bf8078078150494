"""The real seal, as whoever runs the tests and, for root, as ``nobody`` too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import appliance
from appliance.egress import live, seal
from appliance.egress.door import SOCKET_NAME
from appliance.errors import SealUnavailable
from appliance.layout import Home

CODE = Path(appliance.__file__).parent.parent
ATTACKS = Path(__file__).with_name("seal_attacks.py")
NOBODY = 65534


@dataclass(frozen=True)
class Person:
    """Who makes the seal, with which interpreter (nobody may not read root's)."""

    name: str
    prefix: tuple[str, ...]
    python: Path

    def run(self, spec: seal.SealSpec, **options: object) -> subprocess.CompletedProcess[str]:
        argv = [*self.prefix, *seal.command(spec)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CODE)}
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
            **options,
        )


def people() -> list[Person]:
    system = Path("/usr/bin/python3")
    found = [Person("me", (), Path(sys.executable))]
    if os.geteuid() == 0 and shutil.which("setpriv") and system.exists():
        become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        found.append(Person("nobody", become, system))
    return found


@pytest.fixture(params=people(), ids=lambda person: person.name)
def person(request: pytest.FixtureRequest) -> Person:
    person: Person = request.param
    try:
        seal.check_supported()
    except SealUnavailable as error:
        pytest.skip(str(error))
    if person.name == "nobody":
        probe = [*person.prefix, person.python, "-c", "import appliance.egress.inside"]
        answer = subprocess.run(probe, env={"PYTHONPATH": str(CODE)}, check=False)
        if answer.returncode != 0:
            pytest.skip("nobody cannot read this checkout, or the system's Python is too old")
    return person


@pytest.fixture
def home(person: Person) -> Iterator[Home]:
    """Under /tmp on purpose: the seal hides /tmp and must bring the installation back there."""
    folder = Path(tempfile.mkdtemp(prefix="seal-"))
    home = Home(folder / "an installation")
    seal.prepare_folders(home)
    home.secrets.mkdir()
    home.store.mkdir()
    (home.secrets / "ca.key").write_text("the authority's key")
    (home.secrets / "kept").write_text("kept")
    if person.name == "nobody":
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", folder], check=True)
    yield home
    shutil.rmtree(folder)


def spec_for(person: Person, home: Home, *command: str) -> seal.SealSpec:
    return seal.SealSpec(
        home=home,
        python=person.python,
        command=command,
        visible=(*seal.interpreter_paths(person.python), CODE),
        hidden=(home.secrets / "ca.key",),
        protected=(home.store, home.secrets),
        shm_bytes=64 << 20,
    )


@dataclass(frozen=True)
class Outside:
    """Servers outside, standing in for the Docker daemon and D-Bus."""

    paths: list[str]
    abstract: str


@pytest.fixture
def outside(home: Home) -> Iterator[Outside]:
    folders = [Path("/tmp"), home.root.parent]
    folders += [Path("/run")] if os.access("/run", os.W_OK) else []
    servers, paths = [], []
    for number, folder in enumerate(folders):
        path = str(folder / f"seal-test-{os.getpid()}-{number}.sock")
        servers.append(socket.socket(socket.AF_UNIX))
        servers[-1].bind(path)
        Path(path).chmod(0o666)
        servers[-1].listen()
        paths.append(path)
    abstract = f"seal-test-{os.getpid()}"
    servers.append(socket.socket(socket.AF_UNIX))
    servers[-1].bind("\0" + abstract)
    servers[-1].listen()
    yield Outside(paths, abstract)
    for server in servers:
        server.close()
    for path in paths:
        Path(path).unlink()


def test_nothing_gets_out(person: Person, home: Home, outside: Outside, tmp_path: Path) -> None:
    writes = [
        str(home.store / "x"),
        str(home.secrets / "kept"),
        "/etc/x",
        "/usr/x",
        "/run/x",
        "/var/x",
        "/dev/x",
        "/sys/kernel/x",
        str(CODE / "x"),
    ]
    orders = {
        "home": str(home.root),
        "hidden": str(home.secrets / "ca.key"),
        "sockets": outside.paths,
        "abstract": outside.abstract,
        "outer_pid": os.getpid(),
        "writes": [*writes, str(tmp_path / "x"), str(home.root.parent / "x")],
    }
    with socket.create_server(("127.0.0.1", 0)) as leaked:
        os.set_inheritable(leaked.fileno(), True)
        done = person.run(
            spec_for(person, home, str(ATTACKS), json.dumps(orders)),
            pass_fds=(leaked.fileno(),),
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads((home.run / "attacks.json").read_text())
    allowed = {name for name, outcome in seen["attacks"].items() if outcome == "done"}
    # nothing but the places meant for it; /tmp's neighbour is a folder of the private /tmp
    assert allowed == {"write home", "write tmp", "write shm"} | (
        {f"write {home.root.parent / 'x'}"} & allowed
    )
    assert not (home.root.parent / "x").exists()
    assert (home.tmp / "written").exists(), "/tmp inside is the installation's own"
    refusals = seen["attacks"]
    assert refusals["tcp"] == refusals["tcp6"] == refusals["udp"] == "ENETUNREACH"
    assert refusals["vsock"] == refusals["packet"] == refusals["alg"] == "EAFNOSUPPORT"
    assert refusals["io_uring"] == "ENOSYS"
    assert refusals["kill"] == "ESRCH"
    assert refusals["abstract socket"] == "ECONNREFUSED"
    assert all(refusals[f"socket {path}"] == "ENOENT" for path in outside.paths)
    assert (seen["pid"], seen["processes"]) == (1, [1])
    assert seen["descriptors"] == []
    assert (seen["hidden"], seen["readable"]) == ("", "kept")


def test_a_planted_module_does_not_run_before_the_seal(person: Person, home: Home) -> None:
    for name in ("json.py", "socket.py", "sitecustomize.py"):
        (home.root / name).write_text("raise SystemExit('planted')")
    done = person.run(spec_for(person, home, "-P", "-c", "print('sealed')"), cwd=home.root)
    assert (done.stdout, done.returncode) == ("sealed\n", 0), done.stderr


def test_the_evidence_says_what_the_kernel_says(person: Person, home: Home) -> None:
    report = "import json; from appliance.egress import live; from dataclasses import asdict; "
    report += "print(json.dumps(asdict(live.observe('self'))))"
    done = person.run(spec_for(person, home, "-c", report))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    evidence = json.loads((home.run / "seal.json").read_text())
    assert evidence | seen == evidence
    assert (seen["interfaces"], seen["routes"]) == (["lo"], [])
    assert (seen["seccomp"], seen["no_new_privileges"]) == (2, True)
    assert set(seen["capabilities"].values()) == {"0" * 16}
    assert seen["namespaces"]["net"] != Path("/proc/self/ns/net").stat().st_ino
    assert evidence["file_system"]["not_read_only"] == []


def test_probes_inside_are_blocked_and_their_control_is_not(person: Person, home: Home) -> None:
    probe = "import json; from appliance.cluster.prove import as_json, probe_here; "
    probe += "from appliance.egress.verdict import judge; "
    probe += "print(json.dumps(judge({'here': probe_here()}).as_json()))"
    done = person.run(spec_for(person, home, "-c", probe))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == "closed"


def test_probes_send_nothing_where_there_is_no_seal() -> None:
    """In a namespace with a second interface, where a packet could be seen leaving."""
    probe = "from appliance.egress.probe import Listener, probe_all; "
    probe += "print([result.outcome for result in probe_all(Listener('', 0))])"
    script = (
        "set -e; ip link set lo up; ip link add out type veth peer name far; "
        "ip link set far up; ip link set out up; ip addr add 192.0.2.2/24 dev out; "
        "ip route add default via 192.0.2.9; sysctl -qw net.ipv6.conf.out.disable_ipv6=1; "
        "sysctl -qw net.ipv6.conf.far.disable_ipv6=1; sleep 0.1; "
        "sent() { grep out: /proc/net/dev | tr -s ' ' | cut -d' ' -f12; }; before=$(sent); "
        f'{sys.executable} -c "{probe}"; test "$(sent)" = "$before"; echo silent'
    )
    made = ["unshare", "-rnm", "--mount-proc", "-pf", "sh", "-c", script]
    done = subprocess.run(made, capture_output=True, text=True, check=False)
    if "Unknown device type" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"no second interface can be made here: {done.stderr}")
    assert done.stdout.split("\n")[:2] == ["['not-sealed']", "silent"], done.stderr


SERVER = """
import os, socket
os.chdir({run!r})
with socket.socket(socket.AF_UNIX) as server:
    server.bind({name!r})
    server.listen()
    while True:
        caller = server.accept()[0]
        heard = caller.recv(100)
        caller.sendall(heard[::-1])
        caller.close()
"""


@pytest.fixture
def door(person: Person, home: Home) -> Iterator[tuple[str, int]]:
    """A door before a sealed server that answers backwards; yields where it listens."""
    if person.name != "me":
        pytest.skip("the door is the same for everyone")
    code = SERVER.format(run=str(home.run), name=SOCKET_NAME)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        argv = [sys.executable, "-m", "appliance.egress.door", f"--listen-fd={number}"]
        argv += [f"--run={home.run}", "--", *seal.command(spec_for(person, home, "-c", code))]
        process = subprocess.Popen(argv, pass_fds=(number,), stdin=subprocess.DEVNULL)
        address = listener.getsockname()
    yield address
    for sealed in live.children(process.pid):
        os.kill(sealed, signal.SIGKILL)  # the server does not watch its input
    process.terminate()
    process.wait()


def ask(address: tuple[str, int], text: bytes) -> bytes:
    with socket.create_connection(address, 5) as caller:
        caller.sendall(text)
        caller.settimeout(5)
        answer = b""
        try:
            while chunk := caller.recv(100):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def wait_for(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + 20
    while ask(address, b"ping") != b"gnip":
        assert time.monotonic() < deadline, "the sealed server never answered"
        time.sleep(0.1)


def test_callers_reach_a_sealed_server_through_the_door(door: tuple[str, int], home: Home) -> None:
    wait_for(door)
    # A link put in the socket's place from inside must not lead callers elsewhere outside.
    with socket.socket(socket.AF_UNIX) as elsewhere:
        other = home.root.parent / "other.sock"
        elsewhere.bind(str(other))
        elsewhere.listen()
        (home.run / SOCKET_NAME).unlink()
        (home.run / SOCKET_NAME).symlink_to(other)
        assert ask(door, b"ping") == b""
