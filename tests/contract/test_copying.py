# SPDX-License-Identifier: Apache-2.0
"""The copying program in the root of a container that does not run."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from crunkit import running
from runtimehost import CrunWorld, private, remove_leftovers

from orchestrator import copying
from orchestrator.agent.streams.container_copy import ContainerCopies
from orchestrator.daemon import bareprogram
from orchestrator.pb import dispatch_pb2, interact_pb2

pytestmark = pytest.mark.root


def program(
    words: dict[str, object], data: bytes = b"", fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*bareprogram.command("orchestrator.agent.streams.copy_program"), json.dumps(words)],
        input=data,
        capture_output=True,
        pass_fds=fds,
    )


def test_files_of_a_stopped_container(tmp_path: Path) -> None:
    place: dict[str, object] = {"layers": [str(tmp_path / "low"), str(tmp_path / "high")]}
    for name in ("low/etc", "high", "upper", "work", "root"):
        (tmp_path / name).mkdir(parents=True)
    place |= {name: str(tmp_path / name) for name in ("upper", "work", "root")}
    (tmp_path / "low/etc/a").write_text("low")
    (tmp_path / "low/etc/b").write_text("b")
    (tmp_path / "high/etc").mkdir()
    (tmp_path / "high/etc/a").write_text("high")
    (tmp_path / "secret").write_text("the host's")
    (tmp_path / "upper/link").symlink_to(tmp_path / "secret")
    packed = program({**place, "verb": "pack", "path": "etc", "follow": False})
    assert packed.stderr == b""
    head, _, tar = packed.stdout.partition(b"\n")
    assert json.loads(head) == {"top": "etc", "folder": True}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert sorted(archive.getnames()) == ["etc", "etc/a", "etc/b"]
        content = archive.extractfile("etc/a")
        assert content is not None
        assert content.read() == b"high"
    words = {"verb": "unpack", "path": "/new", "top": "etc", "folder": True, "owner": [7, 8]}
    done = program({**place, **words}, tar)
    assert (done.returncode, done.stderr) == (0, b"")
    status = (tmp_path / "upper/new/b").stat()
    assert (status.st_uid, status.st_gid) == (7, 8)
    refused = program({**place, "verb": "pack", "path": "link", "follow": True})
    assert refused.returncode == 1
    assert b"no such file" in refused.stderr
    # The mount was the program's own.
    assert os.listdir(tmp_path / "root") == []


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""`cap_net_raw+ep`, as `setcap` writes it (linux/capability.h, version 2)."""


