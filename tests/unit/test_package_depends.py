"""What the Debian package says of itself."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.agent.diagnostics.system_check import PROGRAMS

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "scripts" / "deb"


def test_it_depends_on_every_program_that_a_node_is_checked_for() -> None:
    found = re.search(r"^Depends: ((?:.*\n)(?: .*\n)*)", BUILD.read_text(), re.MULTILINE)
    assert found
    depends = {entry.split()[0] for entry in found[1].split(",")}
    assert {package for _, package, _ in PROGRAMS} <= depends


def test_setup_installs_every_program_that_a_node_is_checked_for() -> None:
    listed = re.search(r'^packages="([^"]*)"', (REPOSITORY / "scripts/setup").read_text(), re.M)
    assert listed
    assert {package for _, package, _ in PROGRAMS} <= {*listed[1].split(), "mount"}


def test_the_agent_s_unit_forbids_nothing_that_containers_would_inherit() -> None:
    """systemd.exec(5): these are filters of system calls, capabilities or devices, or make a mount
    namespace of the agent's own."""
    unit = (REPOSITORY / "packaging" / "orc-agent.service").read_text()
    keys = {line.partition("=")[0] for line in unit.splitlines() if "=" in line}
    forbidding = r"Protect\w+|Private\w+|Restrict\w+|SystemCall\w+|Lock\w+|\w+BoundingSet|Device\w+"
    assert not [key for key in keys if re.fullmatch(forbidding + "|NoNewPrivileges", key)]
