"""What a host is like, as one line of JSON: a program that is sent there, not a room of ours.

    (cat host_facts.py; echo 'main("{}")') | ssh host python3 -

The host has a Python and nothing else, perhaps an old one: this file parses on Python 3.6 and uses
the standard library only. It changes nothing. The one file it writes, to measure a disk, is
unlinked as soon as it is open, so that not even a kill leaves it behind.

Every fact is read in a thread of its own. One that cannot be read is null, one that is not there in
time (a dead NFS server, a GPU that does not answer) is null as well, and ``unknown`` says why, by
the fact's name; a folder says it in its own place. The others are not held up: the program ends
within ``deadline_s`` seconds of its start. Its last line is
``sovctl-facts {…}``, whatever a login script printed before. Numbers are whole: bytes,
milliseconds, Mbit/s.

What may be asked for (all optional):

    folder       the site's folder: what is installed there, and where the disk is measured
    folders      other folders whose file systems matter
    write_bytes  how much to write for the measurement (at most 64 MiB, 0: none)
    connect      [[name, address, port], …] to try to reach over TCP
    name_servers addresses to ask for the root's name servers
    deadline_s   seconds the whole may take
"""

import ctypes
import errno
import fcntl
import glob
import ipaddress
import json
import os
import platform
import pwd
import re
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

MARK = "sovctl-facts "
MOST_BYTES = 64 << 20  # written for the measurement, at the most
_DEADLINE_S = 8.0
_COMMAND_S = 5.0
_CONNECT_S = 2.0
_WRITE_S = 3.0
_LIMIT = 1 << 20  # characters read of any file or command
_MOST_BLOBS = 50000
_BLOB_PREFIX = 16  # hexadecimal digits of a digest: enough to know it by, a quarter of the size

# Programs that take the GPU, the firewall, the clock or the ports for themselves, and our own.
SERVICES = (
    "docker", "containerd", "podman", "kubelet", "k3s", "k3s-agent", "microk8s", "slurmd",
    "ufw", "firewalld", "nftables", "netfilter-persistent", "iptables", "fail2ban",
    "chrony", "chronyd", "ntp", "ntpsec", "openntpd", "systemd-timesyncd",
    "systemd-resolved", "dnsmasq", "named", "unattended-upgrades",
    "nvidia-fabricmanager", "nvidia-persistenced", "nginx", "prometheus", "apparmor",
    "sovctl-ray", "sovctl-serve", "sovctl-gateway", "sovctl-relay", "sovctl-egress",
)  # fmt: skip
PACKAGES = (
    "docker.io", "docker-ce", "containerd", "containerd.io", "podman", "kubelet", "k3s", "cri-o",
    "ufw", "firewalld", "iptables-persistent", "ntp", "ntpsec", "openntpd", "chrony", "nftables",
    "python3-ray", "slurmd", "nvidia-driver", "nvidia-open", "nvidia-kernel-dkms", "cuda-drivers",
    "nfs-common",
)  # fmt: skip
PROCESSES = ("raylet", "gcs_server", "dockerd", "containerd", "kubelet", "k3s", "nebula")

Asked = Dict[str, Any]

_LATE = "not in time"


# --- reading, with bounds -----------------------------------------------------------------------


def _read(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LIMIT)
    except (OSError, ValueError):
        return None


def _line(path: str) -> Optional[str]:
    text = _read(path)
    return text.strip("\0 \n") if text is not None else None


