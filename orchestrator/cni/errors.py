# SPDX-License-Identifier: Apache-2.0
"""Errors as CNI defines them: a code for the runtime, a message for the user."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Error codes of the CNI specification 1.1 (section 5, "Error"); codes from 100 are Orc's."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    ADDRESS_IN_USE = 100
    PORT_IN_USE = 101
    INTERFACE_IN_USE = 102
    CHECK_FAILED = 103
    KERNEL_LACKS = 104
    INTERNAL = 999


class CniError(Exception):
    """A failed operation: `code` for machines, the message for people, `details` for the log."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return str(self.args[0])
