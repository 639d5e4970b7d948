# SPDX-License-Identifier: Apache-2.0
"""The Debian source package: what its binary packages depend on and what their files say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from orchestrator.agent.diagnostics.system_check import PROGRAMS

REPOSITORY = Path(__file__).parents[2]
DEBIAN = REPOSITORY / "debian"
PACKAGES = ("orc", "orc-common", "orc-agent", "orc-manager")
ESSENTIAL = {"util-linux"}
"""Every Debian system has it, so that no package depends on it."""


def fields(package: str) -> dict[str, str]:
    """The stanza of a binary package in debian/control."""
    for stanza in (DEBIAN / "control").read_text().split("\n\n"):
        found = re.findall(r"^([\w-]+):\s*((?:.*\n?)(?:[ \t].*\n?)*)", stanza, re.MULTILINE)
        named = {key: value.strip() for key, value in found}
        if named.get("Package") == package:
            return named
    raise KeyError(package)


def depends(package: str) -> set[str]:
    return {entry.split()[0] for entry in fields(package)["Depends"].split(",")}


def installed(package: str) -> list[list[str]]:
    """The lines of a package's list: sources, and their folder."""
    lines = (DEBIAN / f"{package}.install").read_text().splitlines()
    return [line.split() for line in lines]


def test_an_agent_depends_on_every_program_that_a_node_is_checked_for() -> None:
    assert {package for _, package, _ in PROGRAMS} <= depends("orc-agent") | ESSENTIAL


def test_a_manager_depends_on_its_store() -> None:
    assert {"etcd-server", "skopeo"} <= depends("orc-manager")


def test_a_client_depends_on_no_program_of_hosts() -> None:
    assert all(each.startswith("${") for each in depends("orc"))


def test_packages_replace_the_former_single_package() -> None:
    for package in ("orc-agent", "orc-manager"):
        assert fields(package)["Replaces"] == fields(package)["Breaks"] == "orc (<< 0.1.0-1~)"


def test_setup_installs_every_program_that_a_node_is_checked_for() -> None:
    listed = re.search(r'^packages="([^"]*)"', (REPOSITORY / "scripts/setup").read_text(), re.M)
    assert listed
    assert {package for _, package, _ in PROGRAMS} <= {*listed[1].split(), "mount"}


@pytest.mark.parametrize("package", ["orc", "orc-agent", "orc-manager"])
def test_files_of_the_source_that_a_package_installs_are_there(package: str) -> None:
    for *sources, _ in installed(package):
        for source in sources:
            if not source.startswith("debian/tmp/"):
                assert (REPOSITORY / source).exists()


def test_each_daemon_has_its_unit_and_its_configuration() -> None:
    for daemon in ("agent", "manager"):
        lines = installed(f"orc-{daemon}")
        assert [f"packaging/orc-{daemon}.service", "usr/lib/systemd/system"] in lines
        assert [f"packaging/{daemon}.toml", "etc/orc"] in lines


def test_maintainer_scripts_are_shell_with_room_for_debhelper_s() -> None:
    scripts = [*DEBIAN.glob("*.p*inst"), *DEBIAN.glob("*.p*rm")]
    assert len(scripts) == 6
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True)
        assert re.match(r"#!/bin/sh\n(#.*\n)*set -e\n", script.read_text())
        assert "\n#DEBHELPER#\n" in script.read_text()


def test_every_lintian_override_has_a_reason() -> None:
    for package in PACKAGES:
        before = ""
        for line in (DEBIAN / f"{package}.lintian-overrides").read_text().splitlines():
            assert before or line.startswith("# ")
            assert line.startswith(("# ", f"{package}: "))
            before = line


def test_the_version_comes_from_the_source() -> None:
    assert not (DEBIAN / "changelog").exists()


def test_the_agent_s_unit_forbids_nothing_that_containers_would_inherit() -> None:
    """systemd.exec(5): these are filters of system calls, capabilities or devices, or make a mount
    namespace of the agent's own."""
    unit = (REPOSITORY / "packaging" / "orc-agent.service").read_text()
    keys = {line.partition("=")[0] for line in unit.splitlines() if "=" in line}
    forbidding = r"Protect\w+|Private\w+|Restrict\w+|SystemCall\w+|Lock\w+|\w+BoundingSet|Device\w+"
    assert not [key for key in keys if re.fullmatch(forbidding + "|NoNewPrivileges", key)]