def tree_with_attributes(folder: Path) -> Path:
    """A tree whose file has a capability, as `ping` has."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/ping").write_text("program")
    (folder / "bin/ping").chmod(0o555)
    os.setxattr(folder / "bin/ping", "security.capability", CAPABILITY)
    os.setxattr(folder / "bin/ping", "user.comment", b"\xff\0binary")
    os.setxattr(folder / "bin", "user.kind", b"folder")
    return folder


def test_extended_attributes_are_kept_where_there_is_no_proc(tmp_path: Path) -> None:
    """In the root of a container, which need not have a /proc in which the program is."""
    place: dict[str, object] = {"layers": [str(tree_with_attributes(tmp_path / "low"))]}
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    place |= {name: str(tmp_path / name) for name in ("upper", "work", "root")}
    packed = program({**place, "verb": "pack", "path": "bin", "follow": False})
    _, _, tar = packed.stdout.partition(b"\n")
    words = {"verb": "unpack", "path": "/new", "top": "bin", "folder": True, "owner": [7, 8]}
    done = program({**place, **words}, tar)
    assert (done.returncode, done.stderr) == (0, b"")
    new = tmp_path / "upper/new"
    assert os.getxattr(new / "ping", "security.capability") == CAPABILITY
    assert os.getxattr(new / "ping", "user.comment") == b"\xff\0binary"
    assert os.getxattr(new, "user.kind") == b"folder"
    assert (new / "ping").stat().st_mode & 0o7777 == 0o555


def test_attributes_that_cannot_be_kept_are_reported(tmp_path: Path) -> None:
    """A user that is not root may not give a file capabilities."""
    tar = io.BytesIO()
    copying.pack(str(tree_with_attributes(tmp_path / "low") / "bin"), "bin", tar)
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o777)
    tmp_path.chmod(0o755)
    unpack = (
        "import os, sys; from orchestrator import copying; os.setgid(1000); os.setuid(1000)\n"
        "owner = copying.Owner(keep=False)\n"
        f"print(copying.unpack(sys.stdin.buffer, {str(target)!r}, 'bin', 'bin', owner))"
    )
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", unpack], input=tar.getvalue(), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == (
        "extended attributes of 1 file were not kept "
        "(bin/ping: security.capability: operation not permitted)"
    )
    assert os.getxattr(target / "bin/ping", "user.comment") == b"\xff\0binary"
    assert (target / "bin/ping").read_text() == "program"


class Upload:
    """A tunnel of an upload, as the agent sees it."""

    def __init__(self, tar: bytes) -> None:
        self._frames = [dispatch_pb2.Frame(data=tar), dispatch_pb2.Frame(eof=True)]
        self.lines: list[str] = []

    async def read(self) -> dispatch_pb2.Frame:
        return self._frames.pop(0)

    async def write(self, frame: dispatch_pb2.Frame) -> None:
        self.lines.append(frame.line)


def test_a_tar_whose_header_is_larger_than_memory_is_refused(tmp_path: Path) -> None:
    place: dict[str, object] = {"layers": [str(tmp_path / "low")]}
    for name in ("low", "upper", "work", "root"):
        (tmp_path / name).mkdir()
    place |= {name: str(tmp_path / name) for name in ("upper", "work", "root")}
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 60 << 30
    words = {"verb": "unpack", "path": "/", "top": "", "folder": True, "owner": None}
    done = program({**place, **words}, info.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20))
    assert done.returncode == 1
    assert done.stderr.decode() == f"invalid tar archive: header too large: {60 << 30} bytes\n"


def test_a_reused_pid_is_not_taken_for_the_container(tmp_path: Path) -> None:
    """Another process has the number of the container's, which has ended."""
    (tmp_path / "secret").write_text("the host's")
    ended = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(ended.pid)
    ended.wait()
    words = {"verb": "pack", "path": str(tmp_path / "secret"), "follow": False}
    done = program({"pid": os.getpid(), "pidfd": pidfd, **words}, fds=(pidfd,))
    os.close(pidfd)
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"the container has ended" in done.stderr


NOT_KEPT = (
    "extended attributes of 1 file were not kept (bin: security.orc-test: operation not permitted)"
)


@pytest.mark.parametrize(("userns", "lines"), [("private", [NOT_KEPT]), ("host", [])])
@private
async def test_upload_keeps_attributes_or_reports_those_lost(
    tmp_path: Path, userns: str, lines: list[str]
) -> None:
    """In a container with users of its own, whose root may give files capabilities there, and in
    one with the host's."""
    remove_leftovers()
    tree = tree_with_attributes(tmp_path / "tree") / "bin"
    os.setxattr(tree, "security.orc-test", b"nobody else knows it")
    tar = io.BytesIO()
    copying.pack(str(tree), "bin", tar)
    world = CrunWorld(tmp_path)
    async with world, world.runtime() as runtime, asyncio.TaskGroup() as group:
        container = world.graceful("c")
        spec = replace(container.spec.container, userns=userns)
        container = replace(container, spec=replace(container.spec, container=spec))
        pid = await running(runtime, world, container)
        runners = {"c": SimpleNamespace()}
        copies = ContainerCopies(runners, runtime.access, None)  # type: ignore[arg-type]
        upload = Upload(tar.getvalue())
        words = interact_pb2.CopyTo(container="c", path="/tmp", top="bin", folder=True)
        await copies.copy_to(upload, dispatch_pb2.OpenTunnel(copy_to=words), group)
        new = Path(f"/proc/{pid}/root/tmp/bin")
        # Seen from outside of the container's users, it says whose root has given it.
        assert os.getxattr(new / "ping", "security.capability")[4:12] == CAPABILITY[4:12]
        assert os.getxattr(new / "ping", "user.comment") == b"\xff\0binary"
        assert upload.lines == lines
