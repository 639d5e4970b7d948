"""What a volume's name may refer to, of a task and of its node (`mounts.TEMPLATE_FIELDS`)."""

from __future__ import annotations

from orchestrator.model.objects import Node, Task


def task_fields(task: Task) -> dict[str, str]:
    """What is known of a task before it has a node."""
    return {
        "Task.Slot": str(task.slot),
        "Task.ID": task.id,
        "Task.Name": task.name,
        "Service.ID": task.service_id,
        "Service.Name": task.service_name,
    }


def node_fields(node: Node) -> dict[str, str]:
    """What is known of a node."""
    return {"Node.ID": node.id, "Node.Hostname": node.description.hostname or node.id}
