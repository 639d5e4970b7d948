# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240 - nothing else runs meanwhile
"""The audit trail's files: bounded, private, in order, and honest about what is missing."""

from __future__ import annotations

import errno
import json
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.manager.audit import trail as trail_module
from orchestrator.manager.audit.audit_files import Journal, RotatedLog
from orchestrator.manager.audit.trail import AuditEntry, AuditTrail, EntryFilter, FollowerLagging
from tests.enclosure import run_enclosed


def entry(number: int = 0, **fields: Any) -> AuditEntry:
    usual: dict[str, Any] = {
        "at": 1000.0 + number,
        "user": "anna",
        "role": "admin",
        "certificate": "abcd",
        "via": "api",
        "address": "10.0.0.1:4321",
        "method": "Control.CreateService",
        "kind": "service",
        "name": f"web{number}",
        "id": f"id{number}",
        "result": "OK",
        "seconds": 0.01,
        "request": f"{number:016x}",
        "manager": "m1",
    }
    return AuditEntry(**{**usual, **fields})


async def kept(trail: AuditTrail, tail: int = 0, **wanted: Any) -> list[dict[str, Any]]:
    await trail.written()
    return [each async for chunk in trail.entries(EntryFilter(**wanted), tail) for each in chunk]


def names(records: list[dict[str, Any]]) -> list[str]:
    return [each["name"] for each in records]


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[AuditTrail]:
    trail = AuditTrail(tmp_path / "audit", journal=Journal(tmp_path / "none"))
    with trail.running():
        yield trail


async def test_entries_come_back_in_order_and_all(trail: AuditTrail, tmp_path: Path) -> None:
    for number in range(1200):
        trail.record(entry(number))
    found = await kept(trail)
    assert names(found) == [f"web{number}" for number in range(1200)]
    assert [each["seq"] for each in found] == list(range(1, 1201))
    [file] = (tmp_path / "audit").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert json.loads(file.read_text().splitlines()[0])["user"] == "anna"


async def test_the_newest_are_given_in_order(trail: AuditTrail) -> None:
    for number in range(50):
        trail.record(entry(number))
    assert names(await kept(trail, tail=3)) == ["web47", "web48", "web49"]
    assert names(await kept(trail, tail=3, until=1010.0)) == ["web8", "web9", "web10"]
    assert names(await kept(trail, since=1048.0)) == ["web48", "web49"]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"user": ["anna"]}, ["a", "c"]),
        ({"user": ["anna", "bob"]}, ["a", "b", "c"]),
        ({"user": ["anna"], "result": ["not_found"]}, ["c"]),
        ({"from": ["10.0.0.1"]}, ["a", "c"]),
        ({"from": ["fd00::1"]}, ["b"]),
        ({"from": ["10.0.0.1:1"]}, ["a"]),
        ({"method": ["RemoveNode"]}, ["b"]),
        ({"method": ["Control.RemoveNode"]}, ["b"]),
        ({"kind": ["Node"]}, ["b"]),
        ({"id": ["xy"]}, ["c"]),
        ({"name": ["c"]}, ["c"]),
        ({"role": ["worker"]}, []),
    ],
)
async def test_entries_are_filtered(
    trail: AuditTrail, filters: dict[str, list[str]], found: list[str]
) -> None:
    trail.record(entry(1, name="a", address="10.0.0.1:1"))
    trail.record(
        entry(
            2, name="b", user="bob", method="Control.RemoveNode", kind="node", address="[fd00::1]:2"
        )
    )
    trail.record(entry(3, name="c", id="xyz", result="NOT_FOUND", address="10.0.0.1:3"))
    assert names(await kept(trail, filters=filters)) == found


async def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path, journal=Journal(tmp_path / "none"), file_bytes=4096, files=3)
    with trail.running():
        for number in range(200):
            trail.record(entry(number))
            if number % 5 == 0:
                await trail.written()
        found = await kept(trail)
        newest = await kept(trail, tail=5)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["audit.log", "audit.log.1", "audit.log.2"]
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 4096
    assert names(found)[-1] == "web199"
    assert [each["seq"] for each in found] == list(range(201 - len(found), 201))
    assert "missing" not in found[0]
    assert names(newest) == [f"web{number}" for number in range(195, 200)]


async def test_a_single_file_is_bounded_too(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path, journal=Journal(tmp_path / "none"), file_bytes=4096, files=1)
    with trail.running():
        for number in range(50):
            trail.record(entry(number))
            await trail.written()
        found = names(await kept(trail))
    assert [path.name for path in tmp_path.iterdir()] == ["audit.log"]
    assert (tmp_path / "audit.log").stat().st_size <= 4096
    assert found[-1] == "web49"


