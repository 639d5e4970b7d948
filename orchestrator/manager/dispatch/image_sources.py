# SPDX-License-Identifier: Apache-2.0
"""gRPC service for agents that need an image: where and when each may pull it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from orchestrator.identity.tls import peer_identity
from orchestrator.manager.dispatch.pull_coordination import (
    REGISTRY,
)
from orchestrator.manager.dispatch.pull_turns import PullTurn, PullTurns
from orchestrator.manager.object_lookup import images_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.registry_credentials import auth_for
from orchestrator.manager.security.vault import Vault
from orchestrator.manager.store.cache import Cache
from orchestrator.model.names import parse_image
from orchestrator.model.states import TaskState
from orchestrator.pb import images_pb2, images_pb2_grpc

log = logging.getLogger(__name__)


class ImageSources(images_pb2_grpc.SourcesServicer):  # type: ignore[misc]
    """Answers agents; the decisions are the leader's (`pull_turns`)."""

    def __init__(
        self,
        cache: Cache,
        vault: Vault,
        ordered: Callable[[str, str], bool],
        turns: PullTurns,
    ) -> None:
        """`ordered`: whether a node (by id) currently serves a client's request, such as a build,
        that needs an image (by full name)."""
        self._ordered = ordered
        self._cache = cache
        self._vault = vault
        self._turns = turns

    async def Acquire(self, request: Any, context: Any) -> None:
        """Notices while the agent has to wait, then one grant, which lasts until the call ends or
        the pull's lease expires (see `pull_coordination`)."""
        identity = peer_identity(context)
        assert identity is not None  # guaranteed by the role guard

        async def grant(source: str) -> None:
            if source != REGISTRY:
                await context.write(images_pb2.Grant(nodes=[source]))
                return
            needed = self._builds(identity.id, request.name) or must_pull(
                self._cache.view, identity.id, request.name
            )
            auth = self._auth(request.name, identity.id) if needed else b""
            await context.write(images_pb2.Grant(registry=True, auth=auth))

        async def notify(reason: str) -> None:
            await context.write(images_pb2.Grant(waiting=reason))

        # Not a generator: one that is suspended when its call is cancelled is closed only some time
        # later.
        await self._turns.hold(
            PullTurn(identity.id, request, grant, notify, request.pulling, request.source)
        )

    async def Progress(self, request: Any, context: Any) -> Any:
        """An agent reports progress of its pull."""
        identity = peer_identity(context)
        assert identity is not None  # guaranteed by the role guard
        await self._turns.progress(identity.id, request.digest or request.name, request)
        return images_pb2.PullProgressReply()

    async def Locate(self, request: Any, context: Any) -> Any:
        """Resolve an image name in the cluster."""
        identity = peer_identity(context)
        assert identity is not None  # guaranteed by the role guard
        found = images_of(self._cache.view, request.name)
        return images_pb2.LocateReply(
            digest=found[0].id if found else "",
            auth=(
                self._auth(request.name, identity.id)
                if self._builds(identity.id, request.name)
                else b""
            ),
        )

    def _builds(self, node_id: str, image: str) -> bool:
        try:
            return self._ordered(node_id, str(parse_image(image)))
        except ValueError:
            return False

    def _auth(self, image: str, node_id: str) -> bytes:
        """The cluster's credentials for an image's registry, which are sent to a node."""
        auth = auth_for(self._cache.view, self._vault, image)
        if auth:
            log.info("registry credentials sent", extra={"node": node_id, "image": image})
        return auth


def must_pull(view: ClusterView, node_id: str, image: str) -> bool:
    """Whether a node has a task that waits for this image; only then does it get credentials."""
    wanted = parse_image(image)
    return any(
        task.desired_state is TaskState.RUNNING
        and TaskState.ASSIGNED <= task.status.state < TaskState.STARTING
        and parse_image(task.spec.container.image) == wanted
        for task in view.tasks_of_node(node_id).values()
        if task.spec.container.image
    )
