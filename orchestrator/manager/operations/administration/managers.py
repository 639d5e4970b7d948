# SPDX-License-Identifier: Apache-2.0
"""Listing and removing managers."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import grpc

from orchestrator import __version__
from orchestrator.daemon.grpc_calls import ChannelClosed, answer
from orchestrator.identity.join_tokens import JoinToken
from orchestrator.identity.sealing import seal
from orchestrator.manager.cluster.enrolment import serving_endpoints
from orchestrator.manager.cluster.manager_calls import KEYS_PURPOSE, ManagerChannels
from orchestrator.manager.cluster.quorum import Voter, refusal_of_removal
from orchestrator.manager.cluster.schema import (
    NotFinalizable,
    Schema,
    await_finalized,
    read_schema,
    request_finalization,
)
from orchestrator.manager.cluster.store_upkeep import StoreUpkeep
from orchestrator.manager.errors import (
    ErrorKind,
    RequestError,
    aborted,
    already_exists,
    failed_precondition,
    invalid_argument,
    not_found,
    not_ready,
    unavailable,
)
from orchestrator.manager.object_lookup import find_node
from orchestrator.manager.operations.context import Attempt, ManagerContext, Operations
from orchestrator.manager.operations.node_requests import send_request
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.certificates import commit_serialized, new_revocation
from orchestrator.manager.store.etcd_maintenance import NOSPACE, Defragmented
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Conflict, Delete, Guard, StoreError
from orchestrator.manager.store.outages import bridge_outage
from orchestrator.model.administration.managers import Manager, host_port
from orchestrator.model.compatibility.manager_features import SCHEMA_VERSION
from orchestrator.model.convert import to_proto
from orchestrator.model.names import near_miss
from orchestrator.model.nodes import Node
from orchestrator.pb import dispatch_pb2, managers_pb2, managers_pb2_grpc

_ELECTION_TIMEOUT = 10.0
"""Seconds that an election may take."""

_FINALIZATION_TIMEOUT = 20.0
"""Seconds that a finalization may take."""

_ROLE_ORDERS = 3
"""Attempts to have a node change its host's role."""
_REMOVAL_TIMEOUT = 20.0
"""Seconds that another manager has for a removal."""


