# SPDX-License-Identifier: Apache-2.0
"""The client runs where there is no Linux: its tests pass without what only Linux has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = (
    *("app/test_cli_root.py", "cluster/test_cli_node.py", "container/test_cli_interact.py"),
    *("flags/test_secret_config_flags.py", "image/test_cli_image.py", "rpc/test_cli_rpc.py"),
    "service/test_cli_service_rows.py",
)

WITHOUT = "not terminal and not copy_target_follows and not extraction_never_follows"
"""Tests of a terminal's raw mode, and of unpacking below a folder, which the client refuses where
the system cannot do it safely."""


@pytest.mark.timeout(600)
def test_client_tests_pass_without_linux() -> None:
    plugins = ("-p", "otherplatform", "-p", "no:cacheprovider")
    only = ("-k", WITHOUT, *(HERE / name for name in FILES))
    # Not below this test's own folder: the path of a Unix socket must be short.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *plugins, "--basetemp", f"{folder}/t", *only],
            env={**os.environ, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 200
