"""The system call filter, run in a small interpreter of classic BPF: every rule, both machines."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.egress.privileges import ALLOWED_FAMILIES, ARCHITECTURES, build_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
NEW_USER = 0x10000000


def run(program: bytes, number: int, audit: int, first_argument: int = 0) -> int:
    """What the kernel would answer; struct seccomp_data of seccomp(2)."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0, first_argument, 0, 0, 0, 0, 0)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    position = accumulator = 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x06:
                return value
            case _:
                holds = {
                    0x15: accumulator == value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }[operation]
                position += if_true if holds else if_false


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest):
    return ARCHITECTURES[request.param]


@pytest.mark.parametrize("family", range(64))
def test_only_four_socket_families(machine, family: int) -> None:
    expected = ALLOW if family in ALLOWED_FAMILIES.values() else refused(errno.EAFNOSUPPORT)
    program = build_filter(machine)
    for call in (machine.socket, machine.socketpair):
        assert run(program, call, machine.audit, family) == expected
        # the kernel reads the family as an int, whatever stands in the upper half
        assert run(program, call, machine.audit, family | (7 << 32)) == expected


def test_ways_round_are_refused(machine) -> None:
    program = build_filter(machine)
    assert all(run(program, n, machine.audit) == refused(errno.EPERM) for n in machine.refused)
    assert all(run(program, n, machine.audit) == refused(errno.ENOSYS) for n in machine.absent)
    for call in (machine.clone, machine.unshare):
        assert run(program, call, machine.audit, NEW_USER | 17) == refused(errno.EPERM)
        assert run(program, call, machine.audit, 17) == ALLOW


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_another_architecture_is_killed(number: int, audit: int) -> None:
    for machine in ARCHITECTURES.values():
        if audit != machine.audit:
            assert run(build_filter(machine), number, audit) == KILL


@given(st.integers(0x40000000, 2**32 - 1))
def test_x32_calls_are_absent(number: int) -> None:
    machine = ARCHITECTURES["x86_64"]
    assert run(build_filter(machine), number, machine.audit) == refused(errno.ENOSYS)


@given(st.integers(0, 600), st.integers(0, 2**64 - 1))
def test_every_other_call_passes(number: int, argument: int) -> None:
    for machine in ARCHITECTURES.values():
        named = {machine.socket, machine.socketpair, machine.clone, machine.unshare}
        if number not in named | set(machine.refused) | set(machine.absent):
            assert run(build_filter(machine), number, machine.audit, argument) == ALLOW
