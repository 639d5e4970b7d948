"""The tutorial, run as its reader would: each command in order, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from consoleblocks import Shell, Step, steps
from devcluster import ORC, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"


def test_the_tutorial_does_what_it_says(
    spare_cluster: Callable[[str], Cluster], tmp_path: Path
) -> None:
    cluster = spare_cluster("tutorial")
    path = f"{Path(ORC).parent}:{cluster.env['PATH']}"
    shell = Shell(tmp_path, {**cluster.env, "PATH": path, "ORC_DEV_NAME": cluster.name})

    def run(step: Step) -> None:
        # What a host with the package has elsewhere, and what the cluster is called there.
        command = step.once.replace("/usr/share/orc/charts", str(ROOT / "charts"))
        said, status = shell.run(command)
        said = said.replace(f"'{cluster.name}'", "'dev'")
        where = f"{TUTORIAL.name}:{step.line}: {step.command}"
        assert status == 0, f"{where}: exit status {status}: {said}"
        assert step.matches(said), f"{where} said:\n{said}\nin place of:\n{step.shown}"

    def look(step: Step) -> bool:
        run(step)
        return True

    try:
        for step in steps(TUTORIAL):
            if step.kind == "install":  # by test_package, on a copy of this host
                continue
            if step.watched:
                eventually(lambda step=step: look(step), within=30.0, every=0.2)  # type: ignore[misc]
            else:
                run(step)
    finally:
        shell.close()
