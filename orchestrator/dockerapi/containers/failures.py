# SPDX-License-Identifier: Apache-2.0
"""Reasons why a program could not be started, with the words from which Docker's clients derive
their exit status (docker/cli, cli/command/container/run.go: `toStatusError`)."""

from __future__ import annotations

from orchestrator.model.states import CANNOT_INVOKE, NOT_FOUND

_WORDS = {
    NOT_FOUND: ("executable file not found", "no such file or directory"),
    CANNOT_INVOKE: ("permission denied", "is a directory"),
}


def start_failure(reason: str, code: int) -> str:
    """`reason` for a client, with what tells that `code` was the exit status."""
    words = _WORDS.get(code, ())
    if not words or any(each in reason for each in words):
        return reason
    return f"{reason}: {words[0]}{' in $PATH' if code == NOT_FOUND else ''}"
