# SPDX-License-Identifier: Apache-2.0
"""Names of signals, as users and images write them. The numbers are Linux's, on every system:
containers run there."""

from __future__ import annotations

import re

_NAMES = (
    *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2"),
    *("PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG"),
    *("XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS"),
)
NUMBERS = {name: number for number, name in enumerate(_NAMES, start=1)}
"""Without `SIG`, as signal(7) numbers them on x86 and ARM."""
NUMBERS |= {"IOT": NUMBERS["ABRT"], "CLD": NUMBERS["CHLD"], "POLL": NUMBERS["IO"]}
FIRST_REALTIME, LAST_REALTIME = 34, 64
"""SIGRTMIN and SIGRTMAX of programs that use a C library."""
_REALTIME = re.compile(r"RTM(IN|AX)(?:([+-])(\d+))?")


def signal_number(name: str) -> int:
    """The number of `SIGTERM`, `term`, `15` or `SIGRTMIN+3`.

    Raises ValueError for an unknown signal.
    """
    text = name.strip().upper().removeprefix("SIG")
    number = NUMBERS.get(text)
    if text.isdecimal():
        number = int(text)
    elif match := _REALTIME.fullmatch(text):
        number = FIRST_REALTIME if match[1] == "IN" else LAST_REALTIME
        if match[2]:
            number += int(match[3]) if match[2] == "+" else -int(match[3])
    if number is None or not 1 <= number <= LAST_REALTIME:
        raise ValueError(f"`{name}` is not a signal; give a name such as SIGTERM or a number")
    return number
