# SPDX-License-Identifier: Apache-2.0
"""`make` as another user than root: it continues with sudo, or says what to do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
NEEDED = ("make", "sh", "id", "awk")

Make = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.root


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The user's PATH: without sudo, whatever this machine has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in NEEDED:
        found = shutil.which(program)
        assert found, program
        (folder / program).symlink_to(found)
    return folder


@pytest.fixture
def make(tmp_path: Path, programs: Path) -> Make:
    """Runs make as user 1000, in a folder with the Makefile and nothing else."""
    shutil.copy(MAKEFILE, tmp_path)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        as_user = ["/usr/bin/unshare", "--map-user", "1000", "--map-group", "1000", "--"]
        return subprocess.run(
            [*as_user, "make", *words],
            cwd=tmp_path,
            env={"PATH": str(programs)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("target", ["demo", "test", "bench", "vm-test", "install"])
def test_without_sudo_one_line_names_the_remedy(make: Make, target: str) -> None:
    done = make(target)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "Error 1" not in line]
    assert said == [f"make {target}: needs root: run it as root, or install sudo"]


def test_with_sudo_it_continues_with_the_same_arguments(make: Make, programs: Path) -> None:
    (programs / "sudo").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    (programs / "sudo").chmod(0o755)
    done = make("test", """ARGS=-k "a or b" tests/unit""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("""<test><ARGS=-k "a or b" tests/unit>""")
    assert done.stdout.startswith("<make>")


def test_help_needs_no_root(make: Make) -> None:
    assert "make demo" in make("help").stdout
