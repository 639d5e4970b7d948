# SPDX-License-Identifier: Apache-2.0
"""Manual pages: one for each command, with nothing in them that a formatter complains about."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[4] / "scripts" / "man"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, unpacked."""
    made, folder = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp("man1")
    subprocess.run([sys.executable, SCRIPT, made], check=True)
    for packed in made.iterdir():
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def test_mandoc_finds_no_fault(folder: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-Tlint", "-W", "warning", *sorted(folder.iterdir())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_docs_describe_commands_as_help_does(folder: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-Tutf8", folder / "orc-service-create.1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    page = " ".join("".join(_plain(done.stdout)).split())
    for words in (
        "orc-service-create - Create a service from an image, and wait until it runs",
        "--replicas INTEGER Number of tasks.",
        "EXAMPLES orc service create",
        "SEE ALSO orc-service(1)",
    ):
        assert words in page


def _plain(text: str) -> list[str]:
    """Without what printers strike twice."""
    shown: list[str] = []
    for character in text:
        if character == "\b":
            shown.pop()
        else:
            shown.append(character)
    return shown


def test_root_page_explains_exit_statuses_and_lists_all_commands(folder: Path) -> None:
    page = (folder / "orc.1").read_text()
    assert "3 not converged in time" in page
    for name in ("service", "completion", "system"):
        assert f".BR orc\\-{name} (1)" in page
        assert (folder / f"orc-{name}.1").exists()
