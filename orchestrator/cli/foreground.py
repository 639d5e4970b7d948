"""A container's program in the foreground: attached to before it starts, so no byte is missed."""

from __future__ import annotations

from orchestrator.cli.client import Client, ManagerLost
from orchestrator.cli.container_watch import Seen, Watch, failure
from orchestrator.model.states import TaskState
from orchestrator.pb import containers_pb2


def foreground(
    client: Client, container: str, *, stdin: bool, tty: bool, keys: bytes, sig_proxy: bool,
    quiet: bool = False, goes: bool = False,
) -> int:  # fmt: skip
    """Attach to a container that is made ready, start it, and return its exit status; one that
    runs is attached to. `quiet`: no word of what it waits for. `goes`: it is removed at its end,
    which is waited for. Raises CliError."""
    from orchestrator.cli.session import Session
    from orchestrator.pb import interact_pb2

    with Watch(client, container, quiet) as watch:
        if problem := failure(watch.until(is_ready)):
            if goes:
                watch.until(lambda seen: seen.removed)
            raise problem

        started = False

        def start() -> None:
            nonlocal started
            request = containers_pb2.ContainerRequest(container=container)
            client.call("Containers.StartContainer", request)
            started = True

        session = Session(
            client,
            interact_pb2.AttachRequest(container=container, stdin=stdin),
            stdin=stdin,
            keys=keys,
            sig_proxy=sig_proxy and not tty,
            attached=start,
        )
        try:
            status = session.run()
        except ManagerLost as lost:
            if not started:
                raise
            name = watch.last.task.container_name
            way = f"'orc attach {name}' gets back to the container"
            raise ManagerLost(f"{lost.message} ({way})") from None
        if not session.detached and goes:
            watch.until(lambda seen: seen.removed)
    return status


def is_ready(seen: Seen) -> bool:
    """Whether the run that is wanted is ready, or further."""
    status = seen.task.status
    return seen.removed or (status.state >= TaskState.READY and status.run >= seen.task.run)
