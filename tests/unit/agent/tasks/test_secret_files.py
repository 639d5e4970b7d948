# SPDX-License-Identifier: Apache-2.0
"""Secrets and configs on a node: kept as long as a task needs them, put in place, replaced."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from agentfakes import Host, assigned, until
from test_worker import agent

from orchestrator.agent.tasks.secret_files import FileError, SecretFiles
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2, documents_pb2

pytestmark = pytest.mark.root  # files get other owners


@pytest.fixture
def files(tmp_path: Path) -> SecretFiles:
    return SecretFiles(tmp_path)


def file(payload: str = "d1.1", **fields: Any) -> documents_pb2.AssignedFile:
    known = {"name": "secret db", "target": "/run/secrets/db", "mode": 0o444}
    return documents_pb2.AssignedFile(payload=payload, **{**known, **fields})


def payload(key: str = "d1.1", data: bytes = b"one", error: str = "") -> documents_pb2.Payload:
    return documents_pb2.Payload(key=key, data=data, error=error)


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def state_file(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("state.db*"))


def data_of(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder / "data")}


def test_a_file_has_the_owner_and_mode_of_its_container(files: SecretFiles) -> None:
    files.take(payload())
    (mount,) = files.place("t1", [file(uid=5, gid=6, mode=0o440)], range(100_000, 165_536))
    source = Path(mount.source)
    stat = source.stat()
    assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (100_005, 100_006, 0o440)
    folder = source.parent.stat()
    assert (folder.st_gid, folder.st_mode & 0o7777) == (100_000, 0o710)
    assert (mount.target, mount.read_only, mount.exact) == ("/run/secrets/db", True, True)
    (mount,) = files.place("t2", [file(uid=5)], range(0))
    assert Path(mount.source).stat().st_uid == 5
    assert Path(mount.source).parent.stat().st_mode & 0o077 == 0
    with pytest.raises(FileError, match="users of its own, below 65536"):
        files.place("t3", [file(uid=70_000)], range(100_000, 165_536))


def test_files_of_one_name_in_several_places(files: SecretFiles) -> None:
    files.take(payload())
    both = [file(target="/a/db"), file(target="/b/db", mode=0o400)]
    sources = [mount.source for mount in files.place("t1", both, range(0))]
    assert len(set(sources)) == 2
    assert [os.stat(source).st_mode & 0o777 for source in sources] == [0o444, 0o400]


def test_data_is_kept_as_long_as_a_task_uses_it(files: SecretFiles, tmp_path: Path) -> None:
    files.take(payload("a"))
    files.retain({"other"}, assigned=False)
    assert data_of(tmp_path) == {"a"}, "the assignment that names it is yet to come"
    files.retain({"a"}, assigned=True)
    assert data_of(tmp_path) == {"a"}
    files.retain((), assigned=False)
    assert data_of(tmp_path) == set()
    files.take(payload("../../x"))
    assert data_of(tmp_path) == set()


def test_missing_and_unavailable_data(files: SecretFiles) -> None:
    wanted = [file("a"), file("b", name="config c", target="/c")]
    assert files.missing(wanted) == "secret db, config c"
    files.take(payload("a"))
    assert files.missing(wanted) == "config c"
    files.take(payload("b", b"", "config 'c' cannot be opened"))
    assert files.missing(wanted) == ""
    with pytest.raises(FileError, match="cannot be opened"):
        files.place("t1", wanted, range(0))


def test_a_newer_version_is_stale_until_it_is_in_place(files: SecretFiles) -> None:
    files.take(payload("d1.1", b"one"))
    (mount,) = files.place("t1", [file("d1.1")], range(0))
    newer = [file("d1.2")]
    assert files.stale("t1", [file("d1.1")]) == []
    assert files.stale("t1", newer) == newer
    assert files.stale("t9", newer) == [], "nothing of it is in place"
    files.take(payload("d1.2", b"two"))
    (new,) = files.renew("t1", newer, range(0))
    assert new.source.read_bytes() == b"two"
    assert Path(mount.source).read_bytes() == b"one"
    assert files.stale("t1", newer) == newer, "an agent that dies here does it again"
    files.settle("t1", newer)
    assert files.stale("t1", newer) == []
    assert not Path(mount.source).exists()


def order(*keys: str, number: int = 0, **fields: Any) -> dispatch_pb2.AssignedTask:
    made = assigned(**fields)
    made.files.extend(file(key, target=f"/{n}", signal=number) for n, key in enumerate(keys))
    return made


async def test_a_task_waits_for_its_secrets_and_reports_it(tmp_path: Path) -> None:
    host = Host(tmp_path)
    async with agent(host) as one:
        one.full(order("d1.1"))
        await until(lambda: "waits for secret db" in one.reports.last().message)
        assert one.reports.state() is TaskState.PREPARING
        one.worker.take(payload("d1.1", b"one"))
        await one.reaches(TaskState.RUNNING)
        assert one.reports.last().message == ""
        (mount,) = host.runtime.made["t1"].mounts
        assert content(mount.source) == b"one"


async def test_nothing_of_a_secret_is_written_to_the_state_file(tmp_path: Path) -> None:
    host = Host(tmp_path)
    async with agent(host) as one:
        one.worker.take(payload("d1.1", b"correct-horse"))
        one.full(order("d1.1"))
        await one.reaches(TaskState.RUNNING)
    written = state_file(tmp_path)
    assert b"d1.1" in written
    assert b"correct-horse" not in written


async def test_an_unavailable_secret_rejects_the_task(tmp_path: Path) -> None:
    async with agent(Host(tmp_path)) as one:
        one.worker.take(payload("d1.1", b"", "secret 'db' cannot be opened: another key"))
        one.full(order("d1.1"))
        await one.reaches(TaskState.REJECTED)
        assert one.reports.last().message == "secret 'db' cannot be opened: another key"


async def test_a_running_container_gets_the_new_file_and_a_signal(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.runtime.deaf.add("t1")
    async with agent(host) as one:
        one.worker.take(payload("d1.1", b"one"))
        one.full(order("d1.1", number=signal.SIGHUP))
        await one.reaches(TaskState.RUNNING)
        one.worker.take(payload("d1.2", b"two"))
        one.diff(order("d1.2", number=signal.SIGHUP))
        await until(lambda: host.runtime.signals)
        assert host.runtime.files["t1", "/0"] == b"two"
        assert host.runtime.signals == [("t1", signal.SIGHUP)]
        await until(lambda: data_of(host.files) == {"d1.2"})
        # Told the same again, it does nothing.
        one.diff(order("d1.2", number=signal.SIGHUP))
        assert one.reports.state() is TaskState.RUNNING
    host.runtime.signals.clear()
    async with agent(host) as two:
        two.worker.take(payload("d1.3", b"three"))
        two.full(order("d1.3", number=signal.SIGHUP))
        await until(lambda: host.runtime.signals)
        assert host.runtime.files["t1", "/0"] == b"three"


async def test_files_go_with_their_task(tmp_path: Path) -> None:
    host = Host(tmp_path)
    async with agent(host) as one:
        one.worker.take(payload("d1.1", b"one"))
        one.full(order("d1.1"))
        await one.reaches(TaskState.RUNNING)
        one.diff(removed=["t1"])
        await until(lambda: not one.worker.runners)
        assert data_of(host.files) == set()
        assert not [*(host.files / "tasks").iterdir()]
