"""What the seal says of a machine that cannot hold it, and what it reads in /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.egress import live
from appliance.egress.seal import KernelSwitches, diagnose, interpreter_paths

FREE = {
    "apparmor_restricts": None,
    "max_user_namespaces": 9000,
    "unprivileged_clone": 1,
    "max_net_namespaces": 9000,
}


@pytest.mark.parametrize(
    ("switch", "value", "command"),
    [
        ("max_user_namespaces", 0, "sysctl -w user.max_user_namespaces=15000"),
        ("max_net_namespaces", 0, "sysctl -w user.max_net_namespaces=15000"),
        ("unprivileged_clone", 0, "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("apparmor_restricts", 1, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_the_remedy_names_the_switch(switch: str, value: int, command: str) -> None:
    error = diagnose("unshare: failed", KernelSwitches(**{**FREE, switch: value}))
    assert command in error.sentences()[2]


def test_an_unknown_reason_is_passed_on() -> None:
    assert "seccomp says no" in str(diagnose("seccomp says no", KernelSwitches(**FREE)))


ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
lo\t0000007F\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
"""
ROUTES_IPV6 = """{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo
fe800000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0
""".format(zero="0" * 32)


def test_routes_out_are_those_not_over_loopback() -> None:
    found = live.parse_routes(ROUTES, ROUTES_IPV6)
    assert found == ["00000000/00000000 via eth0", f"fe80{'0' * 28}/64 via eth0"]
    assert live.parse_routes("", "") == []


def test_interfaces_are_read_past_the_heading() -> None:
    text = "Inter-| Receive\n face |bytes\n    lo: 1 2\n  eth0:3 4\n"
    assert live.parse_interfaces(text) == ["lo", "eth0"]


def test_an_interpreter_brings_its_base_and_its_code(tmp_path: Path) -> None:
    base = tmp_path / "base/bin/python3.11"
    base.parent.mkdir(parents=True)
    base.touch()
    code = tmp_path / "code"
    code.mkdir()
    packages = tmp_path / "venv/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (packages / "editable.pth").write_text(f"{code}\nimport something\n")
    (tmp_path / "venv/bin").mkdir()
    python = tmp_path / "venv/bin/python"
    python.symlink_to(base)
    (tmp_path / "venv/pyvenv.cfg").write_text(f"home = {base.parent}\n")
    assert interpreter_paths(python) == (tmp_path / "venv", tmp_path / "base", code)
