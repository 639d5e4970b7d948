# SPDX-License-Identifier: Apache-2.0
"""Running a module as a short program in a bare interpreter, which starts in 10 ms.

Such a program sees the standard library and this package, nothing of its environment and no other
packages. Its module is imported and not run as a file, so that it need not be compiled each time.
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
    """The words that run `main(argv)` of a module, to which the program's own arguments are added;
    what it returns is the exit status. `options` are of the interpreter."""
    return (sys.executable, "-I", "-S", *options, "-c", _START, _PACKAGES, module)
