# SPDX-License-Identifier: Apache-2.0
"""Upkeep of the managers' etcd: compaction, defragmentation of one member at a time, and the way
out of a full database.

The leader drives it. Each manager defragments its own member, which only it can reach, when the
driver requests that. Requests of operators go to the driver, too, so that no two members are
defragmented at once; a driver that was deposed in the middle leaves a mark, since a member's status
says that it is being defragmented.

A full database elects no leader, because leases cannot be granted. Then the healthy manager with
the lowest id drives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from orchestrator.daemon.grpc_calls import ChannelClosed, answer
from orchestrator.manager.cluster.manager_calls import ManagerChannels
from orchestrator.manager.cluster.store_condition import (
    StoreMember,
    alarms_in,
    defragmentation_order,
    is_full,
    refusal_of_defragmentation,
    store_members,
)
from orchestrator.manager.errors import RequestError, failed_precondition, unavailable
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.etcd_maintenance import (
    DEFRAGMENTATION_TIMEOUT,
    NOSPACE,
    Alarm,
    Defragmented,
)
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Kv, StoreError
from orchestrator.model.administration.managers import Manager
from orchestrator.pb import managers_pb2, managers_pb2_grpc

log = logging.getLogger(__name__)

PERIOD = 10.0
"""Seconds between two looks at the members."""

RELIEF_PAUSE = 300.0
"""Seconds between two attempts to make room in a full database: if its live data fill it,
compaction and defragmentation gain nothing."""


HAND_OVER_SIZE = 256 << 20
"""Bytes of a leader's database from which another manager leads while it is defragmented: the
leader could not renew its lease for as long as that takes."""


class StoreUpkeep:
    """Upkeep of this manager's etcd member and, while this manager drives, of the others'."""

    def __init__(
        self,
        kv: Kv,
        view: Callable[[], ClusterView],
        own: str,
        member: EtcdMember,
        channels: ManagerChannels,
        statuses: Callable[[], Awaitable[Mapping[str, Any]]],
        leads: Callable[[], bool],
        hand_over: Callable[[], Awaitable[object]],
        clock: Callable[[], float],
        *,
        period: float = PERIOD,
    ) -> None:
        """`own` is this manager's id. `statuses` asks the managers for their ManagerStatus, by id.
        `hand_over` has the leader resign and returns once a manager leads again. `clock` is
        monotonic. `period` in seconds."""
        self._kv = kv
        self._view = view
        self._own = own
        self._member = member
        self._channels = channels
        self._statuses = statuses
        self._leads = leads
        self._hand_over = hand_over
        self._clock = clock
        self._period = period
        self._turn = asyncio.Lock()
        """Held while this manager has a member defragmented."""
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[Defragmented]] = []
        self._resign = False
        """Whether this leader resigns before its member is defragmented."""
        self._relief_at = float("-inf")
        self._reported = ""
        """Newest reason for not acting: logged once."""
        self.defragmenting = False
        """Whether this manager's member is being defragmented."""
        self.finished: Callable[[Defragmented | None], None] = lambda done: None
        """Called after each defragmentation of this manager's member; None: it failed."""

    async def run(self) -> None:
        """Keep the store up until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._defragment_on_request())
            while True:
                await asyncio.sleep(self._period)
                try:
                    await self.look()
                    self._report("")
                except (StoreError, RequestError) as error:
                    self._report(str(error))

    async def look(self) -> None:
        """Do what is due, if this manager drives. Raises StoreError, RequestError."""
        full = is_full((await self._member.membership.status()).alarms)
        if not (self._leads() or full):
            return
        statuses = await self._statuses()
        members = store_members(self._view(), statuses)
        if not self._leads() and await self._driver(members) != self._own:
            return
        if full:
            await self._make_room(members, alarms_in(statuses.values()))
            return
        for manager in defragmentation_order(members, self._own):
            await self.defragment(manager)
            if not self._leads():
                return

    async def _driver(self, members: list[StoreMember]) -> str:
        """Id of the manager that drives."""
        if (entry := await self._kv.get(LEADER)) is not None:
            return entry.value.decode()
        return min((each.manager for each in members if each.healthy), default=self._own)

    async def _make_room(self, members: list[StoreMember], alarms: list[Alarm]) -> None:
        """Accept writes again, once there is room; make some if an attempt is due."""
        if not all(each.has_room for each in members) and self._clock() >= self._relief_at:
            self._relief_at = self._clock() + RELIEF_PAUSE
            log.warning("etcd's database is full: compacting and defragmenting it")
            await self._member.maintenance.compact()
            for each in sorted(members, key=lambda each: (each.manager == self._own, each.manager)):
                if each.healthy and each.quota:
                    await self.defragment(each.manager)
            members = store_members(self._view(), await self._statuses())
        if crowded := [each.hostname for each in members if not each.has_room]:
            raise failed_precondition(
                f"etcd's database is full on {', '.join(crowded)}: raise --etcd-quota of all "
                "managers, or see 'orc manager store status'"
            )
        await self._member.maintenance.disarm([each for each in alarms if each.kind == NOSPACE])
        self._relief_at = float("-inf")
        log.warning("etcd's database has room again: writes are accepted")

    async def compact(self) -> int:
        """Compact the store; the revision that is left. Raises StoreError."""
        return await self._member.maintenance.compact()

    async def disarm(self, *, force: bool) -> list[Alarm]:
        """Disarm the alarms of full databases, and return them. Refused while a database has no
        room, unless forced. Raises RequestError, StoreError."""
        statuses = await self._statuses()
        alarms = [each for each in alarms_in(statuses.values()) if each.kind == NOSPACE]
        members = store_members(self._view(), statuses)
        crowded = [each.hostname for each in members if not each.has_room]
        if alarms and crowded and not force:
            raise failed_precondition(
                f"the database of {', '.join(crowded)} is still full, so the alarm would be raised "
                "again: run 'orc manager store compact' and 'orc manager store defrag', or raise "
                "--etcd-quota of the managers"
            )
        await self._member.maintenance.disarm(alarms)
        return alarms

    async def request_defragmentation(
        self, manager: str, *, force: bool = False, relayed: bool = False
    ) -> Defragmented:
        """Have the driver defragment the member of a manager. `relayed`: another manager holds this
        one for the driver. Raises RequestError, StoreError."""
        if not (self._leads() or relayed):
            driver = await self._driver(store_members(self._view(), await self._statuses()))
            if driver != self._own and driver in self._view().managers:
                request = managers_pb2.DefragmentStoreRequest(manager=manager, force=force)
                return await self._ask(driver, "DefragmentStore", request)
        return await self.defragment(manager, force=force)

    async def defragment(self, manager: str, *, force: bool = False) -> Defragmented:
        """Defragment the member of a manager, once no other one is being defragmented by this
        manager. Refused while it would endanger the quorum, unless forced. Raises RequestError,
        StoreError."""
        async with self._turn:
            statuses = await self._statuses()
            members = store_members(self._view(), statuses)
            if not force and (refusal := refusal_of_defragmentation(members, manager)):
                raise failed_precondition(
                    f"not defragmented: {refusal}; see 'orc manager store status'"
                )
            if manager == self._own:
                # No leader could be elected while writes are refused.
                writable = not is_full(alarms_in(statuses.values()))
                return await self.defragment_own(resign=writable and self._should_resign(members))
            request = managers_pb2.DefragmentMemberRequest()
            return await self._ask(manager, "DefragmentMember", request)

    def _should_resign(self, members: list[StoreMember]) -> bool:
        """Whether a defragmentation would outlast this leader's lease, and another could lead."""
        own = next((each for each in members if each.manager == self._own), None)
        others = [each for each in members if each is not own and each.healthy and not each.learner]
        large = own is not None and own.size >= HAND_OVER_SIZE
        return self._leads() and large and bool(others)

    async def defragment_own(self, *, resign: bool = False) -> Defragmented:
        """Defragment this manager's member, after this leader has resigned if it should. Once begun
        it goes on, also if the caller is cancelled: etcd does not stop it either. Raises
        StoreError."""
        done: asyncio.Future[Defragmented] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        # Set before another manager leads, which then has no other member defragmented.
        self.defragmenting = True
        self._resign = self._resign or resign
        self._wanted.set()
        return await done

    async def _defragment_on_request(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._resign:
                self._resign = False
                await self._let_another_lead()
            served, self._waiting = self._waiting, []
            try:
                done = await self._member.maintenance.defragment()
            except StoreError as error:
                log.warning("cannot defragment etcd's database", extra={"reason": str(error)})
                self.finished(None)
                for each in served:
                    if not each.done():
                        each.set_exception(error)
                continue
            finally:
                self.defragmenting = bool(self._waiting)
            log.info(
                "etcd's database defragmented",
                extra={
                    "before": done.before,
                    "after": done.after,
                    "seconds": round(done.seconds, 3),
                },
            )
            self.finished(done)
            for each in served:
                if not each.done():
                    each.set_result(done)

    async def _let_another_lead(self) -> None:
        log.info("handing the leadership over before a defragmentation")
        try:
            await self._hand_over()
        except (RequestError, StoreError) as error:
            log.warning("cannot hand the leadership over", extra={"reason": str(error)})

    async def _ask(self, manager: str, method: str, request: Any) -> Defragmented:
        """The answer of another manager. Raises RequestError."""
        known: Manager | None = self._view().managers.get(manager)
        channel = await self._channels.channel(manager)
        if channel is None or known is None:
            raise failed_precondition(f"there is no manager {manager}; see 'orc manager ls'")
        call = getattr(managers_pb2_grpc.MembershipStub(channel), method)
        try:
            reply = await answer(call(request, timeout=DEFRAGMENTATION_TIMEOUT))
        except ChannelClosed as error:
            raise unavailable(
                f"cannot defragment the member of {known.hostname}: {error}"
            ) from error
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise failed_precondition(
                    f"{known.hostname} has an older version, which cannot defragment: upgrade it"
                ) from error
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise failed_precondition(str(error.details())) from error
            raise unavailable(
                f"cannot defragment the member of {known.hostname}: {error.details()}"
            ) from error
        return Defragmented(reply.before, reply.after, reply.seconds)

    def _report(self, reason: str) -> None:
        if reason and reason != self._reported:
            log.warning("upkeep of etcd is not possible", extra={"reason": reason})
        self._reported = reason
