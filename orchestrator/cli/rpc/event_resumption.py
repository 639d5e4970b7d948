# SPDX-License-Identifier: Apache-2.0
"""A stream of events that goes on at another manager, with each event once."""

from __future__ import annotations

from typing import Any

from orchestrator.pb import containers_pb2

_WHOLE_REVISION = 2**31 - 1
"""Number of an event that is after all of its revision."""


class EventResumption:
    """What was received of the answer to an EventsRequest, across losses of managers."""

    def __init__(self, request: Any) -> None:
        self._request = containers_pb2.EventsRequest()
        self._request.CopyFrom(request)
        self._call: Any = None

    @property
    def request(self) -> Any:
        """The request for events after those received."""
        return self._request

    def opened(self, call: Any) -> None:
        """The stream begins; `call` has the metadata of its answer."""
        self._call = call

    def take(self, event: Any) -> None:
        """An event was received."""
        if event.revision:
            self._request.after_revision = event.revision
            self._request.after_number = event.number

    def lost(self) -> None:
        """The stream broke: another one begins."""
        if self._call is not None and not self._request.after_revision:
            # No event has come; the position is the one at which the stream began.
            shown = self._call.metadata.get("orc-revision", "0")
            self._request.after_revision = int(shown)
            self._request.after_number = _WHOLE_REVISION
