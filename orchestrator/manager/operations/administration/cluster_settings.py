# SPDX-License-Identifier: Apache-2.0
"""The cluster's settings, status and join tokens, and the list of networks."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from orchestrator import __version__
from orchestrator.identity.join_tokens import JoinToken, new_secret
from orchestrator.manager.errors import invalid_argument, not_ready
from orchestrator.manager.leader.prometheus_queries import check_url
from orchestrator.manager.operations.administration.backups import overview
from orchestrator.manager.operations.context import Operations, on_current_state
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.unplannable import quarantined_services
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.certificates import lifetime
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import StoreError
from orchestrator.manager.telemetry.service_discovery import web_address
from orchestrator.model.convert import known, to_proto
from orchestrator.model.nodes import NodeState
from orchestrator.model.objects import Cluster
from orchestrator.model.placement import Strategy
from orchestrator.model.states import TaskState
from orchestrator.model.validation.host_access import read_access
from orchestrator.model.validation.service_specs import LONGEST
from orchestrator.pb import control_pb2

MIN_REBALANCE_PERIOD = 10.0
"""Seconds."""


class ClusterOperations(Operations):
    """Operations of `orc cluster info|update|token`, `orc network ls`."""

    def _cluster(self) -> Cluster:
        cluster = self.ctx.view.cluster
        if cluster is None:
            raise not_ready("the manager has not read its store yet; try again in a moment")
        return cluster

    def _token(self, secret: str) -> str:
        return str(JoinToken(self.ctx.token_digest, secret))

    async def get_cluster(self, request: control_pb2.GetClusterRequest) -> control_pb2.ClusterInfo:
        """Describe the cluster: managers, settings, totals, join tokens."""
        cluster, view, identity = self._cluster(), self.ctx.view, self.ctx.identity
        leader = self.ctx.leader()
        if not leader:
            with suppress(StoreError):  # without a quorum, the leader is unknown
                entry = await self.ctx.kv.get(LEADER)
                leader = entry.value.decode() if entry else ""
        return control_pb2.ClusterInfo(
            id=cluster.id,
            created_at=cluster.created_at,
            version=__version__,
            network_cidr=cluster.network_cidr,
            node_timeout=cluster.node_timeout,
            managers=[
                control_pb2.ManagerInfo(
                    id=manager.id, address=manager.endpoint, leader=leader == manager.id
                )
                for manager in sorted(view.managers.values(), key=lambda each: each.id)
                if not manager.joining
            ],
            nodes=len(view.nodes),
            nodes_ready=sum(n.state is NodeState.READY for n in view.nodes.values()),
            services=sum(not s.removed for s in view.services.values()),
            tasks_running=sum(t.status.state is TaskState.RUNNING for t in view.tasks.values()),
            worker_token=self._token(cluster.worker_token),
            manager_token=self._token(cluster.manager_token),
            join_address=f"{identity.address}:{identity.port + 1}",
            strategy=cast(Any, int(cluster.strategy or Strategy.SPREAD)),
            rebalance_every=cluster.rebalance_every,
            prometheus=cluster.prometheus,
            scrape_token=cluster.scrape_token,
            ca_certificate=cluster.ca_certificate,
            web_address=web_address(identity),
            certificate_lifetime=lifetime(cluster.certificate_lifetime).total_seconds(),
            container_access=cluster.container_access,
            undecodable=_undecodable(view),
            backups=overview(view),
        )

    @on_current_state
    async def update_cluster(
        self, request: control_pb2.UpdateClusterRequest
    ) -> control_pb2.ClusterInfo:
        """Change settings of the cluster."""
        cluster = self._cluster()
        after = cluster
        if request.HasField("strategy"):
            after = replace(after, strategy=known(Strategy, request.strategy))
        if request.HasField("certificate_lifetime"):
            after = replace(after, certificate_lifetime=request.certificate_lifetime)
        if request.HasField("rebalance_every"):
            every = request.rebalance_every
            if every and not MIN_REBALANCE_PERIOD <= every <= LONGEST:
                raise invalid_argument(
                    f"rebalance: {every:g} s is not off, or from 10s to ten years"
                )
            after = replace(after, rebalance_every=every)
        if request.HasField("prometheus"):
            try:
                after = replace(after, prometheus=check_url(request.prometheus))
            except ValueError as error:
                raise invalid_argument(str(error)) from None
        if request.HasField("container_access"):
            try:
                access = read_access(request.container_access.open)
            except ValueError as error:
                raise invalid_argument(str(error)) from None
            after = replace(after, container_access=access)
        if after != cluster:
            revision = await commit(self.ctx.kv, [Change(cluster, after)])
            await self.ctx.cache.wait_for(revision)
        return await self.get_cluster(control_pb2.GetClusterRequest())

    @on_current_state
    async def rotate_token(self, request: control_pb2.RotateTokenRequest) -> control_pb2.TokenReply:
        """Replace a join or scrape token; the old one is no longer valid."""
        cluster, secret = self._cluster(), new_secret()
        match request.role:
            case "worker":
                after = replace(cluster, worker_token=secret)
            case "manager":
                after = replace(cluster, manager_token=secret)
            case "scrape":
                after = replace(cluster, scrape_token=secret)
            case other:
                raise invalid_argument(
                    f"there is no token for the role '{other}'; say worker, manager or scrape"
                )
        revision = await commit(self.ctx.kv, [Change(cluster, after)])
        await self.ctx.cache.wait_for(revision)
        join = request.role != "scrape"
        return control_pb2.TokenReply(token=self._token(secret) if join else secret)

    async def list_networks(
        self, request: control_pb2.ListNetworksRequest
    ) -> control_pb2.ListNetworksReply:
        """List networks by name."""
        networks = sorted(self.ctx.view.networks.values(), key=lambda n: n.name)
        return control_pb2.ListNetworksReply(networks=[to_proto(n) for n in networks])


def _undecodable(view: ClusterView) -> list[Any]:
    """Quarantined objects by key, each with the services that it holds up."""
    waiting: dict[str, list[str]] = {}
    for id, found in quarantined_services(view).items():
        service = view.services.get(id)
        waiting.setdefault(found.key, []).append(service.spec.name if service else id)
    return [
        control_pb2.UndecodableObject(
            key=key, reason=found.reason, held_services=sorted(waiting.get(key, ()))
        )
        for key, found in sorted(view.quarantined.items())
    ]
