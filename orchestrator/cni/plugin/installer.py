# SPDX-License-Identifier: Apache-2.0
"""Install `orc-cni` in a container runtime's plugin folder: `orc-cni install /opt/cni/bin`."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from orchestrator.linux.atomicfile import write_file

NAME = "orc-cni"
CLIENT = Path(__file__).with_name("thinclient.py")
PACKAGES = str(Path(__file__).parents[3])
# Isolated, without `site`, ignoring the environment, for a fast start.
OPTIONS = "-ISE"
PLACE = re.compile(r"^PACKAGES = .*\nLIBRARIES = .*$", re.MULTILINE)


def script(interpreter: str, packages: str = "") -> str:
    """The client as an executable script with the options for a fast start.

    `packages` is the folder of Orc and pyroute2 on the target; empty: those of this process.
    """
    source = CLIENT.read_text()
    # Without the docstring: the script is compiled at each start.
    source = source[source.index("import posix") :]
    libraries = packages or _libraries()
    places = f"PACKAGES = {packages or PACKAGES!r}\nLIBRARIES = {libraries!r}"
    source, count = PLACE.subn(places, source)
    assert count == 1
    return f"#!{interpreter} {OPTIONS}\n{source}"


def _libraries() -> str:
    """The folder of pyroute2, which may differ from Orc's; empty if it is not installed."""
    found = find_spec("pyroute2")
    return str(Path(found.origin).parents[1]) if found is not None and found.origin else ""


def install(folder: Path) -> Path:
    """Write or replace the command in a folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    # Atomic: a runtime may execute it meanwhile.
    write_file(path, script(sys.executable), mode=0o755)
    return path
