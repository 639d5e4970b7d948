"""What must hold of the simulated cluster's nodes at every tick."""

from __future__ import annotations

from collections import Counter

from orchestrator.manager.planning.nodetable import published
from orchestrator.manager.planning.resources import occupies, reserved
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.states import TaskState


def check_nodes(view: ClusterView) -> None:
    """No node has more than it can take, and none what is to be apart."""
    for node in view.nodes.values():
        tasks = [task for task in view.tasks_of_node(node.id).values() if occupies(task)]
        taken, size = reserved(tasks), node.description.resources
        assert taken.shares <= size.shares, f"{node.id} is over capacity: {taken.shares}"
        assert taken.memory <= size.memory, f"{node.id} is over capacity: {taken.memory}"
        ports = Counter(port for task in tasks for port in published(task))
        assert all(count == 1 for count in ports.values()), f"{node.id}: ports {ports}"
        gpus = Counter(task.generic_resources.get("gpu") for task in tasks)
        assert all(n == 1 for gpu, n in gpus.items() if gpu), f"{node.id}: given twice: {gpus}"
        alone = Counter(
            task.service_name
            for task in tasks
            if task.desired_state <= TaskState.RUNNING
            and (service := view.services.get(task.service_id))
            and service.spec.affinities
        )
        assert all(count == 1 for count in alone.values()), f"{node.id}: not apart: {alone}"