class ManagerOperations(Operations):
    """Operations of `orc manager ls|rm|step-down|store`."""

    def __init__(
        self, ctx: ManagerContext, channels: ManagerChannels, member: EtcdMember | None
    ) -> None:
        """`member` is this manager's etcd member; None with an external etcd."""
        super().__init__(ctx)
        self._channels = channels
        self._member = member
        self.upkeep: StoreUpkeep | None = None
        """Of the managers' etcd; None with an external one."""
        if member is not None:
            self.upkeep = StoreUpkeep(
                ctx.kv,
                lambda: ctx.view,
                ctx.identity.manager_id,
                member,
                channels,
                lambda: self._statuses(ctx.view, wait=True),
                leads=lambda: bool(ctx.leader()),
                hand_over=self.step_down,
                clock=time.monotonic,
            )

    async def status(self) -> managers_pb2.ManagerStatus:
        """This manager's status. An etcd that does not answer is part of it."""
        status = managers_pb2.ManagerStatus(version=__version__)
        if self._member is None:
            return status
        try:
            found = await self._member.membership.status()
        except StoreError as error:
            status.etcd_errors.append(str(error))
            return status
        status.etcd_version = found.version
        status.raft_term = found.raft_term
        status.raft_index = found.applied_index
        status.database_size = found.size
        status.database_used = found.used
        status.etcd_leader = found.leader == found.id
        status.learner = found.learner
        status.etcd_errors.extend(found.errors)
        status.database_quota = self._member.quota
        status.member_id = f"{found.id:x}"
        status.alarms.extend(
            managers_pb2.StoreAlarm(member_id=each.member_id, kind=each.kind)
            for each in found.alarms
        )
        status.defragmenting = self.upkeep is not None and self.upkeep.defragmenting
        return status

    def data_keys(
        self, caller: str, certificate: str, ids: Sequence[str]
    ) -> managers_pb2.GetDataKeysReply:
        """Those of these data keys that this manager has, sealed to the holder of the PEM
        certificate. Raises RequestError."""
        manager = self.ctx.view.managers.get(caller)
        if manager is None:
            raise failed_precondition(f"{caller} is not a manager of this cluster")
        keys = [base64.b64encode(key).decode() for key in self.ctx.vault.keys(ids)]
        sealed = seal(certificate, json.dumps(keys).encode(), KEYS_PURPOSE + caller)
        return managers_pb2.GetDataKeysReply(sealed_keys=sealed)

    async def list_managers(
        self, request: managers_pb2.ListManagersRequest
    ) -> managers_pb2.ListManagersReply:
        """List managers with the state that each reports."""
        view, own = self.ctx.view, self.ctx.identity.manager_id
        leader = ""
        with suppress(StoreError):  # without a quorum, the list says which managers are down
            entry = await self.ctx.kv.get(LEADER)
            leader = entry.value.decode() if entry else ""
        statuses = await self._statuses(view)
        newest = max((each.raft_index for each in statuses.values()), default=0)
        rows = []
        for manager in sorted(view.managers.values(), key=lambda each: (each.hostname, each.id)):
            status = statuses.get(manager.id)
            state, reason = _state(manager, view, status)
            rows.append(
                managers_pb2.ManagerRow(
                    manager=to_proto(manager),
                    leader=manager.id == leader,
                    state=state,
                    reason=reason,
                    status=status,
                    lag=newest - status.raft_index if status and status.etcd_version else 0,
                    current=manager.id == own,
                )
            )
        return managers_pb2.ListManagersReply(managers=rows)

    async def _statuses(self, view: ClusterView, *, wait: bool = False) -> dict[str, Any]:
        """By manager id; `wait` as in `ManagerChannels.statuses`: where a manager that does not
        answer counts as down."""
        own = self.ctx.identity.manager_id
        others = [
            each
            for each in view.managers.values()
            if each.id != own and (each.id in view.manager_presence or not each.joining)
        ]
        found = await self._channels.statuses(others, wait=wait)
        found[own] = await self.status()
        return found

    async def step_down(self) -> managers_pb2.StepDownReply:
        """Have the leader resign; returns once a manager leads again. Raises RequestError."""
        kv = self.ctx.kv
        entry = await kv.get(LEADER)
        if entry is None:
            raise failed_precondition("no manager leads at the moment; see 'orc manager ls'")
        former = entry.value.decode()
        guard = Guard(LEADER, create_revision=entry.create_revision)
        try:
            # Watched from here on: history since the term began may be compacted.
            since = await kv.txn([guard], [Delete(LEADER)])
        except Conflict:  # it has just lost the leadership
            now = await kv.list(LEADER)
            for each in now.entries:
                if each.key == LEADER:
                    return managers_pb2.StepDownReply(former=former, leader=each.value.decode())
            since = now.revision
        try:
            async with asyncio.timeout(_ELECTION_TIMEOUT):
                leader = await self._leader_after(since)
        except TimeoutError:
            raise unavailable(
                f"the leader resigned, but none was elected for {_ELECTION_TIMEOUT:g} s; "
                "see 'orc manager ls'"
            ) from None
        return managers_pb2.StepDownReply(former=former, leader=leader)

    async def compact_store(self) -> managers_pb2.CompactStoreReply:
        """Drop the history of the store. Raises RequestError, StoreError."""
        return managers_pb2.CompactStoreReply(revision=await self._store_upkeep().compact())

    async def defragment_store(
        self, request: managers_pb2.DefragmentStoreRequest, *, relayed: bool = False
    ) -> managers_pb2.DefragmentStoreReply:
        """Defragment the etcd member of one manager; `relayed` by another manager. Raises
        RequestError, StoreError."""
        upkeep, manager = self._store_upkeep(), find_manager(self.ctx.view, request.manager)
        return _defragmented(
            await upkeep.request_defragmentation(manager.id, force=request.force, relayed=relayed)
        )

    async def defragment_member(self) -> managers_pb2.DefragmentStoreReply:
        """Defragment this manager's etcd member. Raises RequestError, StoreError."""
        return _defragmented(await self._store_upkeep().defragment_own())

    async def disarm_store(
        self, request: managers_pb2.DisarmStoreRequest
    ) -> managers_pb2.DisarmStoreReply:
        """Accept writes again after a database was full. Raises RequestError, StoreError."""
        disarmed = await self._store_upkeep().disarm(force=request.force)
        return managers_pb2.DisarmStoreReply(
            alarms=[
                managers_pb2.StoreAlarm(member_id=each.member_id, kind=each.kind)
                for each in disarmed
            ]
        )

    def _store_upkeep(self) -> StoreUpkeep:
        if self.upkeep is None:
            raise failed_precondition(
                "the cluster has an external etcd, which its operator keeps up: use etcdctl"
            )
        return self.upkeep

    async def schema(self) -> managers_pb2.SchemaInfo:
        """The state of the store's schema."""
        return _schema_info((await read_schema(self.ctx.kv))[0])

    async def finalize_upgrade(self) -> managers_pb2.SchemaInfo:
        """Have the leader finalize the newest schema; returns once it is. Raises RequestError."""
        kv = self.ctx.kv
        try:
            await request_finalization(kv, self.ctx.view)
        except NotFinalizable as reason:
            raise failed_precondition(str(reason)) from None
        try:
            async with asyncio.timeout(_FINALIZATION_TIMEOUT):
                return _schema_info(await await_finalized(kv))
        except TimeoutError:
            raise unavailable(
                "the leader has not finished: it continues; see 'orc cluster upgrade --check'"
            ) from None

    async def _leader_after(self, revision: int) -> str:
        """Id of the leader whose term began after a store revision."""
        async with self.ctx.kv.watch(LEADER, revision + 1) as batches:
            async for batch in batches:
                for event in batch.events:
                    if event.key == LEADER and event.entry is not None:
                        return event.entry.value.decode()
        raise unavailable("etcd ended the watch; see 'orc manager ls'")

    async def remove_manager(
        self, request: managers_pb2.RemoveManagerRequest, by: str
    ) -> managers_pb2.RemoveManagerReply:
        """Remove a manager: its etcd member, its object, its certificates."""
        view = self.ctx.view
        manager = find_manager(view, request.manager)
        if manager.id == self.ctx.identity.manager_id and len(view.managers) > 1:
            # A member that was removed can no longer write.
            return await self._remove_through_another(manager, request)
        if len(view.managers) == 1:
            raise failed_precondition(
                f"{manager.hostname} is the only manager; a cluster without one is lost"
            )
        if self._member is not None:
            membership = self._member.membership
            members = {each.hex_id: each for each in await membership.members()}
            if not request.force:
                await self._check_quorum(view, manager, members)
            url = f"https://{_peer(manager)}"
            for each in members.values():
                if each.hex_id == manager.member_id or url in each.peer_urls:
                    await membership.remove(each.id)

        def removed(now: ClusterView) -> list[Change]:
            found = now.managers.get(manager.id)
            presence = now.manager_presence.get(manager.id)
            revoked = new_revocation(
                now,
                role="manager",
                name=manager.id,
                now=self.ctx.now(),
                reason="removed from the cluster",
                by=by,
            )
            changes = [Change(now.revocations.get(revoked.id), revoked)]
            changes += [Change(each, None) for each in (found, presence) if each is not None]
            return changes

        # Without a member, etcd may have to elect a leader.
        await bridge_outage(lambda: commit_serialized(self.ctx.kv, self.ctx.cache, removed))
        return managers_pb2.RemoveManagerReply(
            id=manager.id,
            endpoint=manager.endpoint,
            managers=serving_endpoints(self.ctx.view),
        )

    async def promote_node(
        self, request: managers_pb2.PromoteNodeRequest, attempt: Attempt
    ) -> managers_pb2.PromoteNodeReply:
        """Make the host of a node a manager, too; done once that manager has enrolled."""
        ctx, identity = self.ctx, self.ctx.identity
        node = find_node(ctx.view, request.node)
        reply = managers_pb2.PromoteNodeReply(node=node.id, address=node.description.address)
        if (manager := _manager_on(ctx.view, node)) is not None and not manager.joining:
            if attempt.again:
                return reply
            raise already_exists(
                f"{node.description.hostname} is manager {manager.id} already; see 'orc manager ls'"
            )
        if ctx.view.cluster is None:
            raise not_ready("the manager has not read its store yet; try again in a moment")
        if self._member is None:
            raise failed_precondition(
                "the cluster has an external etcd, whose credentials a node does not get; run "
                "'orc cluster join' on the host, with the token 'orc cluster token manager' prints"
            )
        order = dispatch_pb2.HostRoleOrder(
            manager=True,
            token=str(JoinToken(ctx.token_digest, ctx.view.cluster.manager_token)),
            join_address=host_port(identity.address, identity.port + 1),
            request_id=attempt.request_id,
        )
        await self._change_role(node, order)
        return reply

    async def _change_role(self, node: Node, order: dispatch_pb2.HostRoleOrder) -> None:
        """Have a node change its host's role, again if the connection to it breaks meanwhile: the
        agent continues what it has begun. Raises RequestError."""
        for number in range(1, _ROLE_ORDERS + 1):
            try:
                await send_request(self.ctx, node, dispatch_pb2.OpenTunnel(host_role=order))
                return
            except RequestError as error:
                if error.kind is not ErrorKind.UNAVAILABLE or number == _ROLE_ORDERS:
                    raise

    async def demote_node(
        self, request: managers_pb2.DemoteNodeRequest, by: str, request_id: str
    ) -> managers_pb2.RemoveManagerReply:
        """Remove the manager on the host of a node."""
        node = find_node(self.ctx.view, request.node)
        manager = _manager_on(self.ctx.view, node)
        if manager is None:
            raise failed_precondition(
                f"{node.description.hostname} is not a manager; see 'orc manager ls'"
            )
        removal = managers_pb2.RemoveManagerRequest(manager=manager.id, force=request.force)
        reply = await self.remove_manager(removal, by)
        # The manager ends by itself; its unit is disabled where the node can be reached. The first
        # order may get lost with the manager, which may have had the node's session.
        with suppress(RequestError):
            await self._change_role(node, dispatch_pb2.HostRoleOrder(request_id=request_id))
        return reply

    async def _check_quorum(
        self, view: ClusterView, manager: Manager, members: dict[str, Any]
    ) -> None:
        """Raise RequestError if no quorum of healthy managers would be left."""
        statuses = await self._statuses(view, wait=True)
        by_member = {each.member_id: each for each in view.managers.values()}
        voters = []
        for member_id, member in members.items():
            if member.learner:
                continue
            found = by_member.get(member_id)
            status = statuses.get(found.id) if found else None
            voters.append(
                Voter(
                    found.hostname if found else member_id,
                    member_id,
                    healthy=bool(status and status.etcd_version),
                )
            )
        refusal = refusal_of_removal(voters, manager.member_id)
        if refusal:
            raise failed_precondition(
                f"{refusal}; the cluster could no longer write. Start or replace a manager first, "
                "or use --force"
            )

    async def _remove_through_another(
        self, manager: Manager, request: managers_pb2.RemoveManagerRequest
    ) -> managers_pb2.RemoveManagerReply:
        view = self.ctx.view
        reason = "no other manager runs"
        for other in view.managers.values():
            if other.id == manager.id or other.id not in view.manager_presence:
                continue
            channel = await self._channels.channel(other.id)
            if channel is None:
                continue
            try:
                return await answer(
                    managers_pb2_grpc.MembershipStub(channel).Remove(
                        managers_pb2.RemoveManagerRequest(manager=manager.id, force=request.force),
                        timeout=_REMOVAL_TIMEOUT,
                    )
                )
            except ChannelClosed as error:
                reason = str(error)
            except grpc.aio.AioRpcError as error:
                reason = str(error.details())
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    # The removal has revoked this manager's certificate, which ends the call.
                    return managers_pb2.RemoveManagerReply(id=manager.id, endpoint=manager.endpoint)
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    raise failed_precondition(reason) from error
                if error.code() is grpc.StatusCode.ABORTED:
                    raise aborted(reason) from error
        raise unavailable(f"another manager must remove {manager.hostname}: {reason}")


