"""What the Debian package says of itself."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.agent.check import PROGRAMS

BUILD = Path(__file__).parents[2] / "scripts" / "deb"


def test_it_depends_on_every_program_that_a_node_is_checked_for() -> None:
    found = re.search(r"^Depends: ((?:.*\n)(?: .*\n)*)", BUILD.read_text(), re.MULTILINE)
    assert found
    depends = {entry.split()[0] for entry in found[1].split(",")}
    assert {package for _, package, _ in PROGRAMS} <= depends