async def test_refused_calls_do_not_displace_other_entries(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path, journal=Journal(tmp_path / "none"), file_bytes=4096, files=2)
    with trail.running():
        trail.record(entry(0, name="important"))
        for number in range(1, 200):
            trail.record(entry(number, result="PERMISSION_DENIED", name="refused"))
            if number % 5 == 0:
                await trail.written()
        found = names(await kept(trail))
    assert found[0] == "important"
    assert set(found[1:]) == {"refused"}


async def test_numbering_continues_after_a_restart_and_shows_gaps(tmp_path: Path) -> None:
    for number in range(3):
        trail = AuditTrail(tmp_path, journal=Journal(tmp_path / "none"))
        with trail.running():
            trail.record(entry(number))
    file = tmp_path / "audit.log"
    lines = file.read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3]
    # One is deleted, and a crash leaves half of another.
    file.write_text("\n".join([lines[0], lines[2], lines[1][:40]]))
    trail = AuditTrail(tmp_path, journal=Journal(tmp_path / "none"))
    with trail.running():
        found = await kept(trail)
    assert [(each["seq"], each.get("missing", 0)) for each in found] == [(1, 0), (3, 1)]


async def test_a_failing_disk_delays_no_call_and_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "_RETRY", 0.01)
    lost: list[int] = []
    trail = AuditTrail(tmp_path, journal=Journal(tmp_path / "none"))
    trail.lost = lost.append
    # As good as a full disk: nothing can be written where the file should be.
    (tmp_path / "audit.log").mkdir()
    with trail.running():
        for number in range(3):
            trail.record(entry(number))
        await trail.written()
        (tmp_path / "audit.log").rmdir()
        trail.record(entry(3))
        while len(found := await kept(trail)) < 4:
            pass
    assert names(found) == ["web0", "web1", "web2", "web3"]
    assert lost == []


async def test_entries_beyond_the_queue_are_counted_and_show_as_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "_RETRY", 0.01)
    lost: list[int] = []
    trail = AuditTrail(tmp_path, journal=Journal(tmp_path / "none"), waiting=3)
    trail.lost = lost.append
    with trail.running():
        trail.record(entry(0))
        await trail.written()
        with monkeypatch.context() as patch:

            def refuse(self: RotatedLog, lines: list[str]) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(RotatedLog, "append", refuse)
            trail.record(entry(1))
            await trail.written()
            for number in range(2, 12):
                trail.record(entry(number))
        while len(await kept(trail)) < 4:
            pass
        trail.record(entry(12))
        found = await kept(trail)
    assert sum(lost) == 8
    assert names(found) == ["web0", "web1", "web2", "web3", "web12"]
    assert found[-1]["missing"] == 8


async def test_pending_entries_are_written_or_counted_at_shutdown(tmp_path: Path) -> None:
    lost: list[int] = []
    trail = AuditTrail(tmp_path, journal=Journal(tmp_path / "none"))
    trail.lost = lost.append
    (tmp_path / "audit.log").mkdir()
    with trail.running():
        trail.record(entry(0))
    assert lost == [1]


async def test_a_write_that_fails_midway_leaves_no_partial_line(tmp_path: Path) -> None:
    log = RotatedLog(tmp_path, "audit", 1 << 20, 2)
    log.open()
    log.append(["a" * 10])
    with pytest.raises(UnicodeEncodeError):
        log.append(["\ud800"])
    assert (tmp_path / "audit.log").read_text() == "a" * 10 + "\n"


async def test_names_of_any_characters_are_one_line(trail: AuditTrail, tmp_path: Path) -> None:
    odd = 'a"b\nc\r\u2028d\ud800\x00é'
    trail.record(entry(0, name=odd))
    assert names(await kept(trail)) == [odd]
    assert len((tmp_path / "audit" / "audit.log").read_bytes().splitlines()) == 1


async def test_a_follower_gets_new_entries_and_an_error_when_it_lags(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail.record(entry(0))
    with trail.follow() as follower:
        trail.record(entry(1))
        trail.record(entry(2, result="UNAUTHENTICATED"))
        assert names(await follower.next()) == ["web1", "web2"]
        monkeypatch.setattr(trail_module, "_MAX_FOLLOWER_QUEUE", 1)
        trail.record(entry(3))
        trail.record(entry(4))
        with pytest.raises(FollowerLagging):
            await follower.next()


async def test_the_journal_gets_each_entry(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(60)
        trail = AuditTrail(tmp_path / "audit", journal=Journal(path))
        with trail.running():
            trail.record(entry(7))
        told = receiver.recv(1 << 16).decode()
    fields = dict(line.split("=", 1) for line in told.splitlines())
    assert fields["SYSLOG_IDENTIFIER"] == "orc-audit"
    assert json.loads(fields["MESSAGE"])["name"] == "web7"


@pytest.mark.root
def test_a_full_disk_loses_nothing_that_fits_into_memory(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("auditfulldisk.py"), tmp_path, namespaces=())
