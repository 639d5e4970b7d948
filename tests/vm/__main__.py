"""`python -m tests.vm [CASE…]`: each case boots a virtual machine of its own; a table at the end.

Status 0 if all of them passed. Kernels are kept in `$XDG_CACHE_HOME/orc-vm` (~/.cache/orc-vm).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from .kernel import ensure_kernel
from .machine import CABLE, NETWORK, VXLAN, WIREGUARD, Machine, Outcome, Wire

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
    others: int = 0
    """How many machines besides do what the tests ask them to."""


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
        others=1,
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
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc-vm"
    cache.mkdir(parents=True, exist_ok=True)
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
    machine = Machine(kernel, case.cgroups, case.modules)
    python = str(REPOSITORY / ".venv/bin/python")
    with tempfile.TemporaryDirectory(prefix="orc-vm-") as scratch, ExitStack() as stack:
        console = Path(scratch, "console.log")
        if case.others:
            port = _free_port()
            for number in range(2, 2 + case.others):
                other = replace(machine, wire=Wire(number, port))
                stack.enter_context(
                    other.beside(
                        [python, "-m", "tests.vm.hand"], REPOSITORY, Path(scratch, f"{number}.log")
                    )
                )
            machine = replace(machine, wire=Wire(1, port))
        outcome = machine.run([python, *pytest, *case.tests], REPOSITORY, console, WITHIN)
        if outcome.status is None:
            print("the kernel's last words:")
            print("\n".join(console.read_text(errors="replace").splitlines()[-20:]))
    return outcome


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        port: int = sock.getsockname()[1]
        return port


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
