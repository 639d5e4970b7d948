# SPDX-License-Identifier: Apache-2.0
"""Enrolment of a joining manager, and promotion of its etcd member.

The steps are idempotent by the joiner's id, so that a join that was cut off can be repeated:

1. Its `Manager` object is written, so that `orc manager rm` can undo the rest.
2. This manager's etcd member is opened to peers if it was alone.
3. The joiner's etcd member is added as a learner, which does not count for the quorum.
4. The cluster's keys are sealed to the key of the joiner's certificate.

The leader promotes learners that have caught up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from orchestrator.identity.enrolment import PURPOSE
from orchestrator.identity.sealing import seal
from orchestrator.manager.cluster.schema import UnknownSchema, check_schema
from orchestrator.manager.cluster.version_skew import refusal_to_join
from orchestrator.manager.errors import (
    aborted,
    already_exists,
    failed_precondition,
    invalid_argument,
    unavailable,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reports.claims import is_hostname
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.etcd_membership import (
    EtcdMembership,
    Member,
    NotInSync,
    TooManyLearners,
)
from orchestrator.manager.store.kv import Conflict, Kv, StoreError
from orchestrator.model.administration.managers import Manager, host_port
from orchestrator.pb import managers_pb2

log = logging.getLogger(__name__)

PROMOTION_PERIOD = 0.25
"""Seconds between attempts to promote a learner."""


class Enrolment:
    """Enrols joining managers."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        keys: Callable[[], Mapping[str, str]],
        member: EtcdMember | None,
        open_to_peers: Callable[[], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        """`keys` are the cluster's keys by the names that the joiner knows. `member` is this
        manager's etcd member; None with an external etcd. `open_to_peers` makes it reachable for
        other members."""
        self._kv = kv
        self._cache = cache
        self._keys = keys
        self._member = member
        self._open_to_peers = open_to_peers
        self._now = now
        self._turn = asyncio.Lock()

    async def enroll(
        self, id: str, certificate: str, request: managers_pb2.EnrollRequest
    ) -> managers_pb2.EnrollReply:
        """Enroll the manager with this id, the holder of the PEM certificate. Raises RequestError,
        StoreError."""
        try:
            address = str(ipaddress.ip_address(request.address))
        except ValueError:
            raise invalid_argument(f"'{request.address[:64]}' is not an IP address") from None
        if not is_hostname(request.hostname):
            raise invalid_argument(f"{request.hostname[:64]!r} is not a hostname")
        if self._cache.view.cluster is None:
            raise unavailable("the manager is starting; try again in a moment")
        if reason := refusal_to_join(self._cache.view, request.hostname, request.version):
            raise failed_precondition(reason)
        try:
            await check_schema(self._kv, request.schema or 1)
        except UnknownSchema as unknown:
            raise failed_precondition(str(unknown)) from None
        async with self._turn:
            manager = await self._recorded(id, address, request)
            initial_cluster = ""
            if self._member is not None:
                await self._open_to_peers()
                url = f"https://{host_port(address, request.peer_port)}"
                added = await self._added(self._member.membership, url, id)
                members = await self._member.membership.members()
                initial_cluster = ",".join(_urls(each, added, id) for each in members)
                await self._write(manager, replace(manager, member_id=added.hex_id))
        view = self._cache.view
        assert view.cluster is not None
        log.info("manager enrolled", extra={"manager": id, "hostname": request.hostname})
        return managers_pb2.EnrollReply(
            sealed_keys=seal(certificate, json.dumps(dict(self._keys())).encode(), PURPOSE + id),
            initial_cluster=initial_cluster,
            network_cidr=view.cluster.network_cidr,
            managers=serving_endpoints(view),
        )

    async def _recorded(
        self, id: str, address: str, request: managers_pb2.EnrollRequest
    ) -> Manager:
        """The joiner's `Manager` object, as far as it is known before its etcd member is."""
        view = self._cache.view
        for other in view.managers.values():
            if other.id != id and (other.address, other.port) == (address, request.port):
                raise already_exists(
                    f"manager {other.id} ({other.hostname}) is at {other.endpoint}; remove it "
                    f"first: orc manager rm {other.id}"
                )
        before = view.managers.get(id)
        after = replace(
            before or Manager(id=id, created_at=self._now(), joining=self._member is not None),
            hostname=request.hostname,
            address=address,
            port=request.port,
            peer_port=request.peer_port if self._member is not None else 0,
            version=request.version,
        )
        return await self._write(before, after)

    async def _write(self, before: Manager | None, after: Manager) -> Manager:
        if after == before:
            return after
        try:
            await self._cache.wait_for(await commit(self._kv, [Change(before, after)]))
        except Conflict:
            raise aborted(f"manager {after.id} was modified concurrently; retry") from None
        return self._cache.view.managers.get(after.id, after)

    async def _added(self, membership: EtcdMembership, url: str, id: str) -> Member:
        try:
            return await membership.ensure_learner(url)
        except TooManyLearners:
            others = [m for m in self._cache.view.managers.values() if m.joining and m.id != id]
            which = ", ".join(f"{m.hostname} ({m.id})" for m in others) or "another manager"
            raise aborted(
                f"{which} is joining and has not caught up yet; if it does not go on, remove it: "
                f"orc manager rm {others[0].id if others else 'MANAGER'}"
            ) from None


def _urls(member: Member, joiner: Member, id: str) -> str:
    """A member in `--initial-cluster`. Names of others do not matter: etcd compares URLs."""
    name = id if member.id == joiner.id else f"member-{member.hex_id}"
    return ",".join(f"{name}={url}" for url in member.peer_urls)


def serving_endpoints(view: ClusterView) -> list[str]:
    """HOST:PORT of all managers that have joined, by id."""
    managers = sorted(view.managers.values(), key=lambda each: each.id)
    return [each.endpoint for each in managers if not each.joining]


async def promote_learners(
    membership: EtcdMembership, view: Callable[[], ClusterView], leads: Callable[[], bool]
) -> None:
    """Promote the members of joining managers once they have caught up, while this manager leads;
    until cancelled."""
    done: set[str] = set()
    while True:
        await asyncio.sleep(PROMOTION_PERIOD)
        if not leads():
            continue
        for manager in list(view().managers.values()):
            if not (manager.joining and manager.member_id) or manager.member_id in done:
                continue
            try:
                await membership.promote(int(manager.member_id, 16))
            except NotInSync:
                continue
            except StoreError as error:
                log.warning(
                    "cannot promote a learner",
                    extra={"manager": manager.id, "reason": str(error)},
                )
                continue
            done.add(manager.member_id)
            log.info("learner promoted", extra={"manager": manager.id, "member": manager.member_id})
