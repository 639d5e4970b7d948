"""A request that cannot be honoured, with the one line that its user sees."""

from __future__ import annotations

import grpc


class RequestError(Exception):
    """Raised by the API's code; becomes the gRPC status of the call, its text the details."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def not_found(text: str) -> RequestError:
    """Something that does not exist."""
    return RequestError(grpc.StatusCode.NOT_FOUND, text)


def invalid_argument(text: str) -> RequestError:
    """Something that makes no sense as given."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, text)


def already_exists(text: str) -> RequestError:
    """A name that somebody else has."""
    return RequestError(grpc.StatusCode.ALREADY_EXISTS, text)


def failed_precondition(text: str) -> RequestError:
    """Something that cannot be done as things are now."""
    return RequestError(grpc.StatusCode.FAILED_PRECONDITION, text)


def aborted(text: str) -> RequestError:
    """Somebody else changed it meanwhile."""
    return RequestError(grpc.StatusCode.ABORTED, text)


def unavailable(text: str) -> RequestError:
    """Something is not there right now; the same request may work later."""
    return RequestError(grpc.StatusCode.UNAVAILABLE, text)
