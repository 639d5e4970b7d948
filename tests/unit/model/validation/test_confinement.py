# SPDX-License-Identifier: Apache-2.0
"""Confinement options: what is valid, and the errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.model.specs import Ulimit
from orchestrator.model.validation import confinement


@pytest.mark.parametrize(
    ("text", "name"),
    [("net_admin", "CAP_NET_ADMIN"), ("CAP_SYS_TIME", "CAP_SYS_TIME"), ("all", "ALL")],
)
def test_capabilities(text: str, name: str) -> None:
    assert confinement.parse_capability(text) == name


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("/dev/fuse", "/dev/fuse:/dev/fuse:rwm"),
        ("/dev/fuse:r", "/dev/fuse:/dev/fuse:r"),
        ("/dev/sda:/dev/disk", "/dev/sda:/dev/disk:rwm"),
        ("/dev/sda:/dev/disk:rw", "/dev/sda:/dev/disk:rw"),
    ],
)
def test_devices(text: str, whole: str) -> None:
    device = confinement.parse_device(text)
    assert str(device) == whole
    assert confinement.parse_device(str(device)) == device


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nofile=1024", Ulimit("nofile", 1024, 1024)),
        ("nproc=10:20", Ulimit("nproc", 10, 20)),
        ("core=-1", Ulimit("core", -1, -1)),
        ("RLIMIT_STACK=0:unlimited", Ulimit("stack", 0, -1)),
    ],
)
def test_ulimits(text: str, limit: Ulimit) -> None:
    assert confinement.parse_ulimit(text) == limit


def test_a_device_by_its_cdi_name() -> None:
    assert str(confinement.parse_device("vendor.com/gpu=GPU-1:0")) == "vendor.com/gpu=GPU-1:0"


def test_hosts_and_tmpfs() -> None:
    assert confinement.parse_host("db:10.0.0.1") == "db:10.0.0.1"
    assert confinement.parse_host("db=[fd00::1]") == "db:fd00::1"
    tmpfs = confinement.parse_tmpfs("/run:size=64m,mode=755")
    assert (tmpfs.path, tmpfs.options) == ("/run", ("size=64m", "mode=755"))
    assert confinement.parse_tmpfs("/run").options == ()


@pytest.mark.parametrize("name", ["net.core.somaxconn", "kernel.msgmax", "fs.mqueue.msg_max"])
def test_sysctls_of_its_own(name: str) -> None:
    confinement.check_sysctl(name)


@pytest.mark.parametrize(
    ("check", "text", "words"),
    [
        (confinement.parse_capability, "FLY", "is unknown; write such as NET_ADMIN"),
        (confinement.parse_device, "sda", "is not of the form /dev/NAME"),
        (confinement.parse_device, "/dev/a:/b:rwx", "access is made of r, w and m"),
        (confinement.parse_device, "/dev/../etc", "access is made of|not of the form"),
        (confinement.parse_ulimit, "nofile=x", "is not of the form NAME=SOFT"),
        (confinement.parse_ulimit, "files=1", "names no limit"),
        (confinement.parse_ulimit, "nofile=9:1", "above the hard one of 1"),
        (confinement.parse_ulimit, "nofile=-1:5", "above the hard one of 5"),
        (confinement.parse_ulimit, "nofile=-5", "is negative"),
        (confinement.check_sysctl, "kernel.panic", "is not the container's own"),
        (confinement.check_sysctl, "net.../x y", "is not a name"),
        (confinement.parse_tmpfs, "run", "is not of the form /PATH"),
        (confinement.parse_tmpfs, "/", "is not of the form /PATH"),
        (confinement.parse_tmpfs, "/run:bogus", "unknown option 'bogus'"),
        (confinement.parse_tmpfs, "/run:size=big", "size"),
        (confinement.parse_host, "db", "is not of the form NAME:IP"),
        (confinement.parse_host, "db:here", "is not of the form NAME:IP"),
        (confinement.check_address, "one", "is not an IP address"),
        (confinement.check_domain, "a b", "is not a name"),
        (confinement.check_dns_option, "x=1", "is not such as ndots:2"),
        (confinement.check_cpus, "a", "is not of the form 0-2,4"),
        (confinement.check_cpus, "3-1", "runs backwards"),
        (confinement.check_apparmor, "a b", "is no name of an AppArmor profile"),
        (confinement.check_seccomp, "{", "is not JSON"),
        (confinement.check_seccomp, "[]", "has no defaultAction"),
        (confinement.check_seccomp, '{"defaultAction": "a", "syscalls": [{}]}', "lacks its names"),
    ],
)
def test_refusals(check: Callable[[str], object], text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(text)
