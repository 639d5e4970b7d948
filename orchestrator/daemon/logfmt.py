# SPDX-License-Identifier: Apache-2.0
"""Structured logs of daemons: one line of `key=value` per event (logfmt).

Pass ids as `extra`: `log.info("task failed", extra={"task": task.id, "node": node.id})`.
"""

from __future__ import annotations

import logging
import sys
import time

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(c.isspace() or c in '"=' for c in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


class KeyValueFormatter(logging.Formatter):
    """`time=… level=… at=module msg=… key=value…` (the logfmt convention)."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        parts = [
            f"time={seconds}.{int(record.msecs):03d}Z",
            f"level={record.levelname.lower()}",
            f"at={record.name.removeprefix('orchestrator.')}",
            f"msg={_quoted(record.getMessage())}",
        ]
        extra = {k: v for k, v in record.__dict__.items() if k not in _PLAIN}
        parts.extend(f"{key}={_quoted(value)}" for key, value in sorted(extra.items()))
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def setup(level: str = "info") -> None:
    """Write logs of `level` (debug, info, warning, error) and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