def _number(path: str) -> Optional[int]:
    text = _line(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _command(*argv: str) -> Optional[str]:
    """Standard output, whatever the status; None if it is not here or takes too long."""
    environment = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"}
    try:
        done = subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment, timeout=_COMMAND_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout[:_LIMIT].decode("utf-8", "replace")


def _why(error: BaseException) -> str:
    """The reason in a few words, for whoever looks at this host next."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or "%s: %s" % (type(error).__name__, error)


# --- the machine and its system -----------------------------------------------------------------


def _user(_asked: Asked) -> "Dict[str, Any]":
    uid = os.geteuid()
    try:
        name: Optional[str] = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = None
    return {"name": name, "uid": uid}


def _identity(_asked: Asked) -> "Dict[str, Any]":
    return {
        "hostname": socket.gethostname(),
        "machine_id": _line("/etc/machine-id"),
        "boot_id": _line("/proc/sys/kernel/random/boot_id"),
    }


def _system(_asked: Asked) -> "Dict[str, Any]":
    text = _read("/etc/os-release") or _read("/usr/lib/os-release") or ""
    fields = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', text, re.M))
    return {
        "id": fields.get("ID"),
        "version": fields.get("VERSION_ID"),
        "codename": fields.get("VERSION_CODENAME"),
        "name": fields.get("PRETTY_NAME"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "time_zone": os.path.realpath("/etc/localtime").partition("zoneinfo/")[2] or None,
    }


def _cpu(_asked: Asked) -> "Dict[str, Any]":
    text = _read("/proc/cpuinfo") or ""
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "model": model.group(1) if model else None,
        "flags": flags.group(1).split() if flags else None,
    }


def _memory(_asked: Asked) -> "Dict[str, Any]":
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo") or "", re.M))

    def size(name: str) -> Optional[int]:
        return int(sizes[name]) * 1024 if name in sizes else None

    limit = _line("/sys/fs/cgroup/memory.max")
    return {
        "total": size("MemTotal"),
        "available": size("MemAvailable"),
        "swap": size("SwapTotal"),
        "limit": int(limit) if limit and limit.isdigit() else None,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    }


def _systemd(_asked: Asked) -> "Dict[str, Any]":
    version = re.match(r"systemd (\d+)", _command("systemctl", "--version") or "")
    failed = _command("systemctl", "list-units", "--failed", "--plain", "--no-legend") or ""
    return {
        "first": _line("/proc/1/comm"),
        "version": int(version.group(1)) if version else None,
        "state": (_command("systemctl", "is-system-running") or "").strip() or None,
        "failed": [line.split()[0] for line in failed.splitlines() if line.split()][:50],
    }


def _services(_asked: Asked) -> "Optional[Dict[str, str]]":
    text = _command("systemctl", "is-active", *SERVICES)
    states = (text or "").split()
    if len(states) != len(SERVICES):
        return None
    return {name: state for name, state in zip(SERVICES, states) if state != "inactive"}


def _packages(_asked: Asked) -> "Optional[Dict[str, str]]":
    form = "${Package} ${db:Status-Abbrev} ${Version}\n"
    text = _command("dpkg-query", "-W", "-f", form, *PACKAGES)
    if text is None:
        return None
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "ii"}


def _processes(_asked: Asked) -> "List[Dict[str, Any]]":
    found = []
    for entry in glob.glob("/proc/[0-9]*/comm"):
        name = _line(entry)
        if name in PROCESSES:
            pid = entry.split("/")[2]
            found.append({"name": name, "program": _program(pid), "unit": _unit(pid)})
    return found[:50]


def _program(pid: str) -> Optional[str]:
    try:
        return os.readlink("/proc/%s/exe" % pid)
    except OSError:
        return None


def _unit(pid: str) -> Optional[str]:
    """The systemd service a process belongs to."""
    found = re.findall(r"([^/\n]+\.service)", _read("/proc/%s/cgroup" % pid) or "")
    return found[-1] if found else None


def _security(_asked: Asked) -> "Dict[str, Any]":
    enforcing = _number("/sys/fs/selinux/enforce")
    selinux = None if enforcing is None else ("enforcing" if enforcing else "permissive")
    profiles = _read("/sys/kernel/security/apparmor/profiles")
    return {
        "selinux": selinux,
        "apparmor": (_line("/sys/module/apparmor/parameters/enabled") or "N") == "Y",
        "profiles": None if profiles is None else profiles.count("(enforce)"),
        "secure_boot": _secure_boot(),
    }


def _secure_boot() -> Optional[bool]:
    for path in glob.glob("/sys/firmware/efi/efivars/SecureBoot-*"):
        try:
            with open(path, "rb") as file:
                return file.read(5)[4:] == b"\1"  # four bytes of attributes come first
        except OSError:
            return None
    return None


def _python(_asked: Asked) -> "Dict[str, Any]":
    places = ("/usr/bin", "/usr/local/bin")
    names = [os.path.basename(p) for place in places for p in glob.glob(place + "/python3.*")]
    versions = {name[6:] for name in names if re.match(r"python3\.\d+$", name)}
    return {"running": platform.python_version(), "versions": sorted(versions)}


# --- the network --------------------------------------------------------------------------------


def _interfaces(_asked: Asked) -> "List[Dict[str, Any]]":
    """By system calls: in a container, /sys may show the network of the machine around it."""
    addresses: Dict[str, List[str]] = {}
    text = _command("ip", "-o", "addr", "show")
    for name, address in re.findall(r"^\d+: (\S+)\s+inet6? (\S+)", text or "", re.M):
        addresses.setdefault(name.partition("@")[0], []).append(address)
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _number_of, name in sorted(socket.if_nameindex())[:200]:
            flags = _asked_of(control, _SIOCGIFFLAGS, name)
            up, running = (flags or 0) & 0x1, (flags or 0) & 0x40
            found.append(
                {
                    "name": name,
                    "state": None if flags is None else "up" if up and running else "down",
                    "mtu": _asked_of(control, _SIOCGIFMTU, name),
                    "speed": _speed(control, name),
                    "addresses": addresses.get(name, []) if text is not None else None,
                }
            )
    return found


_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_SIOCETHTOOL = 0x8946


def _asked_of(control: socket.socket, request: int, name: str) -> Optional[int]:
    """A number of netdevice(7) about an interface."""
    asked = struct.pack("16sI20x", name.encode()[:15], 0)
    try:
        answer = fcntl.ioctl(control.fileno(), request, asked)
    except OSError:
        return None
    number = struct.unpack_from("=I", answer, 16)[0]
    return number & 0xFFFF if request == _SIOCGIFFLAGS else int(number)


def _speed(control: socket.socket, name: str) -> Optional[int]:
    """Mbit/s, from ETHTOOL_GSET (struct ethtool_cmd: low half at 12, high half at 28)."""
    command = ctypes.create_string_buffer(struct.pack("=I", 1), 64)
    asked = struct.pack("16sP16x", name.encode()[:15], ctypes.addressof(command))
    try:
        fcntl.ioctl(control.fileno(), _SIOCETHTOOL, asked)
    except OSError:
        return None
    low, high = (struct.unpack_from("=H", command, place)[0] for place in (12, 28))
    speed = high << 16 | low
    return int(speed) if 0 < speed < 0xFFFF0000 and speed != 0xFFFF else None


def _routes(_asked: Asked) -> "List[Dict[str, Any]]":
    return (list(_routes4()) + list(_routes6()))[:500]


def _routes4() -> "Iterator[Dict[str, Any]]":
    for line in (_read("/proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) < 8 or not int(words[3], 16) & 1:
            continue
        to, via, mask = (_address4(words[n]) for n in (1, 2, 7))
        network = ipaddress.ip_network("%s/%s" % (to, mask), strict=False)
        yield {
            "to": str(network),
            "via": None if via == "0.0.0.0" else via,
            "device": words[0],
        }


def _routes6() -> "Iterator[Dict[str, Any]]":
    for line in (_read("/proc/net/ipv6_route") or "").splitlines():
        words = line.split()
        if len(words) < 10 or int(words[8], 16) & 0x200 or words[9] == "lo":
            continue
        to = ipaddress.IPv6Address(int(words[0], 16))
        via = ipaddress.IPv6Address(int(words[4], 16))
        yield {
            "to": "%s/%d" % (to, int(words[1], 16)),
            "via": None if int(via) == 0 else str(via),
            "device": words[9],
        }


def _address4(word: str) -> str:
    return socket.inet_ntop(socket.AF_INET, struct.pack("=I", int(word, 16)))


def _address(word: str) -> str:
    """An address of ``/proc/net/tcp`` (8 digits) or ``tcp6`` (32), words in the host's order."""
    if len(word) == 8:
        return _address4(word)
    words = [int(word[n : n + 8], 16) for n in range(0, 32, 8)]
    return socket.inet_ntop(socket.AF_INET6, struct.pack("=4I", *words))


def _ports(_asked: Asked) -> "List[Dict[str, Any]]":
    """Sockets that others can reach: TCP that listens, UDP that is bound."""
    found = []
    for name, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in (_read("/proc/net/" + name) or "").splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == state:
                where, _colon, number = words[1].partition(":")
                found.append((name[:3], _address(where), int(number, 16), words[9]))
    owners = _owners({inode for _name, _host, _port, inode in found})
    listed = []
    for protocol, address, port, inode in found[:2000]:
        pid = owners.get(inode)
        listed.append(
            {
                "protocol": protocol,
                "address": address,
                "port": port,
                "process": _line("/proc/%s/comm" % pid) if pid else None,
                "program": _program(pid) if pid else None,
                "unit": _unit(pid) if pid else None,
            }
        )
    return listed


def _owners(inodes: "set[str]") -> "Dict[str, str]":
    """Which process has which socket; others' processes show theirs to root only."""
    owners: Dict[str, str] = {}
    for folder in glob.glob("/proc/[0-9]*/fd"):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            try:
                target = os.readlink(folder + "/" + name)
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in inodes:
                owners.setdefault(target[8:-1], folder.split("/")[2])
    return owners


def _firewall(_asked: Asked) -> "Optional[List[str]]":
    text = _command("nft", "list", "tables")
    if text is None or os.geteuid() != 0:
        return None
    return re.findall(r"^table (\S+ \S+)$", text, re.M)[:200]


def _connections(asked: Asked) -> "List[Dict[str, Any]]":
    found: List[Dict[str, Any]] = []

    def attempt(name: str, address: str, port: int) -> None:
        outcome, segment = _connect(address, port)
        found.append(
            {"name": name, "address": address, "port": port, "outcome": outcome, "segment": segment}
        )

    targets = [(str(name), str(at), int(port)) for name, at, port in asked.get("connect", [])[:200]]
    threads = [threading.Thread(target=attempt, args=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_CONNECT_S + 1)
    return list(found)


def _connect(address: str, port: int) -> "Tuple[str, Optional[int]]":
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as stream:
            stream.settimeout(_CONNECT_S)
            stream.connect((address, port))
            return "open", stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    except socket.timeout:
        return "timeout", None
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            return "refused", None
        if error.errno in (errno.EPERM, errno.EACCES):
            return "forbidden", None
        return "unreachable", None


def _dns(asked: Asked) -> "Dict[str, Any]":
    servers = re.findall(r"^nameserver\s+(\S+)", _read("/etc/resolv.conf") or "", re.M)
    wanted = asked.get("name_servers", [])[:16]
    return {"servers": servers[:16], "answers": {server: _asks(server) for server in wanted}}


def _asks(server: str) -> Optional[int]:
    """Milliseconds a name server takes to say who serves the root; None if it does not."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    question = b"\x5a\x5a\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x00\x00\x02\x00\x01"
    begun = time.monotonic()
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(1.5)
            datagrams.connect((server, 53))
            datagrams.send(question)
            if datagrams.recv(4096)[:2] != question[:2]:
                return None
    except OSError:
        return None
    return int((time.monotonic() - begun) * 1000)


def _own_name(_asked: Asked) -> "Dict[str, Any]":
    """Whether the host knows itself by name, and how long it takes to say so."""
    begun = time.monotonic()
    try:
        socket.getaddrinfo(socket.gethostname(), None)
        found = True
    except OSError:
        found = False
    return {"found": found, "milliseconds": int((time.monotonic() - begun) * 1000)}


# --- clock and disks ----------------------------------------------------------------------------


def _clock(_asked: Asked) -> "Dict[str, Any]":
    """``synchronised``: what the kernel was told by whoever sets the clock. Only reads."""
    synchronised: Optional[bool] = None
    buffer = ctypes.create_string_buffer(512)  # struct timex, modes 0: nothing is set
    try:
        state = ctypes.CDLL(None).adjtimex(buffer)
        if state >= 0:
            synchronised = not struct.unpack_from("@i", buffer, 40)[0] & 0x40
    except (OSError, AttributeError):
        pass
    return {"milliseconds": int(time.time() * 1000), "synchronised": synchronised}


def _existing(path: str) -> str:
    while not os.path.exists(path) and path != "/":
        path = os.path.dirname(path)
    return os.path.realpath(path)


def _folder(path: str) -> "Dict[str, Any]":
    here = _existing(path)
    status = os.statvfs(here)
    mount, kind, options, source = "/", "", "", ""
    for line in (_read("/proc/self/mountinfo") or "").splitlines():
        words = line.split()
        if len(words) < 10 or "-" not in words:
            continue
        point = re.sub(r"\\(\d{3})", lambda m: chr(int(m.group(1), 8)), words[4])
        if here == point or here.startswith(point.rstrip("/") + "/"):
            after = words.index("-")
            if len(point) >= len(mount):
                mount, kind, source = point, words[after + 1], words[after + 2]
                options = words[5] + "," + words[after + 3]
    return {
        "asked": path,
        "exists": os.path.exists(path),
        "mount": mount,
        "type": kind,
        "source": source,
        "options": sorted(set(options.split(","))),
        "device": os.stat(here).st_dev,
        "free": status.f_bavail * status.f_frsize,
        "block": status.f_frsize,
        "inodes": status.f_favail if status.f_files else None,
    }


def _folders(asked: Asked) -> "List[Dict[str, Any]]":
    """Each in a thread: a dead file server holds up its own folder only. What is not known of one
    says why."""
    paths = [asked.get("folder", "/"), "/", "/tmp", "/var/tmp", "/dev/shm"]
    paths += asked.get("folders", [])[:16]
    found = {path: {"asked": path, "unknown": _LATE} for path in paths}

    def look(path: str) -> None:
        try:
            found[path] = _folder(path)
        except Exception as error:
            found[path] = {"asked": path, "unknown": _why(error)}

    threads = [threading.Thread(target=look, args=(path,), daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_CONNECT_S)
    return list(found.values())


def _disk(asked: Asked) -> "Optional[Dict[str, Any]]":
    """Write and fsync a file that has no name."""
    wanted = min(int(asked.get("write_bytes", 0)), MOST_BYTES)
    if wanted <= 0 or "folder" not in asked:
        return None
    chunk = os.urandom(1 << 20)
    written = 0
    with tempfile.TemporaryFile(dir=_existing(asked["folder"]), buffering=0) as file:
        begun = time.monotonic()
        while written < wanted and time.monotonic() - begun < _WRITE_S:
            written += file.write(chunk[: wanted - written])
        os.fsync(file.fileno())
        return {"bytes": written, "milliseconds": int((time.monotonic() - begun) * 1000)}


# --- accelerators -------------------------------------------------------------------------------


def _gpu(_asked: Asked) -> "Dict[str, Any]":
    devices = switches = 0
    for folder in glob.glob("/sys/bus/pci/devices/*"):
        if _line(folder + "/vendor") == "0x10de":
            kind = _line(folder + "/class") or ""
            devices += kind.startswith(("0x0300", "0x0302"))
            switches += kind.startswith("0x0680")
    fields = "name,memory.total,compute_cap,mig.mode.current"
    text = _command("nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits")
    rows = [[word.strip() for word in line.split(",")] for line in (text or "").splitlines()]
    cards = [
        {
            "name": row[0],
            "memory": int(row[1]) << 20 if row[1].isdigit() else None,
            "compute": row[2],
            "mig": row[3] == "Enabled",
        }
        for row in rows
        if len(row) == 4
    ]
    cuda = re.search(r"CUDA Version: (\d+\.\d+)", _command("nvidia-smi") or "") if cards else None
    return {
        "devices": devices,
        "switches": switches,
        "cards": cards[:64],
        "driver": _line("/sys/module/nvidia/version"),
        "cuda": cuda.group(1) if cuda else None,
        "nouveau": os.path.isdir("/sys/module/nouveau"),
    }


# --- what is installed --------------------------------------------------------------------------


def _installed(asked: Asked) -> "Optional[Dict[str, Any]]":
    folder = asked.get("folder")
    if not folder or not os.path.isdir(folder):
        return None
    try:
        node = json.loads(_read(folder + "/node.json") or "null")
    except ValueError:
        node = None
    node = node if isinstance(node, dict) else {}
    releases = []
    for place in sorted(glob.glob(glob.escape(folder) + "/releases/*"))[:100]:
        if not os.path.islink(place):
            complete = os.path.exists(place + "/venv/.complete")
            releases.append({"name": os.path.basename(place), "runtime": complete})
    try:
        current: Optional[str] = os.path.basename(os.readlink(folder + "/current"))
    except OSError:
        current = None
    return {
        "site": node.get("site"),
        "host": node.get("host"),
        "current": current,
        "releases": releases,
        "blobs": _blobs(folder + "/store/sha256"),
    }


def _blobs(store: str) -> "Optional[List[str]]":
    names: List[str] = []
    try:
        shards = os.listdir(store)
    except OSError:
        return []
    for shard in shards:
        try:
            names += [name[:_BLOB_PREFIX] for name in os.listdir(store + "/" + shard)]
        except OSError:
            continue
        if len(names) > _MOST_BLOBS:
            return None
    return sorted(names)


# --- all of it ----------------------------------------------------------------------------------

FACTS: Dict[str, Callable[[Asked], Any]] = {
    "user": _user, "identity": _identity, "system": _system, "cpu": _cpu, "memory": _memory,
    "systemd": _systemd, "services": _services, "packages": _packages, "processes": _processes,
    "security": _security, "python": _python, "interfaces": _interfaces, "routes": _routes,
    "ports": _ports, "firewall": _firewall, "connections": _connections, "dns": _dns,
    "own_name": _own_name, "clock": _clock, "folders": _folders, "disk": _disk, "gpu": _gpu,
    "installed": _installed,
}  # fmt: skip


def collect(asked: Asked) -> "Dict[str, Any]":
    """Every fact by name; null where it could not be read, or not in time, and then why."""
    deadline = time.monotonic() + float(asked.get("deadline_s", _DEADLINE_S))
    facts: Dict[str, Any] = dict.fromkeys(FACTS)
    unknown = dict.fromkeys(FACTS, _LATE)

    def learn(name: str) -> None:
        try:
            facts[name] = FACTS[name](asked)
            del unknown[name]
        except Exception as error:  # a host can be odd in ways that nobody foresaw
            unknown[name] = _why(error)

    threads = [threading.Thread(target=learn, args=(name,), daemon=True) for name in FACTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return {**facts, "unknown": dict(unknown)}


def main(asked: str) -> None:
    """Print the facts and end, without waiting for what is late."""
    facts = collect(json.loads(asked))
    sys.stdout.write("\n" + MARK + json.dumps(facts, separators=(",", ":")) + "\n")
    sys.stdout.flush()
    os._exit(0)
