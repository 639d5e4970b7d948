# SPDX-License-Identifier: Apache-2.0
"""The tutorial, run as its reader would, on a host that has nothing of Orc: each command in order,
and what it prints."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from consoleblocks import Shell, Step, steps
from devcluster import eventually
from packagedhost import ENVIRONMENT, ROOT, packaged_host

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(600)]

TUTORIAL = ROOT / "docs" / "tutorial" / "first-cluster.md"
CLUSTER = f"e2e-{os.getpid()}-tutorial"
"""The kernel's cgroups are those of this host: a cluster of its user's may be called `dev`."""


def look(shell: Shell, step: Step) -> bool:
    """Run a step; it must succeed and print what the page says."""
    said, status = shell.run(step.once)
    said = said.replace(f"'{CLUSTER}'", "'dev'")
    where = f"{TUTORIAL.name}:{step.line}: {step.command}"
    assert status == 0, f"{where}: exit status {status}: {said}"
    assert step.matches(said), f"{where} said:\n{said}\nin place of:\n{step.shown}"
    return True


def test_tutorial_has_the_documented_output(packages: list[Path], tmp_path: Path) -> None:
    with packaged_host(tmp_path / "host") as host:
        home = host.root / "home" / "reader"
        home.mkdir(parents=True)
        for package in packages:
            shutil.copy(package, home)
        env = {**ENVIRONMENT, "HOME": "/home/reader", "ORC_DEV_NAME": CLUSTER}
        shell = Shell(host.alone, env)
        try:
            for step in steps(TUTORIAL):
                if step.watched:
                    eventually(partial(look, shell, step), every=0.2)
                else:
                    look(shell, step)
        finally:
            shell.run("orc dev down")
            shell.close()
