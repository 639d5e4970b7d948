# SPDX-License-Identifier: Apache-2.0
"""Errors of the OCI runtime, as messages for the user."""

from __future__ import annotations

import pytest

from orchestrator.agent.runtime.engine.program_errors import failure, known_failure


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "executable file `x` not found in $PATH: No such file or directory",
            "the image has no program `x`",
        ),
        (
            'runc run failed: exec: "x": executable file not found in $PATH',
            "the image has no program `x`",
        ),
        (
            "the path `/x` exists but it is not executable: Operation not permitted",
            "`/x` in the image is not executable",
        ),
        ('exec: "/x": permission denied', "`/x` in the image is not executable"),
        ("exec container process `/x`: No such file or directory", "needs an interpreter"),
        ("exec container process `/x`: Exec format error", "another architecture"),
        ("\n first line \n second", "the container could not be created: first line"),
        ("", "created: the OCI runtime ended without an error message; was it killed?"),
    ],
)
def test_known_errors_become_messages_for_the_user(text: str, words: str) -> None:
    found = str(failure(text, "created"))
    assert words in found
    assert "\n" not in found


def test_other_output_is_no_known_error() -> None:
    assert known_failure("Traceback: exec failed") is None
