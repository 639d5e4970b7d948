# SPDX-License-Identifier: Apache-2.0
"""The state file on a disk that is full, and one that is slow to flush."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from agentfakes import assigned, until
from fulldisk import small_disk
from volumekit import private

from orchestrator.agent import statedb as statedb_module
from orchestrator.agent.statedb import CannotRecord, EndpointChange, StateDb
from orchestrator.daemon.background import background
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2

RUNNING = TaskStatus(state=TaskState.RUNNING, pid=7, addresses={"orc": "10.128.0.2"})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statedb_module, "_RETRY_FIRST", 0.001)
    monkeypatch.setattr(statedb_module, "_RETRY_MOST", 0.01)


@pytest.mark.root
@private
async def test_writes_wait_until_a_full_disk_has_room_again(tmp_path: Path) -> None:
    disk = small_disk(tmp_path / "disk")
    told: list[str] = []
    with StateDb(disk.folder / "state.db") as db:
        db.wake = lambda: told.append(db.trouble)
        db.put_assignments([assigned("a"), assigned("b")], None, "boot-1")
        disk.fill()
        with pytest.raises(CannotRecord, match="full"):
            db.put_assignments([assigned("c")], None, "boot-1")
        db.put_status("a", RUNNING, "boot-1", defer=True)
        db.put_released("a")
        db.forget("b")
        db.put_managers(["m1:7420"])
        service = dispatch_pb2.ServiceEndpoints(id="s", network_id="n")
        one, two = (dispatch_pb2.Endpoint(task_id=id) for id in ("t1", "t2"))
        db.put_endpoints([EndpointChange(service, [one])], [])
        db.put_endpoints([], [("s", "n")])
        db.put_endpoints([EndpointChange(service, [two])], [])
        assert "full" in db.trouble
        assert db.managers() == ("m1:7420",)
        async with background(db.run()):
            for _ in range(20):
                await asyncio.sleep(0.002)
            assert len(told) == 1
            disk.free()
            await db.writable()
        assert told[-1] == db.trouble == ""
        db.put_assignments([assigned("c")], None, "boot-1")
    with StateDb(disk.folder / "state.db") as db:
        records = db.records()
        assert records.keys() == {"a", "c"}
        assert (records["a"].status, records["a"].released) == (RUNNING, True)
        assert db.managers() == ("m1:7420",)
        (entry,) = db.endpoints()
        assert (entry.id, [each.task_id for each in entry.endpoints]) == ("s", ["t2"])


@pytest.mark.root
@private
async def test_an_agent_starts_on_a_full_disk(tmp_path: Path) -> None:
    disk = small_disk(tmp_path / "disk")
    with StateDb(disk.folder / "state.db") as db:
        db.put_assignments([assigned("a")], None, "boot-1")
    disk.fill()
    with StateDb(disk.folder / "state.db") as db:
        assert db.records().keys() == {"a"}
        assert "full" in db.trouble


async def test_a_write_deferred_by_a_checkpoint_is_reported_once_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statedb_module, "_CHECKPOINT_AFTER", 10)
    with StateDb(tmp_path / "state.db") as db:
        db.put_assignments([assigned(f"t{n}") for n in range(10)], None, "boot-1")
        told: list[TaskState] = []
        go_on, checkpoint = threading.Event(), db._checkpoint_and_flush
        monkeypatch.setattr(db, "_checkpoint_and_flush", lambda: (go_on.wait(), checkpoint())[1])
        async with background(db.run()):
            await until(lambda: db._checkpointing)
            with pytest.raises(CannotRecord):
                db.put_assignments([assigned("new")], None, "boot-1")
            db.put_status("t1", RUNNING, "boot-1", defer=True)
            db.after(lambda: told.append(db.records()["t1"].status.state))
            assert told == []
            go_on.set()
            await db.writable()
        assert told == [TaskState.RUNNING]
        assert db.trouble == ""


NO_FSYNC = """
import asyncio, ctypes, os, struct, sys
from pathlib import Path
from orchestrator.agent.statedb import StateDb
from orchestrator.daemon.background import background
from orchestrator.model.tasks import TaskStatus
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2, types_pb2

def kill_on_fsync():
    # seccomp(2), for this thread alone: fsync (74) or fdatasync (75) kills the process.
    def op(code, jt, jf, k):
        return struct.pack("HBBI", code, jt, jf, k)
    program = b"".join((
        op(0x20, 0, 0, 0),           # load the number of the call
        op(0x15, 2, 0, FSYNC),
        op(0x15, 1, 0, FDATASYNC),
        op(0x06, 0, 0, 0x7fff0000),  # allow
        op(0x06, 0, 0, 0x80000000),  # kill the process
    ))
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program)
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 5, ctypes.addressof(buffer)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, fprog) == 0, os.strerror(ctypes.get_errno())

FSYNC, FDATASYNC = {"x86_64": (74, 75), "aarch64": (82, 83)}[os.uname().machine]

async def main():
    with StateDb(Path(sys.argv[1])) as db:
        tasks = [dispatch_pb2.AssignedTask(task=types_pb2.Task(id=f"t{n}")) for n in range(50)]
        db.put_assignments(tasks, None, "b")
        db._thread.submit(int).result()  # it exists before the filter, so it may flush
        kill_on_fsync()
        if len(sys.argv) > 2:
            os.fsync(0)
        async with background(db.run()):
            for n in range(6000):
                await db.writable()
                status = TaskStatus(state=TaskState.RUNNING, pid=n)
                db.put_status(f"t{n % 50}", status, "b")
                if n % 10 == 0:
                    await asyncio.sleep(0)
        print(os.path.getsize(sys.argv[1] + "-wal"), flush=True)
        os._exit(0)

asyncio.run(main())
"""


def test_the_event_loop_never_waits_for_a_flush(tmp_path: Path) -> None:
    """The kernel does not let the writing thread flush; the checkpoint succeeds nevertheless."""
    argv = [sys.executable, "-c", NO_FSYNC, str(tmp_path / "state.db")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert int(done.stdout) < 16 << 20, "two pages each make 48 MiB where nothing is moved"
    with StateDb(tmp_path / "state.db") as db:
        assert {r.status.pid for r in db.records().values()} == set(range(5950, 6000))
    other = subprocess.run([*argv[:-1], str(tmp_path / "b.db"), "flush"], check=False)
    assert other.returncode == -31, "SIGSYS: the filter works"
