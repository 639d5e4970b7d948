"""Names of signals, as users and images write them."""

from __future__ import annotations

import re
import signal

_REALTIME = re.compile(r"RTM(IN|AX)(?:([+-])(\d+))?")


def signal_number(name: str) -> int:
    """The number of `SIGTERM`, `term`, `15` or `SIGRTMIN+3`.

    Raises ValueError for anything that is no signal.
    """
    text = name.strip().upper().removeprefix("SIG")
    number: int | None = None
    if text.isdecimal():
        number = int(text)
    elif match := _REALTIME.fullmatch(text):
        number = int(signal.SIGRTMIN if match[1] == "IN" else signal.SIGRTMAX)
        if match[2]:
            number += int(match[3]) if match[2] == "+" else -int(match[3])
    elif f"SIG{text}" in signal.Signals.__members__:
        number = int(signal.Signals[f"SIG{text}"])
    if number is None or not 1 <= number <= signal.SIGRTMAX:
        raise ValueError(f"`{name}` is not a signal; give a name such as SIGTERM or a number")
    return number
