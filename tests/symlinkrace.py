# SPDX-License-Identifier: Apache-2.0
"""An attacker that replaces a file by a symbolic link and back, as fast as it can."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ATTACK = """\
import ctypes, os, sys
libc = ctypes.CDLL(None)
name, link = (os.fsencode(path) for path in sys.argv[1:])
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(1000):
        libc.renameat2(-100, name, -100, link, 2)  # RENAME_EXCHANGE
"""


@contextmanager
def swapping(place: Path, target: Path) -> Iterator[None]:
    """During the block `place` is by turns what it was made and a link to `target`; it need not be
    there yet. In the end a link may be left beside it."""
    link = place.with_name(f"{place.name}.link")
    link.symlink_to(target)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ATTACK, str(place), str(link)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
