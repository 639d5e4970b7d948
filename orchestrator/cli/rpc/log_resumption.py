# SPDX-License-Identifier: Apache-2.0
"""A stream of log lines that goes on at another manager, with each line once."""

from __future__ import annotations

from typing import Any

from orchestrator.model.formats.log_position import LogPosition
from orchestrator.pb import control_pb2


class LogResumption:
    """What was received of the answer to a LogsRequest, across losses of managers."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._places: dict[str, LogPosition] = {}

    @property
    def request(self) -> Any:
        """The request for lines after those received; it may repeat known lines: all of them if all
        were requested, as lines of some task may be outstanding."""
        request = self._request
        heard = [place.since for place in self._places.values() if place.tail < 0]
        if request.tail < 0 or not heard:
            return request
        further = control_pb2.LogsRequest()
        further.CopyFrom(request)
        further.since, further.tail = min(heard), -1
        return further

    def opened(self, call: Any) -> None:
        """The stream begins."""

    def take(self, batch: Any) -> None:
        """Remove what was received before from a LogBatch."""
        start = LogPosition(self._request.since, self._request.tail)
        self._places.setdefault(batch.task_id, start).advance(batch.records)

    def lost(self) -> None:
        """The stream broke: another one begins."""
        for place in self._places.values():
            place.begin()
