# SPDX-License-Identifier: Apache-2.0
"""An audit trail on a disk that is full, and is not later. Run in a mount namespace of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from test_audit_trail import entry, kept, names

from orchestrator.manager.audit import trail as trail_module
from orchestrator.manager.audit.audit_files import Journal
from orchestrator.manager.audit.trail import AuditTrail

ENTRIES = 400


async def main(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "audit", folder], check=True)  # noqa: ASYNC221
    trail_module._RETRY = 0.01
    lost: list[int] = []
    trail = AuditTrail(folder, journal=Journal(folder / "none"))
    trail.lost = lost.append
    with trail.running():
        for number in range(ENTRIES):
            trail.record(entry(number))
            if number % 20 == 0:
                await trail.written()
        full = len(await kept(trail))
        subprocess.run(["mount", "-o", "remount,size=10m", folder], check=True)  # noqa: ASYNC221
        async with asyncio.timeout(60):
            while len(found := await kept(trail)) < ENTRIES:
                pass
    assert 0 < full < ENTRIES, full
    assert names(found) == [f"web{number}" for number in range(ENTRIES)]
    assert not any("missing" in each for each in found)
    assert lost == []


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
