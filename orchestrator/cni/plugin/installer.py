# SPDX-License-Identifier: Apache-2.0
"""Put `orc-cni` where a container runtime looks for plugins: `orc-cni install /opt/cni/bin`."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from orchestrator.linux.atomicfile import write_file

NAME = "orc-cni"
CLIENT = Path(__file__).with_name("thinclient.py")
PACKAGES = str(Path(__file__).parents[3])
# Isolated, without `site`, without the environment: all that a thin client can do without.
OPTIONS = "-ISE"
PLACE = re.compile(r"^PACKAGES = .*\nLIBRARIES = .*$", re.MULTILINE)


def script(interpreter: str, packages: str = "") -> str:
    """The client as a command of its own; it starts with the options that make it start fast.

    `packages` is the folder in which it finds Orc and pyroute2 where it will run; empty: where this
    process has them.
    """
    source = CLIENT.read_text()
    # Without its words: what is compiled at each start is short.
    source = source[source.index("import posix") :]
    libraries = packages or _libraries()
    places = f"PACKAGES = {packages or PACKAGES!r}\nLIBRARIES = {libraries!r}"
    source, count = PLACE.subn(places, source)
    assert count == 1
    return f"#!{interpreter} {OPTIONS}\n{source}"


def _libraries() -> str:
    """The folder of pyroute2, which may be another than Orc's; empty if it is not installed."""
    found = find_spec("pyroute2")
    return str(Path(found.origin).parents[1]) if found is not None and found.origin else ""


def install(folder: Path) -> Path:
    """Write the command into a folder, in place of an older one; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    # A runtime that executes it meanwhile has the old one or the new one.
    write_file(path, script(sys.executable), mode=0o755)
    return path