def _manager_on(view: ClusterView, node: Node) -> Manager | None:
    """The manager on the host of a node, by its address."""
    address = node.description.address
    return next((each for each in view.managers.values() if each.address == address), None)


def _defragmented(done: Defragmented) -> managers_pb2.DefragmentStoreReply:
    return managers_pb2.DefragmentStoreReply(
        before=done.before, after=done.after, seconds=done.seconds
    )


def _schema_info(schema: Schema) -> managers_pb2.SchemaInfo:
    return managers_pb2.SchemaInfo(**asdict(schema), known=SCHEMA_VERSION)


def _peer(manager: Manager) -> str:
    return host_port(manager.address, manager.peer_port)


def _state(manager: Manager, view: ClusterView, status: Any) -> tuple[str, str]:
    """The state of a manager, and why it is not ready."""
    if manager.joining:
        return "joining", "its etcd member has not caught up"
    if status is None:
        if manager.id in view.manager_presence:
            return "unreachable", f"it does not answer at {manager.endpoint}"
        return "down", "it does not run, or has no connection to its etcd member"
    if status.locked:
        return "locked", "it waits for 'orc cluster unlock'"
    if status.etcd_errors:
        return "unhealthy", "; ".join(status.etcd_errors)
    for alarm in status.alarms:
        if alarm.member_id == status.member_id:
            what = "is full" if alarm.kind == NOSPACE else "differs from the other members'"
            return "unhealthy", f"etcd's database {what}; see 'orc manager store status'"
    return "ready", ""


def find_manager(view: ClusterView, word: str) -> Manager:
    """The manager with this id, beginning of an id, hostname or address. Raises RequestError."""
    managers = list(view.managers.values())
    for matches in (
        lambda each: each.id == word,
        lambda each: each.hostname == word,
        lambda each: word in (each.address, each.endpoint),
        lambda each: bool(word) and each.id.startswith(word),
    ):
        found = [each for each in managers if matches(each)]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(sorted(each.id for each in found))
            raise invalid_argument(f"'{word}' may be any of the managers {ids}; use an id")
    meant = near_miss(word, [each.hostname for each in managers])
    hint = f"did you mean '{meant}'?" if meant else "see 'orc manager ls'"
    raise not_found(f"no manager '{word}'; {hint}")
