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
WITHIN = 3600.0
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
    "no-vxlan": Case("trixie", "v2", NETWORK, ["tests/vm/no_vxlan.py"]),
}


def main(names: Sequence[str]) -> int:
    """Run the named cases, or all. Returns the exit status."""
    if unknown := set(names) - set(CASES):
        print(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("virtual machines read this one's root folder: run as root", file=sys.stderr)
        return 1
    _ensure_packages()
    cache = cache_folder()
    outcomes = {name: _run(name, cache) for name in names or CASES}
    print()
    for name, outcome in outcomes.items():
        verdict = {0: "passed", None: "went down or took too long"}.get(outcome.status, "failed")
        print(f"{name:12} {verdict:28} {outcome.seconds:6.0f} s")
    return int(any(outcome.status != 0 for outcome in outcomes.values()))


def _run(name: str, cache: Path) -> Outcome:
    case = CASES[name]
    kernel = ensure_kernel(case.suite, cache)
    print(f"\n{name}: Linux {kernel.release}, cgroup {case.cgroups}, {' '.join(case.tests)}")
    pytest = ["-m", "pytest", "-vv", "--color=no", "--tb=short", "-p", "no:cacheprovider"]
    command = [str(REPOSITORY / ".venv/bin/python"), *pytest, *case.tests]
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


def _run_outside(command: Sequence[str]) -> Outcome:
    """Where nothing but the virtual machines can be reached, and they reach `OUTSIDE`."""
    network = f'ip link set lo up && ip addr add {OUTSIDE}/32 dev lo && exec "$@"'
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", network, "sh", *command],
            cwd=REPOSITORY,
            timeout=WITHIN,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, WITHIN)
    return Outcome(done.returncode, time.monotonic() - began)


def _ensure_packages() -> None:
    found = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}\n", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.stdout.split() == ["installed"] * len(PACKAGES):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "-q", *arguments], env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
