"""The signals by which containers are asked to end."""

from __future__ import annotations

from orchestrator.agent.runtime.base import Container, RuntimeFailure
from orchestrator.model import signals


def signal_number(name: str) -> int:
    """The number of `SIGTERM`, `term`, `15` or `SIGRTMIN+3`.

    Raises RuntimeFailure for anything that is no signal.
    """
    try:
        return signals.signal_number(name)
    except ValueError as error:
        raise RuntimeFailure(str(error)) from None


def stop_signal(container: Container) -> int:
    """The signal that asks this container to end: the spec's, else the image's, else SIGTERM."""
    chosen = container.spec.container.stop_signal or container.image.config.stop_signal
    return signal_number(chosen or "SIGTERM")
