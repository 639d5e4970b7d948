"""Services that cannot be planned: such a defect delays no other service."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Failures:
    """Collects what goes wrong in one pass, by service or standalone container."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        """Id → the first error, in one line."""

    @contextmanager
    def of(self, owner: str) -> Iterator[None]:
        """Whatever is raised in the block is noted for `owner`, and raised no further."""
        try:
            yield
        except Exception as error:
            log.exception("a service cannot be planned", extra={"service": owner})
            self.found.setdefault(owner, f"{type(error).__name__}: {error}")
