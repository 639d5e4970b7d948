# SPDX-License-Identifier: Apache-2.0
"""The Vagrantfile as Vagrant reads it. What its machines do, `make vm-test ARGS=testbed` tries."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

VAGRANT = Path(__file__).parents[2] / "vagrant"

Validate = Callable[..., tuple[str, bool]]


@pytest.fixture
def validate(tmp_path: Path) -> Validate:
    """`vagrant validate` with settings; what it said, and whether it was content."""

    def run(**settings: str) -> tuple[str, bool]:
        state = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path)}
        done = subprocess.run(
            # The plugin for libvirt is not needed to develop Orc.
            ["vagrant", "validate", "--ignore-provider"],
            cwd=VAGRANT,
            env={**os.environ, "VAGRANT_CHECKPOINT_DISABLE": "1", **state, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout, done.returncode == 0

    return run


def test_all_machines_are_valid(validate: Validate) -> None:
    said, content = validate(ORC_WORKERS="4", ORC_PACKAGES=str(VAGRANT))
    assert content, said
    assert said.count("Ignoring provider config") == 5
    assert "warning" not in said


def test_value_other_than_a_number_is_refused_in_one_line(validate: Validate) -> None:
    said, content = validate(ORC_WORKERS="two")
    assert not content
    assert said == "ORC_WORKERS=two: give a whole number\n"


def test_several_managers_are_valid(validate: Validate) -> None:
    said, content = validate(ORC_MANAGERS="3", ORC_PACKAGES=str(VAGRANT))
    assert content, said
    assert said.count("Ignoring provider config") == 5


def test_a_number_of_managers_out_of_range_is_refused_in_a_line(validate: Validate) -> None:
    said, content = validate(ORC_MANAGERS="8")
    assert not content
    assert said == "ORC_MANAGERS=8: give 1 to 7\n"
