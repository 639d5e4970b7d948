# SPDX-License-Identifier: Apache-2.0
"""Errors of requests: a kind, and one line for the user."""

from __future__ import annotations

from enum import Enum


class ErrorKind(Enum):
    """Why a request failed, in the terms of gRPC's status codes, whatever the front end."""

    NOT_FOUND = "not found"
    INVALID_ARGUMENT = "invalid argument"
    ALREADY_EXISTS = "already exists"
    FAILED_PRECONDITION = "failed precondition"
    ABORTED = "aborted"
    UNAVAILABLE = "unavailable"


class RequestError(Exception):
    """A request that cannot be fulfilled. Front ends map `kind` to their own status codes and show
    `text` to the user. `retry`: the same manager can probably serve it in a moment."""

    def __init__(self, kind: ErrorKind, text: str, *, retry: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.retry = retry


def not_found(text: str) -> RequestError:
    """The object does not exist."""
    return RequestError(ErrorKind.NOT_FOUND, text)


def invalid_argument(text: str) -> RequestError:
    """The request is invalid whatever the state of the cluster."""
    return RequestError(ErrorKind.INVALID_ARGUMENT, text)


def already_exists(text: str) -> RequestError:
    """The name or address is in use."""
    return RequestError(ErrorKind.ALREADY_EXISTS, text)


def failed_precondition(text: str) -> RequestError:
    """The current state of the cluster does not allow it."""
    return RequestError(ErrorKind.FAILED_PRECONDITION, text)


def aborted(text: str) -> RequestError:
    """The object was modified concurrently."""
    return RequestError(ErrorKind.ABORTED, text)


def unavailable(text: str) -> RequestError:
    """Something needed is unavailable at the moment; the same request may succeed later."""
    return RequestError(ErrorKind.UNAVAILABLE, text)


def not_ready(text: str) -> RequestError:
    """This manager or etcd cannot serve at the moment, as during a restart: clients retry it."""
    return RequestError(ErrorKind.UNAVAILABLE, text, retry=True)
