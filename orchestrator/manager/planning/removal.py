"""The end of a service: its tasks stop and are forgotten, and then it is too."""

from __future__ import annotations

from orchestrator.manager.planning.slots import Draft, ended
from orchestrator.model.states import TaskState


def remove(draft: Draft) -> None:
    """Stop what runs, forget what has ended; with the last task, the service goes."""
    for task in list(draft.tasks.values()):
        if ended(task):
            draft.delete(task)
        else:
            draft.stop(task, TaskState.REMOVE)
    draft.service_gone = not draft.tasks
