# SPDX-License-Identifier: Apache-2.0
"""The default seccomp profile: what its table says, the filter that the OCI runtime makes of it,
and what the kernel does with every system call."""

# ruff: noqa: ASYNC240 (a test may block its own loop)

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from crunkit import running
from runtimehost import CrunWorld, private, remove_leftovers
from seccompkit import ALLOW, ARCHES, ERRNO, X32, evaluate, expected, name_of, read_filter

from orchestrator.agent.runtime.io import logfiles
from orchestrator.agent.runtime.spec.node_facts import kernel_version
from orchestrator.agent.runtime.spec.privileges import DEFAULT_CAPABILITIES
from orchestrator.agent.runtime.spec.seccomp import DEFAULT_PROFILE, convert, go_architecture

pytestmark = pytest.mark.root

MACHINE = go_architecture(os.uname().machine)
NUMBERS = range(520)
"""More than any architecture has."""
EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
NEWUSER, NEWNET = 0x10000000, 0x40000000
ARGS: dict[str, list[int]] = {
    "socket": [*range(64), 102, 104, 1 << 32 | 38, 1 << 32 | 40, 1 << 63 | 40, (1 << 64) - 1],
    "clone": [0, 0x11, 0x1200011, NEWUSER, NEWNET | 0x11, 0x2000000, 1 << 32 | NEWUSER],
    "personality": [0, 8, 0x20000, 0x20008, 0xFFFFFFFF, 0x40000, 1 << 32],
}
"""First arguments of the calls that are judged by them."""
PROBES = (335, 336)
"""`uretprobe` and `uprobe` of x86-64, which newer kernels use themselves and let through."""


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


def table(capabilities: frozenset[str]) -> dict[str, Any]:
    """What the profile says for a container with these."""
    profile = json.loads(DEFAULT_PROFILE.read_bytes())
    return convert(profile, capabilities, MACHINE, kernel_version())


@pytest.mark.parametrize("added", [(), ("CAP_SYS_ADMIN",), ("ALL",)], ids=str)
@private
async def test_every_system_call_of_every_architecture_matches_the_table(
    world: CrunWorld, added: tuple[str, ...]
) -> None:
    """By the filter that the kernel has for a container's process."""
    async with world, world.runtime() as runtime:
        container = world.graceful("a")
        spec = replace(container.spec.container, cap_add=added)
        container = replace(container, spec=replace(container.spec, container=spec))
        pid = await running(runtime, world, container)
        program = read_filter(pid)
        config = json.loads((world.bundles / "a/config.json").read_bytes())
    profile = config["linux"]["seccomp"]
    held = frozenset(config["process"]["capabilities"]["bounding"])
    assert {key: profile[key] for key in profile if key != "flags"} == table(held)
    judged = {ALLOW: 0, EPERM: 0, ENOSYS: 0}
    for name in profile["architectures"]:
        arch = ARCHES[name]
        base = X32 if name == "SCMP_ARCH_X32" else 0
        for number in NUMBERS:
            call = name_of(arch.token, base | number)
            for first in ARGS.get(call, [0]):
                rest = (0,) * 5
                verdict = evaluate(program, arch.audit, base | number, (first, *rest))
                wanted = expected(profile, call, (first & arch.arguments, *rest))
                assert verdict == wanted, (name, call, number, hex(first))
                judged[verdict] += 1
    assert min(judged.values()) > 20


@private
async def test_an_architecture_missing_in_the_profile_is_denied(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        program = read_filter(await running(runtime, world, world.graceful("a")))
    for number in NUMBERS:
        assert evaluate(program, 0xC0000015, number, (0,) * 6) != ALLOW  # ppc64le


@pytest.mark.parametrize(
    ("call", "first"),
    [
        ("clone", NEWUSER),
        ("clone", 1 << 32 | NEWNET),
        *product(["unshare"], [NEWUSER, 0]),
        *product(["socket"], [38, 40, 1 << 32 | 38, 1 << 32 | 40]),
        *product(
            [
                *("add_key", "bpf", "fsopen", "io_uring_setup", "kexec_load", "keyctl", "mount"),
                *("move_mount", "open_by_handle_at", "open_tree", "perf_event_open", "pivot_root"),
                *("mbind", "pidfd_getfd", "reboot", "request_key", "set_mempolicy", "setns"),
                *("swapon", "syslog", "umount2", "userfaultfd", "init_module", "quotactl", "acct"),
            ],
            [0],
        ),
    ],
)
def test_calls_denied_by_docker_are_denied(call: str, first: int) -> None:
    found = expected(table(frozenset(DEFAULT_CAPABILITIES)), call, (first, 0, 0, 0, 0, 0))
    assert found == EPERM


def test_every_other_family_is_allowed() -> None:
    profile = table(frozenset(DEFAULT_CAPABILITIES))
    found = {family for family in range(64) if expected(profile, "socket", (family,)) != ALLOW}
    assert found == {socket.AF_ALG, socket.AF_VSOCK} == {38, 40}


def test_clone3_makes_libc_fall_back() -> None:
    assert expected(table(frozenset(DEFAULT_CAPABILITIES)), "clone3", (0,) * 6) == ENOSYS


CALLS = """\
import ctypes, json, os, select, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
found = {}
for number in range(int(sys.argv[1])):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        minus = (ctypes.c_long(-1),) * 6
        result = libc.syscall(ctypes.c_long(number), *minus)
        os.write(writer, b"%d " % (ctypes.get_errno() if result == -1 else 0))
        os._exit(0)
    os.close(writer)
    # One that blocks, or ends the process, has been let through.
    answer = os.read(reader, 9) if select.select([reader], [], [], 0.5)[0] else b""
    found[number] = int(answer.split()[0]) if answer else 0
    for place in (child, -child):
        try:
            os.kill(place, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.waitpid(child, 0)
    os.close(reader)
print(json.dumps(found))
"""
"""Makes every call with -1 for each argument, which none of them does anything with."""


@private
async def test_the_kernel_denies_exactly_the_calls_of_the_table(
    world: CrunWorld,
) -> None:
    """With other errors in the table than any that the kernel itself gives, all is told apart."""
    profile = json.loads(DEFAULT_PROFILE.read_bytes())
    profile["defaultErrnoRet"] = 3838
    for rule in profile["syscalls"]:
        if "errnoRet" in rule:
            rule["errnoRet"] = {1: 3801, 38: 3839}[rule["errnoRet"]]
    native = ARCHES[f"SCMP_ARCH_{os.uname().machine.upper()}"]
    changed = convert(profile, frozenset(DEFAULT_CAPABILITIES), MACHINE, kernel_version())
    container = world.container(
        "a",
        *(os.path.realpath(sys.executable), "-I", "-S", "-c", CALLS, str(NUMBERS.stop)),
        rootfs="host",
        seccomp=json.dumps(profile),
    )
    async with world, world.runtime() as runtime:
        await runtime.create(container)
        await runtime.start("a")
        assert (await runtime.wait("a")).code == 0
        said = [
            r.line.decode() async for some in logfiles.read(runtime.log_path("a")) for r in some
        ]
    found = {int(number): code for number, code in json.loads("".join(said)).items()}
    minus = ((1 << 64) - 1,) * 6
    for number in NUMBERS:
        if MACHINE == "amd64" and number in PROBES:
            continue
        call = name_of(native.token, number)
        wanted = expected(changed, call, minus)
        refused = found[number] if found[number] > 3800 else None
        assert (None if wanted == ALLOW else wanted & 0xFFFF) == refused, (call, number)
    assert sum(code > 3800 for code in found.values()) > 100
    assert sum(code < 3800 for code in found.values()) > 250
