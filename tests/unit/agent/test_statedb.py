# SPDX-License-Identifier: Apache-2.0
"""The agent's memory over its own death."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from agentfakes import assigned

from orchestrator.agent.statedb import StateDb, StateDbError
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2

RUNNING = TaskStatus(state=TaskState.RUNNING, pid=7, addresses={"orc": "10.128.0.2"})
NETWORK = dispatch_pb2.AssignedNetwork(id="n1", name="orc", vni=1, subnet="10.128.0.0/24")


def test_records_are_read_back(tmp_path: Path) -> None:
    with StateDb(tmp_path / "state.db") as db:
        assert db.records() == {}
        assert db.networks() == []
        assert db.managers() == ()
        db.put_assignments([assigned("a"), assigned("b")], [NETWORK], "boot-1")
        db.put_status("a", RUNNING, "boot-1")
        db.put_released("b")
        db.put_managers(["m1:7420", "m2:7420"])
    with StateDb(tmp_path / "state.db") as db:
        records = db.records()
        assert records["a"].status == RUNNING
        assert records["a"].assigned == assigned("a")
        assert not records["a"].released
        assert records["b"].status.state is TaskState.ASSIGNED
        assert records["b"].released
        assert db.networks() == [NETWORK]
        assert db.managers() == ("m1:7420", "m2:7420")


def test_a_new_order_keeps_the_status(tmp_path: Path) -> None:
    with StateDb(tmp_path / "state.db") as db:
        db.put_assignments([assigned("a")], [NETWORK], "boot-1")
        db.put_status("a", RUNNING, "boot-1")
        db.put_assignments([assigned("a", TaskState.SHUTDOWN)], None, "boot-2")
        record = db.records()["a"]
        assert record.status == RUNNING
        assert record.boot_id == "boot-1"
        assert record.assigned.task.desired_state == TaskState.SHUTDOWN
        assert db.networks() == [NETWORK]
        db.forget("a")
        assert db.records() == {}


def test_a_task_that_ended_before_its_record_was_lost_stays_ended(tmp_path: Path) -> None:
    ended = assigned("a")
    ended.task.status.state = TaskState.COMPLETE
    with StateDb(tmp_path / "state.db") as db:
        db.put_assignments([ended], None, "boot-1")
    # The agent is killed before it has recorded anything else.
    with StateDb(tmp_path / "state.db") as db:
        assert db.records()["a"].status.state is TaskState.COMPLETE


def test_an_assignment_is_recorded_atomically(tmp_path: Path) -> None:
    with StateDb(tmp_path / "state.db") as db:
        broken = object()
        with pytest.raises(AttributeError):
            db.put_assignments([assigned("a"), broken], None, "boot-1")  # type: ignore[list-item]
        assert db.records() == {}
        db.put_assignments([assigned("a")], None, "boot-1")
        assert list(db.records()) == ["a"]


def test_records_survive_kill_9(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from orchestrator.agent.statedb import StateDb
from orchestrator.model.tasks import TaskStatus
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2, types_pb2
db = StateDb(Path({str(tmp_path / "state.db")!r}))
db.put_assignments([dispatch_pb2.AssignedTask(task=types_pb2.Task(id="a"))], [], "boot-1")
db.put_status("a", TaskStatus(state=TaskState.STARTING), "boot-1")
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ}, check=False)
    assert killed.returncode == -9
    with StateDb(tmp_path / "state.db") as db:
        assert db.records()["a"].status.state is TaskState.STARTING


def test_a_second_agent_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        StateDb(tmp_path / "state.db"),
        pytest.raises(StateDbError, match="another agent"),
    ):
        StateDb(tmp_path / "state.db")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, " * 512)
    with pytest.raises(StateDbError, match=r"state\.db is not usable"):
        StateDb(tmp_path / "state.db")


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / "state.db")
    raw.execute("PRAGMA user_version=99")
    raw.close()
    with pytest.raises(StateDbError, match="newer version"):
        StateDb(tmp_path / "state.db")
