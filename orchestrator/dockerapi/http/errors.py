# SPDX-License-Identifier: Apache-2.0
"""Refusals with the status codes and messages that Docker's clients read."""

from __future__ import annotations

from http import HTTPStatus

from orchestrator.cli.app.errors import CliError, ManagerLost, Refused, Unsupported
from orchestrator.cli.rpc.calls import Code


class ApiError(Exception):
    """A request that is refused; clients show the message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def bad_parameter(message: str) -> ApiError:
    """A value that cannot be read, or does not fit to others."""
    return ApiError(HTTPStatus.BAD_REQUEST, message)


def not_found(what: str, name: str) -> ApiError:
    """Docker's words for a missing object; `what` is such as `container`."""
    return ApiError(HTTPStatus.NOT_FOUND, f"No such {what}: {name}")


def conflict(message: str) -> ApiError:
    """The object's state does not allow it."""
    return ApiError(HTTPStatus.CONFLICT, message)


def unsupported(message: str) -> ApiError:
    """Docker has this function and a cluster does not."""
    return ApiError(HTTPStatus.NOT_IMPLEMENTED, message)


_STATUSES = {
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    Code.ABORTED: HTTPStatus.CONFLICT,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}


def as_api_error(error: CliError) -> ApiError:
    """The answer for a call that a manager refused or could not serve."""
    message = error.format_message()
    if isinstance(error, ManagerLost):
        return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message)
    if isinstance(error, Unsupported):
        return unsupported(message)
    if isinstance(error, Refused):
        return ApiError(_STATUSES.get(Code(error.code), HTTPStatus.BAD_REQUEST), message)
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message)
