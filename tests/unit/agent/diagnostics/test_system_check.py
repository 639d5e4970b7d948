# SPDX-License-Identifier: Apache-2.0
"""`orc system check` as it is read."""

from __future__ import annotations

from click.testing import CliRunner

from orchestrator.agent.diagnostics.system_check import check


def test_no_line_ends_in_blanks() -> None:
    lines = CliRunner().invoke(check).stdout.splitlines()
    assert any(line.split() == ["ok", "root"] for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []
