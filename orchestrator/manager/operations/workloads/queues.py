# SPDX-License-Identifier: Apache-2.0
"""Operations on queues of jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.manager.errors import (
    already_exists,
    failed_precondition,
    invalid_argument,
    not_found,
    unavailable,
)
from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.context import Operations, on_current_state
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.job_queues import queue_of
from orchestrator.manager.planning.scheduling.fair_shares import FairShares, queue_counts
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.model.convert import to_proto
from orchestrator.model.names import near_miss
from orchestrator.model.objects import Cluster
from orchestrator.model.scheduling.queues import MAX_QUEUES, Queue, check_queue, queue_named
from orchestrator.pb import jobs_pb2, types_pb2


class QueueOperations(Operations):
    """Operations of `orc queue …`."""

    async def list_queues(self, request: jobs_pb2.ListQueuesRequest) -> jobs_pb2.ListQueuesReply:
        """List the queues, with what they have and what waits in them."""
        return await offload(_list, self.ctx.view)

    async def set_queue(self, request: jobs_pb2.SetQueueRequest) -> types_pb2.Queue:
        """Create a queue, or change one."""

        def change(cluster: Cluster) -> tuple[Cluster, Queue]:
            before = queue_named(cluster.queues, request.name)
            if before is None and not request.create:
                raise _unknown(cluster, request.name)
            if before is not None and request.create:
                raise already_exists(
                    f"queue '{request.name}' already exists; change it with 'orc queue update"
                    f" {request.name}'"
                )
            after = _updated(before or Queue(request.name), request)
            others = [each for each in cluster.queues if each.name != request.name]
            if len(others) >= MAX_QUEUES:
                raise failed_precondition(f"there are {MAX_QUEUES} queues, the most of a cluster")
            queues = sorted([*others, after], key=lambda queue: queue.name)
            return replace(cluster, queues=tuple(queues)), after

        return to_proto(await self._changed(change))

    async def remove_queue(self, request: jobs_pb2.RemoveQueueRequest) -> types_pb2.Queue:
        """Remove a queue that no job is in."""

        def change(cluster: Cluster) -> tuple[Cluster, Queue]:
            queue = queue_named(cluster.queues, request.name)
            if queue is None:
                raise _unknown(cluster, request.name)
            jobs = sorted(
                service.spec.name
                for service in self.ctx.view.services.values()
                if queue_of(service) == request.name and not service.removed
            )
            if jobs:
                more = f" and {len(jobs) - 3} more" if len(jobs) > 3 else ""
                raise failed_precondition(
                    f"queue '{request.name}' is in use by {', '.join(jobs[:3])}{more};"
                    " remove these jobs first"
                )
            left = tuple(each for each in cluster.queues if each.name != request.name)
            return replace(cluster, queues=left), queue

        return to_proto(await self._changed(change))

    @on_current_state
    async def _changed(self, change: Callable[[Cluster], tuple[Cluster, Queue]]) -> Queue:
        """Commit a change of the queues; return the queue."""
        ctx, before = self.ctx, self.ctx.view.cluster
        if before is None:
            raise unavailable("the cluster's settings are not read yet; try again")
        after, queue = change(before)
        if after != before:
            await ctx.cache.wait_for(await commit(ctx.kv, [Change(before, after)]))
        return queue


def check_queue_exists(view: ClusterView, name: str) -> None:
    """Raise RequestError unless a job may be in the queue; an empty name is none."""
    if name and view.cluster is not None and queue_named(view.cluster.queues, name) is None:
        raise _unknown(view.cluster, name)


def _unknown(cluster: Cluster, name: str) -> Exception:
    meant = near_miss(name, [each.name for each in cluster.queues])
    hint = f"did you mean '{meant}'?" if meant else f"create it with 'orc queue create {name}'"
    return not_found(f"no queue '{name}'; {hint}")


def _updated(queue: Queue, request: jobs_pb2.SetQueueRequest) -> Queue:
    quota = queue.quota
    if request.HasField("weight"):
        queue = replace(queue, weight=request.weight)
    if request.HasField("quota_shares"):
        quota = replace(quota, shares=request.quota_shares)
    if request.HasField("quota_memory"):
        quota = replace(quota, memory=request.quota_memory)
    queue = replace(queue, quota=quota)
    try:
        check_queue(queue)
    except ValueError as error:
        raise invalid_argument(str(error)) from None
    return queue


def _list(view: ClusterView) -> jobs_pb2.ListQueuesReply:
    shares, counts = FairShares(view), queue_counts(view)
    queues = view.cluster.queues if view.cluster is not None else ()
    return jobs_pb2.ListQueuesReply(
        queues=[
            jobs_pb2.QueueRow(
                queue=to_proto(queue),
                used=to_proto(shares.used(queue.name)),
                share=shares.share(queue.name),
                jobs=counts[queue.name].jobs,
                running=counts[queue.name].placed,
                waiting=counts[queue.name].waiting,
            )
            for queue in queues
        ]
    )
