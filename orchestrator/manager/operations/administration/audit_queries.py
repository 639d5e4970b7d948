# SPDX-License-Identifier: Apache-2.0
"""Queries of the audit trail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from orchestrator.manager.audit.audit_files import Record
from orchestrator.manager.audit.trail import FILTERS, AuditTrail, EntryFilter, FollowerLagging
from orchestrator.manager.errors import invalid_argument, unavailable
from orchestrator.manager.operations.context import ManagerContext, Operations
from orchestrator.pb import audit_pb2


class AuditOperations(Operations):
    """Operations of `orc audit`."""

    def __init__(self, ctx: ManagerContext, trail: AuditTrail) -> None:
        super().__init__(ctx)
        self._trail = trail

    async def entries(self, request: audit_pb2.AuditRequest) -> AsyncIterator[audit_pb2.AuditReply]:
        """Stream entries of the audit trail, past and, with `follow`, new ones."""
        filters: dict[str, list[str]] = {}
        for each in request.filters:
            if each.key not in FILTERS:
                raise invalid_argument(f"unknown filter '{each.key}'; use {', '.join(FILTERS)}")
            filters.setdefault(each.key, []).append(each.value)
        if request.tail < 0:
            raise invalid_argument("the number of entries cannot be negative")
        wanted = EntryFilter(request.since, request.until, filters)
        with self._trail.follow() as follower:
            # The files have all entries up to here, and the follower gets all later ones.
            kept = replace(wanted, marks=self._trail.marks)
            await self._trail.written()
            async for chunk in self._trail.entries(kept, request.tail):
                yield _reply(chunk)
            while request.follow:
                remains = request.until - self.ctx.now() if request.until else None
                try:
                    async with asyncio.timeout(remains):
                        fresh = await follower.next()
                except TimeoutError:
                    return
                except FollowerLagging:
                    raise unavailable(
                        "entries come faster than they are read; call again with --since"
                    ) from None
                if chunk := list(filter(wanted.holds, fresh)):
                    yield _reply(chunk)


def _reply(records: list[Record]) -> Any:
    return audit_pb2.AuditReply(entries=[_entry(each) for each in records])


def _entry(record: Record) -> Any:
    letter = "r" if record["log"] == "refused" else ""
    entry = audit_pb2.AuditEntry(
        sequence=f"{letter}{record['seq']}", missing=record.get("missing", 0)
    )
    for field in entry.DESCRIPTOR.fields:
        if field.name not in ("sequence", "missing") and field.name in record:
            setattr(entry, field.name, record[field.name])
    return entry
