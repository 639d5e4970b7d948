# SPDX-License-Identifier: Apache-2.0
"""Log positions: a stream resumed at any line is complete."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.formats.log_position import LogPosition
from orchestrator.pb import control_pb2 as pb


def batches(times: list[int], sizes: list[int]) -> list[list[pb.LogRecord]]:
    """Lines of these times, each told from all others, some at a time."""
    lines = [pb.LogRecord(at=at, line=b"%d" % n) for n, at in enumerate(times)]
    cut = []
    for size in sizes:
        cut.append(lines[:size])
        lines = lines[size:]
    return [*cut, lines]


@given(
    st.lists(st.integers(1, 5), max_size=12).map(sorted),
    st.lists(st.integers(1, 4), max_size=5),
    st.lists(st.integers(1, 4), max_size=5),
    st.integers(0, 5),
    st.floats(0, 1),
)
def test_interrupted_log_stream_resumes_without_gaps(
    times: list[int], sizes: list[int], others: list[int], cut: int, back: float
) -> None:
    place, shown = LogPosition(0.0, -1), []
    for records in batches(times, sizes)[:cut]:
        place.advance(records)
        shown += records
    # The next stream begins there or before.
    since = place.since * back
    place.begin()
    again = batches(times, others)
    for records in again:
        records[:] = [record for record in records if record.at >= since]
        place.advance(records)
        shown += records
    assert [int(record.line) for record in shown] == list(range(len(times)))


def test_a_word_of_the_nodes_own_is_always_shown() -> None:
    place = LogPosition(0.0, -1)
    place.advance([pb.LogRecord(at=3, line=b"a")])
    place.begin()
    records = [pb.LogRecord(at=2, line=b"old"), pb.LogRecord(notice=True, line=b"lost")]
    place.advance(records)
    assert [record.line for record in records] == [b"lost"]
