# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.vm [CASE…]`: each case boots a virtual machine of its own; a table at the end.

Status 0 if all of them passed. Kernels are kept in `$XDG_CACHE_HOME/orc-vm` (~/.cache/orc-vm).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .kernel import cache_folder, ensure_kernel
from .machine import CABLE, NETWORK, OUTSIDE, VXLAN, WIREGUARD, Machine, Outcome

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("qemu-system-x86",)
TESTBED_PACKAGES = (
    *("vagrant", "vagrant-libvirt", "libvirt-daemon-system", "dnsmasq-base", "iptables"),
    *("mmdebstrap", "qemu-utils", "tini", "rsync", "openssh-client"),
)
WITHIN = 7200.0
"""Seconds for a case. On a quiet machine none takes a tenth of it."""

CONTRACT = ("tests/contract/test_runtime.py", "tests/contract/test_runtime_crun.py")


@dataclass(frozen=True, slots=True)
class Case:
    """What is tried in one virtual machine."""

    suite: str
    """The Debian release whose kernel it is."""
    cgroups: str
    modules: Sequence[str]
    tests: Sequence[str]
    outside: bool = False
    """The tests run on this machine, in a network of their own, and boot what they need."""
    packages: Sequence[str] = ()
    """Of Debian, which the tests need on this machine."""


CASES = {
    "v2-runtime": Case("trixie", "v2", (), CONTRACT),
    "v2-cluster": Case("trixie", "v2", (*NETWORK, *VXLAN), ["tests/vm/on_cgroups.py"]),
    "v1-runtime": Case("bookworm", "v1", (), CONTRACT),
    "v1-cluster": Case("bookworm", "v1", (*NETWORK, *VXLAN), ["tests/vm/on_cgroups.py"]),
    "wireguard": Case("trixie", "v2", (*NETWORK, *VXLAN, *WIREGUARD), ["tests/vm/wireguard.py"]),
    "encryption": Case(
        "trixie",
        "v2",
        (*NETWORK, *VXLAN, *WIREGUARD, *CABLE),
        ["tests/vm/between_hosts.py"],
        outside=True,
    ),
    "apparmor": Case(
        "trixie", "v2", (), ["tests/vm/apparmor.py"], packages=("apparmor", "libapparmor1")
    ),
    "no-vxlan": Case("trixie", "v2", NETWORK, ["tests/vm/no_vxlan.py"]),
}
TESTBED = "testbed"
"""The case of `vagrant/`: three machines with a Debian of their own, and the package in it."""


def main(names: Sequence[str]) -> int:
    """Run the named cases, or all. Returns the exit status."""
    known = (*CASES, TESTBED)
    if unknown := set(names) - set(known):
        print(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("virtual machines read this one's root folder: run as root", file=sys.stderr)
        return 1
    _ensure_packages(PACKAGES)
    cache = cache_folder()
    outcomes = {
        name: _run_testbed() if name == TESTBED else _run(name, cache) for name in names or known
    }
    print()
    for name, outcome in outcomes.items():
        verdict = {0: "passed", None: "went down or took too long"}.get(outcome.status, "failed")
        print(f"{name:12} {verdict:28} {outcome.seconds:6.0f} s")
    return int(any(outcome.status != 0 for outcome in outcomes.values()))


def _run(name: str, cache: Path) -> Outcome:
    case = CASES[name]
    if case.packages:
        _ensure_packages(case.packages)
    kernel = ensure_kernel(case.suite, cache)
    print(f"\n{name}: Linux {kernel.release}, cgroup {case.cgroups}, {' '.join(case.tests)}")
    command = _pytest(*case.tests)
    if case.outside:
        return _run_outside(command)
    machine = Machine(kernel, case.cgroups, case.modules)
    with tempfile.TemporaryDirectory(prefix="orc-vm-") as scratch:
        console = Path(scratch, "console.log")
        outcome = machine.run(command, REPOSITORY, console, WITHIN)
        if outcome.status is None:
            print("the kernel's last words:")
            print("\n".join(console.read_text(errors="replace").splitlines()[-20:]))
    return outcome


def _pytest(*tests: str) -> list[str]:
    flags = ["-vv", "--color=no", "--tb=short", "-p", "no:cacheprovider"]
    return [str(REPOSITORY / ".venv/bin/python"), "-m", "pytest", *flags, *tests]


def _run_outside(command: Sequence[str]) -> Outcome:
    """Where nothing but the virtual machines can be reached, and they reach `OUTSIDE`."""
    network = f'ip link set lo up && ip addr add {OUTSIDE}/32 dev lo && exec "$@"'
    return _timed(["unshare", "--net", "sh", "-c", network, "sh", *command])


def _run_testbed() -> Outcome:
    """Beside a libvirt of its own, which ends with the tests, however these end."""
    _ensure_packages(TESTBED_PACKAGES)
    print(f"\n{TESTBED}: tests/vm/testbed/on_machines.py")
    with tempfile.TemporaryDirectory(prefix="orc-testbed-") as folder:
        beside = [sys.executable, "-m", "tests.vm.testbed", folder]
        return _timed([*beside, *_pytest("tests/vm/testbed/on_machines.py")])


def _timed(command: Sequence[str]) -> Outcome:
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=REPOSITORY, timeout=WITHIN, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(None, WITHIN)
    return Outcome(done.returncode, time.monotonic() - began)


def _ensure_packages(names: Sequence[str]) -> None:
    found = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}\n", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.stdout.split() == ["installed"] * len(names):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *names]):
        subprocess.run(["apt-get", "-q", *arguments], env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
