"""Names of signals, as users and images write them."""

from __future__ import annotations

import re
import signal

from orchestrator.agent.runtime.base import Container, RuntimeFailure

_REALTIME = re.compile(r"RTM(IN|AX)(?:([+-])(\d+))?")


def signal_number(name: str) -> int:
    """The number of `SIGTERM`, `term`, `15` or `SIGRTMIN+3`.

    Raises RuntimeFailure for anything that is no signal.
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
        raise RuntimeFailure(f"`{name}` is not a signal; give a name such as SIGTERM or a number")
    return number


def stop_signal(container: Container) -> int:
    """The signal that asks this container to end: the spec's, else the image's, else SIGTERM."""
    chosen = container.spec.container.stop_signal or container.image.config.stop_signal
    return signal_number(chosen or "SIGTERM")
