# SPDX-License-Identifier: Apache-2.0
"""The members of an etcd cluster: list, add as learner, promote, update, remove; a member's status.

For the etcd that managers run themselves. An external etcd's members are its operator's concern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from orchestrator.manager.store.etcd_channels import EtcdChannels
from orchestrator.manager.store.etcd_maintenance import Alarm
from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.kv import StoreError, StoreUnavailable

_ALARM = re.compile(r"memberID:(\d+) +alarm:(\w+)")
"""How etcd writes an alarm among the errors of a member's status."""


class TooManyLearners(StoreError):
    """Another member is a learner yet; etcd takes one at a time."""


class NotInSync(StoreError):
    """A learner has not caught up with the leader yet."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the etcd cluster."""

    id: int
    name: str
    """Empty: it has never started."""
    peer_urls: tuple[str, ...]
    learner: bool

    @property
    def hex_id(self) -> str:
        """Its id as etcdctl writes it."""
        return f"{self.id:x}"


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """The state of the member that was asked."""

    id: int
    version: str
    leader: int
    """Id of the member that it follows; 0: none."""
    raft_term: int
    applied_index: int
    size: int
    """Bytes of the database."""
    used: int
    """Bytes of the database without free pages."""
    learner: bool
    errors: tuple[str, ...]
    """Without those about alarms."""
    alarms: tuple[Alarm, ...] = ()
    """Of all members, as this one knows them."""


class _Stubs:
    """aetcd's stubs on one channel. They are untyped, hence `Any`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.cluster: Any = rpc_pb2_grpc.ClusterStub(channel)
        self.maintenance: Any = rpc_pb2_grpc.MaintenanceStub(channel)


class EtcdMembership:
    """Calls about members, through one member. Enter it with `async with`."""

    def __init__(self, endpoints: Sequence[str], tls: EtcdTls, *, timeout: float = 5.0) -> None:
        """`timeout` in seconds applies to each call."""
        self._timeout = timeout
        self._channels = EtcdChannels(endpoints, tls, timeout, _Stubs)

    async def __aenter__(self) -> EtcdMembership:
        await self._channels.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channels.__aexit__()

    async def members(self) -> list[Member]:
        """All members, as the cluster has agreed on. Raises StoreError."""
        reply = await self._ask("cluster", "MemberList", rpc_pb2.MemberListRequest(), True)
        return [_member(each) for each in reply.members]

    async def status(self) -> MemberStatus:
        """The state of the member that is asked. Raises StoreError."""
        reply = await self._ask("maintenance", "Status", rpc_pb2.StatusRequest(), True)
        return MemberStatus(
            id=reply.header.member_id,
            version=reply.version,
            leader=reply.leader,
            raft_term=reply.raftTerm,
            applied_index=reply.raftAppliedIndex,
            size=reply.dbSize,
            used=reply.dbSizeInUse,
            learner=reply.isLearner,
            errors=tuple(each for each in reply.errors if _ALARM.fullmatch(each.strip()) is None),
            alarms=tuple(
                Alarm(f"{int(found[1]):x}", found[2])
                for each in reply.errors
                if (found := _ALARM.fullmatch(each.strip())) is not None
            ),
        )

    async def ensure_learner(self, peer_url: str) -> Member:
        """The member with this peer URL, added as a learner if there is none. Raises
        TooManyLearners, StoreError."""
        while True:
            for each in await self.members():
                if peer_url in each.peer_urls:
                    return each
            request = rpc_pb2.MemberAddRequest(peerURLs=[peer_url], isLearner=True)
            # With an unknown outcome, the list shows whether it was added.
            with suppress(StoreUnavailable):
                reply = await self._ask("cluster", "MemberAdd", request, False)
                return _member(reply.member)

    async def promote(self, id: int) -> None:
        """Make a learner a voting member; no-op for one that is. Raises NotInSync, StoreError."""
        try:
            await self._ask("cluster", "MemberPromote", rpc_pb2.MemberPromoteRequest(ID=id), True)
        except NotInSync:
            raise
        except StoreError as error:
            if "can only promote a learner member" not in str(error):
                raise

    async def update(self, id: int, peer_url: str) -> None:
        """Replace the peer URLs of a member. Raises StoreError."""
        request = rpc_pb2.MemberUpdateRequest(ID=id, peerURLs=[peer_url])
        await self._ask("cluster", "MemberUpdate", request, True)

    async def remove(self, id: int) -> None:
        """Remove a member; succeeds if it is already gone. Raises StoreError."""
        try:
            await self._ask("cluster", "MemberRemove", rpc_pb2.MemberRemoveRequest(ID=id), True)
        except StoreError as error:
            if "member not found" not in str(error):
                raise

    async def _ask(self, service: str, method: str, request: Any, repeatable: bool) -> Any:
        async def attempt(stubs: _Stubs) -> Any:
            return await getattr(getattr(stubs, service), method)(request, timeout=self._timeout)

        try:
            return await self._channels.call(attempt, repeatable=repeatable)
        except StoreError as error:
            if "too many learner members" in str(error):
                raise TooManyLearners(str(error)) from error
            if "in sync with leader" in str(error):
                raise NotInSync(str(error)) from error
            raise


def _member(found: Any) -> Member:
    return Member(found.ID, found.name, tuple(found.peerURLs), found.isLearner)
