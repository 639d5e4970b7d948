# SPDX-License-Identifier: Apache-2.0
"""The installed `orc` where it has no cluster, no root, or no identity: one line each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ORC = str(Path(sys.executable).with_name("orc"))


def _refused(tmp_path: Path, *command: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORC_")}
    done = subprocess.run(
        command,
        env={**environment, "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_no_cluster_is_set_up(tmp_path: Path) -> None:
    assert "orc dev up" in _refused(tmp_path, ORC, "node", "ls")


@pytest.mark.root
@pytest.mark.parametrize("command", ["dev up", "dev down", "agent"])
def test_another_user_than_root(command: str, tmp_path: Path) -> None:
    as_user = ("unshare", "--map-user", "1000", "--map-group", "1000", "--")
    assert "root" in _refused(tmp_path, *as_user, ORC, *command.split())


@pytest.mark.root
def test_an_agent_that_never_joined(tmp_path: Path) -> None:
    said = _refused(tmp_path, ORC, "agent", "--data-dir", str(tmp_path / "nothing"))
    assert "orc cluster join --token" in said
