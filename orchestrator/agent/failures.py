"""Why a step of a task failed, in words for its user."""

from __future__ import annotations

from orchestrator.agent.images.errors import ImageError
from orchestrator.agent.network.helper import NetworkError
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.taskfiles import FileError
from orchestrator.agent.volumes.errors import VolumeError

EXPECTED_OF_CONTAINERS = (RuntimeFailure, ImageError, NetworkError, VolumeError, FileError)
"""Errors that say why a container cannot be made or started."""
EXPECTED = (*EXPECTED_OF_CONTAINERS, OSError)


def cause_of(error: Exception) -> Exception:
    """The first of the errors that a task group has put together."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def reason_of(error: Exception) -> str:
    """One line for the user."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, EXPECTED):
        return str(error)
    return f"internal error of the agent: {type(error).__name__}: {error}"
