"""What of the kernel's capabilities this process has."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.model.confinement import CAPABILITIES


def own_capabilities() -> tuple[str, ...]:
    """Those that this process may pass on, its bounding set: on a host that is itself a container
    not all that the kernel knows."""
    status = Path("/proc/self/status").read_text()
    held = int(re.search(r"^CapBnd:\s*([0-9a-f]+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return tuple(name for number, name in enumerate(CAPABILITIES) if held >> number & 1)
