# SPDX-License-Identifier: Apache-2.0
"""conmon's reports and pid files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.agent.runtime.engine import conmon


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
def test_parsing_conmons_report(line: bytes, expected: conmon.Report | None) -> None:
    assert conmon.parse_report(line) == expected


def test_a_pid_file_alone_does_not_identify_a_monitor(tmp_path: Path) -> None:
    assert conmon.find_monitor(tmp_path, "a") is None
    (tmp_path / conmon.MONITOR_PID).write_text(str(os.getpid()))
    assert conmon.find_monitor(tmp_path, "a") is None
    (tmp_path / conmon.MONITOR_PID).write_text("")
    assert conmon.find_monitor(tmp_path, "a") is None
    assert not conmon.reopen_log(tmp_path)
