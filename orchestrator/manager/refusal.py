"""A request that cannot be honoured, with the one line that its user sees."""

from __future__ import annotations

import grpc


class Refusal(Exception):
    """Raised by the API's code; becomes the gRPC status of the call, its text the details."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def not_found(text: str) -> Refusal:
    """Something that does not exist."""
    return Refusal(grpc.StatusCode.NOT_FOUND, text)


def invalid(text: str) -> Refusal:
    """Something that makes no sense as given."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)


def taken(text: str) -> Refusal:
    """A name that somebody else has."""
    return Refusal(grpc.StatusCode.ALREADY_EXISTS, text)


def precondition(text: str) -> Refusal:
    """Something that cannot be done as things are now."""
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, text)


def aborted(text: str) -> Refusal:
    """Somebody else changed it meanwhile."""
    return Refusal(grpc.StatusCode.ABORTED, text)


def unavailable(text: str) -> Refusal:
    """Something is not there right now; the same request may work later."""
    return Refusal(grpc.StatusCode.UNAVAILABLE, text)
