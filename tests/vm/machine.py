# SPDX-License-Identifier: Apache-2.0
"""One boot of a virtual machine."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .cpio import archive
from .kernel import Kernel

BUSYBOX = Path("/bin/busybox")
INIT = Path(__file__).with_name("init")

ROOT = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
"""Modules for the root folder."""
NETWORK = (
    "crc32c_generic",  # libcrc32c asks for it by what it does, not by name
    *("bridge", "br_netfilter", "nft_meta_bridge", "veth"),
    *("nf_tables", "nf_conntrack", "nf_nat", "nf_conntrack_netlink"),
    *("nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_ct", "nft_numgen", "nft_hash"),
    *("nft_fib", "nft_fib_ipv4", "nft_fib_inet", "nft_limit", "nft_reject", "nft_reject_inet"),
)
"""Those that a host's kernel loads by itself when a rule or device needs them. Inside there is
nothing that could: the root folder has another kernel's modules, or none."""
VXLAN = ("vxlan",)
WIREGUARD = ("wireguard",)
CABLE = ("virtio_net",)

GROUP, LOOPBACK = "230.0.0.1", "127.0.0.1"
OUTSIDE = "10.97.0.1"
HAND = 7000

_SHARE = "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
_STATUS = re.compile(r"^exit=(\d+)$")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a virtual machine."""

    status: int | None
    """Exit status of the command; None when the machine went down, or was stopped, before it had
    ended."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Wire:
    """A machine's cables: eth0 (10.99.0.`number`/24) to the others that are started beside it, and
    eth1 to `OUTSIDE`, an address that who starts it must have."""

    number: int
    segment: int
    """UDP port of `GROUP`, to which each of QEMU's processes sends the frames of its eth0."""
    door: int
    """TCP port of this machine's loopback that leads to the other's port `HAND`."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine to be."""

    kernel: Kernel
    cgroups: str
    """Which version it mounts: `v1` or `v2`."""
    modules: Sequence[str]
    memory: int = 3072
    """MiB. It holds all that is written inside."""
    wire: Wire | None = None

    def run(self, argv: Sequence[str], work: Path, console: Path, within: float) -> Outcome:
        """Boot, run a command in the folder `work`, switch off. Its output is copied to ours.

        The kernel's messages go to the file `console`. After `within` seconds it is stopped.
        """
        initramfs = console.with_suffix(".initramfs")
        initramfs.write_bytes(self._initramfs(argv, work))
        began = time.monotonic()
        try:
            with subprocess.Popen(
                self._command(initramfs, console),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                errors="replace",
            ) as qemu:
                try:
                    status = _copy_output(qemu, began + within)
                finally:
                    qemu.kill()
        finally:
            initramfs.unlink()
        return Outcome(status, time.monotonic() - began)

    @contextmanager
    def beside(self, argv: Sequence[str], work: Path, console: Path) -> Iterator[None]:
        """Boot and run a command for as long as the context lasts. What it prints goes to a file
        beside `console`."""
        initramfs = console.with_suffix(".initramfs")
        initramfs.write_bytes(self._initramfs(argv, work))
        with (
            console.with_suffix(".output").open("w") as output,
            subprocess.Popen(
                self._command(initramfs, console), stdin=subprocess.DEVNULL, stdout=output
            ) as qemu,
        ):
            try:
                yield
            finally:
                qemu.kill()
                initramfs.unlink()

    def _command(self, initramfs: Path, console: Path) -> list[str]:
        return [
            # Whatever becomes of us, no virtual machine is left running.
            *("setpriv", "--pdeathsig", "KILL", "--", "nice", "-n", "19"),
            *("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none"),
            *("-accel", "tcg", "-cpu", "max", "-smp", "2"),
            *("-m", str(self.memory)),
            *("-kernel", str(self.kernel.image), "-initrd", str(initramfs)),
            # A kernel that panics reboots, which -no-reboot makes an end.
            *("-append", "console=ttyS0 panic=-1 quiet mitigations=off"),
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
            *("-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output"),
            *("-virtfs", _SHARE),
            *(_cable(self.wire) if self.wire else ()),
        ]

    def _variables(self) -> dict[str, str]:
        number = self.wire.number if self.wire else ""
        address = f"10.99.0.{number}/24" if number else ""
        return {"CGROUPS": self.cgroups, "NAME": f"vm{number}", "ADDRESS": address}

    def _initramfs(self, argv: Sequence[str], work: Path) -> bytes:
        files = {
            "init": INIT.read_bytes(),
            "bin/busybox": BUSYBOX.read_bytes(),
            "config": _shell({**self._variables(), "WORK": str(work)}, argv),
        }
        for number, (name, content) in enumerate(self.kernel.closure([*ROOT, *self.modules])):
            files[f"modules/{number:03}-{name}.ko"] = content
        return archive(files)


def _cable(wire: Wire) -> list[str]:
    segment = f"socket,id=wire,mcast={GROUP}:{wire.segment},localaddr={LOOPBACK}"
    outside = f"user,id=outside,hostfwd=tcp:{LOOPBACK}:{wire.door}-:{HAND}"
    mac = f"02:0e:00:00:00:{wire.number:02x}"
    return [
        *("-netdev", segment, "-device", f"virtio-net-pci,netdev=wire,mac={mac}"),
        *("-netdev", outside, "-device", "virtio-net-pci,netdev=outside"),
    ]


def _shell(variables: Mapping[str, str], argv: Sequence[str]) -> bytes:
    """What `init` reads: variables, and the command as the positional parameters."""
    lines = [f"{key}={shlex.quote(value)}" for key, value in variables.items()]
    lines.append(f"set -- {shlex.join(argv)}")
    return "\n".join(lines).encode() + b"\n"


def _copy_output(qemu: subprocess.Popen[str], deadline: float) -> int | None:
    """Copy what is printed inside to our output until the machine is off: the exit status."""
    assert qemu.stdout is not None
    alarm = threading.Timer(max(0.0, deadline - time.monotonic()), qemu.kill)
    alarm.start()
    status: int | None = None
    try:
        for line in qemu.stdout:
            if found := _STATUS.match(line.strip()):
                status = int(found[1])
            else:
                print(f"    {line.rstrip()}", flush=True)
    finally:
        alarm.cancel()
    return status
