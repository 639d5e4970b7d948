# SPDX-License-Identifier: Apache-2.0
"""Quality of service: which containers the kernel kills first when a node runs out of memory.

The classes are those of Kubernetes ("Pod Quality of Service Classes", "Node out of memory
behavior"), with one difference: a guaranteed container has no negative score, since the agent,
which must outlive it, may not be allowed to have a lower one.
"""

from __future__ import annotations

from enum import Enum

_GUARANTEED_SCORE, _LEAST, _MOST, _BEST_EFFORT_SCORE = 0, 2, 999, 1000


class QosClass(Enum):
    """How far a container's memory is promised to it."""

    GUARANTEED = "guaranteed"
    """It reserves all the memory that it may use."""
    BURSTABLE = "burstable"
    """It reserves some, and may use more."""
    BEST_EFFORT = "best effort"
    """It reserves none."""


def qos_class(reserved: int, limit: int) -> QosClass:
    """The class of a container that reserves that many bytes; 0: none. `limit` 0: it has none."""
    if not reserved:
        return QosClass.BEST_EFFORT
    return QosClass.GUARANTEED if limit and limit <= reserved else QosClass.BURSTABLE


def oom_score(reserved: int, limit: int, memory: int) -> int:
    """The OOM score adjustment (0 to 1000, proc(5)) of that container on a node with `memory`
    bytes; the higher, the earlier it is killed. Of burstable ones, that which reserves the least is
    the first to go, unless another exceeds its reservation by more. `memory` 0: unknown."""
    match qos_class(reserved, limit):
        case QosClass.GUARANTEED:
            return _GUARANTEED_SCORE
        case QosClass.BEST_EFFORT:
            return _BEST_EFFORT_SCORE
    share = 1000 * reserved // memory if memory else 0
    return min(max(1000 - share, _LEAST), _MOST)
