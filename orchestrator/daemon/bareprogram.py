# SPDX-License-Identifier: Apache-2.0
"""Running a module as a short program in a bare interpreter, which starts in 10 ms.

The program sees the standard library and this package, but no environment variables of Python and
no other packages. The module is imported instead of run as a file, so that its bytecode is cached.
"""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGES = str(Path(__file__).parents[2])
_START = """\
import sys
packages, name = sys.argv[1:3]
sys.path.append(packages)
__import__(name)
sys.exit(sys.modules[name].main(sys.argv[3:]))
"""


def command(module: str, *options: str) -> tuple[str, ...]:
    """The command that runs `main(argv)` of a module, to which the caller appends arguments. The
    result of `main` is the exit status. `options` are those of the interpreter."""
    return (sys.executable, "-I", "-S", *options, "-c", _START, _PACKAGES, module)
