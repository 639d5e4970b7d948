# SPDX-License-Identifier: Apache-2.0
"""What the tests of the dev cluster share: its stand-in for `orc`, and the search for remains."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STAND_IN = Path(__file__).with_name("standin.py")


def traces(name: str) -> list[str]:
    """All that is left of a dev cluster on this machine, of whatever kind."""
    found = [str(path) for path in Path("/run/netns").glob(f"orcdev-{name}")]
    for path in Path("/sys/class/net").glob("orcdev-*/ifalias"):
        with suppress(OSError):  # it went meanwhile
            if path.read_text().startswith(f"dev-cluster-{name}-of-"):
                found.append(str(path))
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/orc-{name}-*")]
    found += [str(path) for path in Path("/var/lib/orc-dev").glob(name)]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f"/orc-dev/{name}/" in line:
            found.append(line)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"/orc-dev/{name}/" in arguments:
            found.append(f"process {process.name}: {arguments}")
    return found


def until(ask: Callable[[], T], within: float = 60.0) -> T:
    """Poll until the answer is true."""
    deadline = time.monotonic() + within
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"still {answer!r} after {within} s"
        time.sleep(0.01)
    return answer
