"""The errors of a task's steps, in words for its user."""

from __future__ import annotations

from orchestrator.agent.images.errors import ImageError
from orchestrator.agent.network import NetworkError
from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.taskfiles import FileError
from orchestrator.agent.volumes.errors import VolumeError

EXPECTED = (RuntimeFailure, ImageError, NetworkError, VolumeError, FileError, OSError)


def reason_of(error: Exception) -> str:
    """One line for the user."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, EXPECTED):
        return str(error)
    return f"internal error of the agent: {type(error).__name__}: {error}"
