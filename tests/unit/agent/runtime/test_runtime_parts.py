"""The small parts: seccomp, cgroups, signals, identity, complaints, reading in a root, the host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.runtime.engine import conmon
from orchestrator.agent.runtime.engine.program_errors import failure, known_failure
from orchestrator.agent.runtime.interface import (
    Container,
    RuntimeFailure,
    signal_number,
    stop_signal,
)
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, parse_mounts
from orchestrator.agent.runtime.spec.node_facts import parse_resolver
from orchestrator.agent.runtime.spec.privileges import DEFAULT_CAPABILITIES
from orchestrator.agent.runtime.spec.seccomp import convert, load_profile
from orchestrator.linux.openat import read_in_root
from orchestrator.linux.processes import ProcessIdentity, identify
from orchestrator.model.specs import ContainerSpec, TaskSpec

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": None},
        {"names": ["admin"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {
            "names": ["admin"],
            "action": "SCMP_ACT_ERRNO",
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
            "errnoRet": 1,
            "errno": "EPERM",
            "comment": "no",
        },
        {"names": ["x86"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["not86"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.10"}},
        {"names": ["old"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "5.10"}},
    ],
}


@pytest.mark.parametrize(
    ("capabilities", "architecture", "kernel", "kept"),
    [
        (set(), "amd64", (6, 12), ["read", "admin:deny", "x86", "new"]),
        ({"CAP_SYS_ADMIN"}, "amd64", (5, 10), ["read", "admin", "x86", "new"]),
        (set(), "arm64", (5, 9), ["read", "admin:deny", "not86", "old"]),
    ],
)
def test_rules_that_apply(
    capabilities: set[str], architecture: str, kernel: tuple[int, int], kept: list[str]
) -> None:
    found = convert(PROFILE, frozenset(capabilities), architecture, kernel)
    names = [
        rule["names"][0] + (":deny" if rule["action"] == "SCMP_ACT_ERRNO" else "")
        for rule in found["syscalls"]
    ]
    assert names == kept
    assert found["defaultErrnoRet"] == 38


def test_only_what_the_runtime_spec_knows_is_passed_on() -> None:
    found = convert(PROFILE, frozenset(), "amd64", (6, 1))
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert found["syscalls"][0] == {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    assert found["syscalls"][1].keys() == {"names", "action", "errnoRet"}


def test_a_profile_is_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    capabilities = frozenset(DEFAULT_CAPABILITIES)
    with pytest.raises(RuntimeFailure, match="no seccomp profile"):
        load_profile(path, capabilities, "amd64", (6, 1))
    path.write_text("{}")
    with pytest.raises(RuntimeFailure, match="cannot be read"):
        load_profile(path, capabilities, "amd64", (6, 1))
    path.write_text(json.dumps(PROFILE))
    assert json.loads(load_profile(path, capabilities, "amd64", (6, 1)).text)["syscalls"]


TMPFS = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"
)
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
V2 = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"
OTHER = "22 1 254:0 / / rw - ext4 /dev/vda rw"


def test_cgroup_versions_are_told_apart() -> None:
    v1 = parse_mounts("\n".join((OTHER, TMPFS, V1)))
    assert v1.mode is CgroupMode.V1
    assert v1.memory == Path("/sys/fs/cgroup/memory")
    assert v1.tracking == Path("/sys/fs/cgroup/pids")
    hybrid = parse_mounts("\n".join((OTHER, TMPFS, V1, UNIFIED)))
    assert hybrid.mode is CgroupMode.HYBRID
    assert hybrid.unified == Path("/sys/fs/cgroup/unified")
    v2 = parse_mounts("\n".join((OTHER, V2)))
    assert v2.mode is CgroupMode.V2
    assert v2.roots == (Path("/sys/fs/cgroup"),)


@pytest.mark.parametrize("mounts", [OTHER, f"{OTHER}\n{TMPFS}"])
def test_a_host_without_cgroups(mounts: str) -> None:
    with pytest.raises(RuntimeFailure, match="no cgroup file system is mounted"):
        parse_mounts(mounts)


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), (" SIGHUP ", 1), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)],
)
def test_names_of_signals(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "SIGNOPE", "-9", "SIGRTMIN+99", "SIG_DFL"])
def test_what_is_no_signal(name: str) -> None:
    with pytest.raises(RuntimeFailure, match="is not a signal"):
        signal_number(name)


def test_the_stop_signal_of_spec_and_image() -> None:
    def made(spec: str, image: str) -> Container:
        task = TaskSpec(container=ContainerSpec(stop_signal=spec))
        local = LocalImage("sha256:0", (), ImageConfig(stop_signal=image))
        return Container("a", "a", task, local, None)

    assert stop_signal(made("", "")) == signal.SIGTERM
    assert stop_signal(made("", "SIGQUIT")) == signal.SIGQUIT
    assert stop_signal(made("INT", "SIGQUIT")) == signal.SIGINT


def test_a_process_is_known_by_its_start() -> None:
    child = subprocess.Popen(["sleep", "60"])
    found = identify(child.pid)
    assert found is not None
    assert found.alive()
    reused = ProcessIdentity(child.pid, found.start - 1)
    assert not reused.alive()
    assert reused.open() is None
    reused.send(signal.SIGKILL)
    assert found.alive()
    found.send(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    # It is a zombie now: its pid is there, and it has ended.
    assert identify(child.pid) is None
    child.wait()
    assert found.open() is None
    found.send(signal.SIGKILL)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "executable file `x` not found in $PATH: No such file or directory",
            "the image has no program `x`",
        ),
        (
            'runc run failed: exec: "x": executable file not found in $PATH',
            "the image has no program `x`",
        ),
        (
            "the path `/x` exists but it is not executable: Operation not permitted",
            "`/x` in the image is not executable",
        ),
        ('exec: "/x": permission denied', "`/x` in the image is not executable"),
        ("exec container process `/x`: No such file or directory", "needs an interpreter"),
        ("exec container process `/x`: Exec format error", "another architecture"),
        ("\n first line \n second", "the container could not be made: first line"),
        ("", "made: the OCI runtime ended without a word; was it killed?"),
    ],
)
def test_complaints_in_words_for_the_user(text: str, words: str) -> None:
    found = str(failure(text, "made"))
    assert words in found
    assert "\n" not in found


def test_other_output_is_no_complaint() -> None:
    assert known_failure("Traceback: exec failed") is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"data": 42}\n', conmon.Report(42)),
        (b'{"data": -1, "message": "no \\"x\\""}\n', conmon.Report(-1, 'no "x"')),
        (b"", None),
        (b'{"da', None),
        (b"[]", None),
    ],
)
def test_what_conmon_reports(line: bytes, expected: conmon.Report | None) -> None:
    assert conmon.parse_report(line) == expected


def test_a_pid_file_does_not_make_a_monitor(tmp_path: Path) -> None:
    assert conmon.find_monitor(tmp_path, "a") is None
    (tmp_path / conmon.MONITOR_PID).write_text(str(os.getpid()))
    assert conmon.find_monitor(tmp_path, "a") is None
    (tmp_path / conmon.MONITOR_PID).write_text("")
    assert conmon.find_monitor(tmp_path, "a") is None
    assert not conmon.reopen_log(tmp_path)


def test_links_of_an_image_do_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "real").write_text("inside")
    (root / "etc/absolute").symlink_to("/real")
    (root / "etc/escape").symlink_to("../../outside")
    (root / "etc/host").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "etc/fifo")
    fd = os.open(root, os.O_PATH)
    try:
        assert read_in_root(fd, "/etc/absolute") == b"inside"
        for path in ("etc/escape", "etc/host", "../outside", "etc/fifo", "etc", "none"):
            assert read_in_root(fd, path) is None
        assert read_in_root(fd, "real", 3) == b"ins"
    finally:
        os.close(fd)


def test_name_servers_of_the_host() -> None:
    text = "# by hand\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver ::1\nsearch a b\n\n"
    assert parse_resolver(text) == (("9.9.9.9",), ("a", "b"))
    assert parse_resolver("nameserver nonsense\nnameserver\n") == ((), ())
    assert parse_resolver("nameserver fe80::1%eth0\n") == (("fe80::1%eth0",), ())
