"""What is remembered of tasks that have ended."""

from __future__ import annotations

from orchestrator.manager.planning.restart import history
from orchestrator.manager.planning.slots import Draft, ended
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState

HISTORY = 5
"""Tasks remembered of a slot, the present one included, as `service ps` shows them."""


def reap(service: Service, draft: Draft) -> None:
    """Forget ended tasks: at once those of slots that were given up, else the oldest."""
    most = max(HISTORY, history(service.spec.task.restart))
    for slot in list(draft.slots().values()):
        for age, task in enumerate(reversed(slot.tasks)):
            if ended(task) and (age >= most or task.desired_state is TaskState.REMOVE):
                draft.delete(task)
