# SPDX-License-Identifier: Apache-2.0
"""Reading and rotating log files, with a writer that behaves as conmon does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logwriter import LogWriter

from orchestrator.agent.runtime.io.logfiles import (
    NOTICE,
    LogLimits,
    LogRecord,
    LogRotation,
    last_line,
    parse,
    read,
    rotated,
)


@pytest.fixture
def writer(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = LogWriter(tmp_path / "log")
    yield made
    made.close()


async def texts(*places: Path, **options: object) -> list[str]:
    found = read(*places, **options)  # type: ignore[arg-type]
    return [record.line.decode() async for some in found for record in some]


def test_parsing_a_record() -> None:
    line = b"2025-11-24T12:34:56.123456789+00:00 stderr F it  has spaces "
    assert parse(line) == LogRecord("stderr", 1763987696.123456789, b"it  has spaces ")
    assert parse(b"2025-11-24T13:34:56.5+01:00 stdout P ") is None
    part = parse(b"2025-11-24T13:34:56.500000000+01:00 stdout P ab")
    assert part == LogRecord("stdout", 1763987696.5, b"ab", partial=True)


@given(st.binary(max_size=80).filter(lambda line: b"\n" not in line))
def test_invalid_records(line: bytes) -> None:
    assert parse(line) is None


async def test_records_are_read_oldest_first(writer: LogWriter) -> None:
    rotation = LogRotation(LogLimits(size=1, files=3))
    for _ in range(3):
        writer.lines(2)
        assert rotation.rotate(writer.path, writer.reopen)
    writer.lines(2)
    # Three files are kept: the newest, and two older ones.
    assert await texts(writer.path) == [f"line {number}" for number in range(2, 8)]


@pytest.mark.parametrize("tail", [0, 1, 2, 3, 5, 7, 100])
async def test_tail_over_several_files(writer: LogWriter, tail: int) -> None:
    rotation = LogRotation(LogLimits(size=1, files=4))
    for _ in range(2):
        writer.lines(2)
        rotation.rotate(writer.path, writer.reopen)
    writer.lines(3)
    wanted = [f"line {number}" for number in range(7)][max(0, 7 - tail) :]
    assert await texts(writer.path, tail=tail) == wanted


async def test_tail_joins_partial_records(writer: LogWriter) -> None:
    writer.lines(1)
    for text, tag in (("one ", "P"), ("two ", "P"), ("three", "F")):
        writer.write(text, tag=tag)
    assert await texts(writer.path, tail=1) == ["one ", "two ", "three"]


async def test_tail_of_a_file_of_many_blocks(writer: LogWriter) -> None:
    writer.lines(5000)
    assert await texts(writer.path, tail=4000) == [f"line {n}" for n in range(1000, 5000)]


async def test_records_since_a_time(writer: LogWriter) -> None:
    for second in range(5):
        writer.write(str(second), second=second)
    since = datetime(2026, 11, 24, 12, 0, 3, tzinfo=UTC).timestamp()
    assert await texts(writer.path, since=since) == ["3", "4"]


async def test_following_a_log_before_it_exists(tmp_path: Path) -> None:
    path = tmp_path / "log"
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(texts(path, follow=True, ended=ended))
        await asyncio.sleep(0)
        made = LogWriter(path)
        made.lines(3)
        made.close()
        ended.set()
    assert reading.result() == ["line 0", "line 1", "line 2"]


async def test_following_across_rotations(writer: LogWriter) -> None:
    rotation = LogRotation(LogLimits(size=1, files=3))
    ended = asyncio.Event()
    received: list[str] = []
    arrived = asyncio.Event()

    async def follow() -> None:
        async for records in read(writer.path, follow=True, ended=ended):
            received.extend(record.line.decode() for record in records)
            arrived.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(follow())
        for round_number in range(20):
            writer.lines(3)
            if round_number % 3 == 0:
                rotation.rotate(writer.path, writer.reopen)
            if round_number % 5 == 0:
                arrived.clear()
                await arrived.wait()
        ended.set()
    assert received == [f"line {number}" for number in range(60)]


async def test_a_slow_reader_loses_no_line_of_its_open_files(writer: LogWriter) -> None:
    rotation = LogRotation(LogLimits(size=1, files=2))
    for _ in range(2):
        writer.lines(3)
        rotation.rotate(writer.path, writer.reopen)
    reading = read(writer.path)
    received = list(await anext(reading))
    for _ in range(4):
        writer.lines(3)
        rotation.rotate(writer.path, writer.reopen)
        received += await anext(reading)
    received += [record async for records in reading for record in records]
    assert [record.line.decode() for record in received] == [f"line {n}" for n in range(3, 18)]


async def test_lines_missed_by_a_slow_reader_are_reported(
    writer: LogWriter,
) -> None:
    rotation = LogRotation(LogLimits(size=1, files=2))
    writer.lines(1)
    reading = read(writer.path)
    (first,) = await anext(reading)
    assert first.line == b"line 0"
    for _ in range(3):
        rotation.rotate(writer.path, writer.reopen)
        writer.lines(1)
    notice, third, fourth = [record async for records in reading for record in records]
    assert (notice.stream, notice.line.startswith(b"lines may be missing here")) == (NOTICE, True)
    assert [third.line, fourth.line] == [b"line 2", b"line 3"]


async def test_a_log_moved_while_it_is_read(writer: LogWriter, tmp_path: Path) -> None:
    rotation = LogRotation(LogLimits(size=1, files=3))
    for _ in range(2):
        writer.lines(2)
        rotation.rotate(writer.path, writer.reopen)
    kept = tmp_path / "kept" / "log"
    kept.parent.mkdir()
    reading = read(writer.path, kept)
    received = list(await anext(reading))
    writer.lines(2)
    for path in sorted(tmp_path.glob("log*")):  # noqa: ASYNC240 - nothing else runs meanwhile
        path.rename(kept.with_name(path.name))
    received += [record async for records in reading for record in records]
    assert [record.line.decode() for record in received] == [f"line {n}" for n in range(6)]
    assert await texts(writer.path, kept) == [f"line {n}" for n in range(6)]


async def test_following_ends_with_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "container"
    folder.mkdir()
    made = LogWriter(folder / "log")
    made.lines(1)
    made.close()
    seen = []
    async with asyncio.timeout(60):
        async for records in read(made.path, follow=True):
            seen += [record.line for record in records]
            made.path.unlink()
            folder.rmdir()
    assert seen == [b"line 0"]


def test_a_small_log_is_not_rotated(writer: LogWriter) -> None:
    writer.lines(1)
    assert not LogRotation(LogLimits(size=1000)).rotate(writer.path, writer.reopen)
    assert not rotated(writer.path, 1).exists()


def test_a_new_file_is_requested_once_per_rotation(writer: LogWriter) -> None:
    rotation = LogRotation(LogLimits(size=1))
    told: list[bool] = []

    def remember() -> bool:
        told.append(True)
        return True

    writer.lines(1)
    for _ in range(3):
        rotation.rotate(writer.path, remember)
    assert told == [True]
    writer.reopen()
    writer.lines(1)
    rotation.rotate(writer.path, remember)
    assert told == [True, True]


async def test_an_interrupted_rotation_is_finished_by_the_next_agent(writer: LogWriter) -> None:
    writer.lines(2)
    LogRotation(LogLimits(size=1)).rotate(writer.path, lambda: False)
    writer.lines(1)
    assert LogRotation(LogLimits(size=1)).rotate(writer.path, writer.reopen)
    writer.lines(1)
    assert await texts(writer.path) == [f"line {number}" for number in range(4)]


def test_text_of_the_last_record(writer: LogWriter) -> None:
    assert last_line(writer.path.with_name("none")) == ""
    assert last_line(writer.path) == ""
    writer.lines(3)
    assert last_line(writer.path) == "line 2"
