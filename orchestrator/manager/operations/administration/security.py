# SPDX-License-Identifier: Apache-2.0
"""Keys of the control plane: rotation of the data key and the CA, lock of managers' key files."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from orchestrator.identity import ca
from orchestrator.identity.authority import (
    Authority,
    CannotSign,
    checked_auth_key,
    checked_ca,
    checked_url,
)
from orchestrator.identity.certificates import KeyPair, Life, own_key_id
from orchestrator.identity.key_files import WrongUnlockKey, new_unlock_key, unlock_key_id
from orchestrator.manager.errors import failed_precondition, invalid_argument, not_ready
from orchestrator.manager.operations.context import ManagerContext, Operations, on_current_state
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.security.ca_rotation import members, signing_anew
from orchestrator.manager.security.key_ring import without_key
from orchestrator.manager.security.vault import CA_PURPOSE, UNLOCK_PURPOSE
from orchestrator.manager.store.commit import commit
from orchestrator.model.administration.access import CaRotation, ExternalCa, KeyRotation
from orchestrator.model.administration.managers import Manager
from orchestrator.model.compatibility.manager_features import EXTERNAL_CA
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.objects import Cluster
from orchestrator.pb import security_pb2

LOCKED_WITHIN = 10.0
"""Seconds that a call waits for the running managers to change their key files."""


class SecurityOperations(Operations):
    """Operations of `orc cluster key|lock|unlock-key|ca`."""

    def __init__(
        self, ctx: ManagerContext, ca_key: Callable[[], str], own_pair: Callable[[], KeyPair]
    ) -> None:
        """`ca_key`: PEM of the key of the CA that signs. `own_pair`: the manager's certificate."""
        super().__init__(ctx)
        self._ca_key = ca_key
        self._own_pair = own_pair

    def _cluster(self) -> Cluster:
        cluster = self.ctx.view.cluster
        if cluster is None:
            raise not_ready("the manager has not read its store yet; try again in a moment")
        return cluster

    async def _write(self, before: Cluster, after: Cluster) -> None:
        await self.ctx.cache.wait_for(await commit(self.ctx.kv, [Change(before, after)]))

    @on_current_state
    async def rotate_data_key(self, by: str) -> security_pb2.DataKeyStatus:
        """Begin a rotation of the data key. One that is in progress goes on, unless no running
        manager has its key any more."""
        cluster, view = self._cluster(), self.ctx.view
        if new := cluster.key_rotation.id:
            running = [each for each in view.managers.values() if each.id in view.manager_presence]
            if new == cluster.secrets_key_id or any(new in each.data_keys for each in running):
                return await self.data_key_status()
        vault = self.ctx.vault
        id = vault.generate()
        try:
            # On disk before the store names it.
            await asyncio.to_thread(vault.save)
            rotation = KeyRotation(id, self.ctx.now(), by, former=cluster.secrets_key_id)
            await self._write(cluster, replace(cluster, key_rotation=rotation))
        finally:
            vault.release(id)
        return await self.data_key_status()

    async def data_key_status(self) -> security_pb2.DataKeyStatus:
        """The data key, and how far its rotation is."""
        cluster = self._cluster()
        new = cluster.key_rotation.id
        phase = "idle" if not new else "distributing"
        if new and new == cluster.secrets_key_id:
            phase = "resealing"
        return security_pb2.DataKeyStatus(
            id=cluster.secrets_key_id,
            new_id=new,
            phase=phase,
            waiting_for=without_key(self.ctx.view, new) if phase == "distributing" else (),
            started_at=cluster.key_rotation.started_at,
        )

    @on_current_state
    async def rotate_ca(
        self, request: security_pb2.RotateCaRequest, by: str
    ) -> security_pb2.CaStatus:
        """Begin a rotation of the CA, or change how long one waits for admins; with `force`, end
        one without the members that are missing. An external CA that is the cluster's already gets
        another endpoint. Raises RequestError, StoreError."""
        [cluster] = self.ctx.sealing() or [self._cluster()]
        if cluster.ca_rotation.successor:
            if request.force:
                await self._end_rotation(cluster)
            elif request.admins_within:
                patient = replace(cluster.ca_rotation, admins_within=request.admins_within)
                await self._write(cluster, replace(cluster, ca_rotation=patient))
            return await self.ca_status()
        if request.force:
            raise failed_precondition("no rotation of the CA is in progress")
        former = KeyPair(cluster.ca_certificate, "" if cluster.external_ca.url else self._ca_key())
        at = dt.datetime.fromtimestamp(self.ctx.now(), dt.UTC)
        external = from_proto(request.external)
        if external.url:
            successor, key = await self._tried(external, request, cluster, at), ""
            if request.auth_key:
                sealed = self.ctx.vault.seal(request.auth_key, CA_PURPOSE)
                external = replace(external, auth_key=sealed)
            if own_key_id(successor) == own_key_id(cluster.ca_certificate):
                await self._write(cluster, replace(cluster, external_ca=external))
                return await self.ca_status()
        else:
            fresh = ca.new_ca(cluster.id, at)
            successor, key = fresh.certificate, self.ctx.vault.seal(fresh.key, CA_PURPOSE)
        rotation = CaRotation(
            former=former.certificate,
            successor=successor,
            link=ca.link(former, successor) if former.key else "",
            key=key,
            started_at=self.ctx.now(),
            by=by,
            admins_within=request.admins_within,
            external=external,
        )
        await self._write(cluster, replace(cluster, ca_rotation=rotation))
        return await self.ca_status()

    async def _tried(
        self,
        external: ExternalCa,
        request: security_pb2.RotateCaRequest,
        cluster: Cluster,
        at: dt.datetime,
    ) -> str:
        """The certificate of an external CA that has signed a manager's certificate on trial.
        Raises RequestError."""
        older = [
            each.hostname
            for each in self.ctx.view.managers.values()
            if EXTERNAL_CA not in each.features
        ]
        if older:
            raise failed_precondition(
                f"managers of an earlier version cannot use an external CA; upgrade "
                f"{', '.join(sorted(older))} first"
            )
        try:
            checked_url(external.url)
            successor = checked_ca(request.ca_certificate, at)
            trial = Authority(
                successor,
                external=external,
                client=self._own_pair(),
                auth_key=checked_auth_key(request.auth_key),
            )
            issue = partial(
                trial.issue,
                common_name=self.ctx.identity.manager_id,
                role="manager",
                cluster_id=cluster.id,
                now=at,
                addresses=(self.ctx.identity.address, "127.0.0.1"),
            )
            await asyncio.to_thread(issue)
        except CannotSign as error:
            raise failed_precondition(f"nothing was changed: {error}") from error
        return successor

    async def _end_rotation(self, cluster: Cluster) -> None:
        """Remove the former CA, or have the new one sign although nodes or admins may not trust it.
        All managers must trust it, or they could not meet."""
        if not cluster.ca_rotation.signing_since:
            missing = [
                each.name
                for each in members(self.ctx.view, self.ctx.now())
                if each.kind == "manager" and not each.renewed
            ]
            if not missing and not cluster.ca_rotation.link:
                await self._write(cluster, signing_anew(cluster, self.ctx.now()))
                return
            raise failed_precondition(
                f"the new CA does not sign yet: {', '.join(missing) or 'the leader'} must trust it "
                "first; start these managers, or remove them ('orc manager rm')"
            )
        await self._write(cluster, replace(cluster, ca_rotation=CaRotation()))

    async def ca_status(self) -> security_pb2.CaStatus:
        """The CA, and how far its rotation is."""
        cluster = self._cluster()
        rotation = cluster.ca_rotation
        status = security_pb2.CaStatus(
            phase="idle",
            digest=ca.digest(cluster.ca_certificate),
            started_at=rotation.started_at,
        )
        life = Life.of(cluster.ca_certificate)
        status.expires_at = life.ends.timestamp() if life else 0.0
        status.external.CopyFrom(to_proto(replace(cluster.external_ca, auth_key="")))
        if not rotation.successor:
            return status
        status.phase = "renewing" if rotation.signing_since else "trusting"
        status.former = ca.digest(rotation.former)
        status.admins_until = rotation.admins_until
        for each in members(self.ctx.view, self.ctx.now()):
            status.members.add(
                kind=each.kind,
                id=each.id,
                name=each.name,
                renewed=each.renewed,
                blocking=each.blocking,
                reason=each.reason,
            )
        return status

    @on_current_state
    async def lock(self, request: security_pb2.LockRequest) -> security_pb2.UnlockKeyReply:
        """Lock the managers' key files, replace the unlock key, or end that. Raises RequestError,
        StoreError."""
        [cluster] = self.ctx.sealing() or [self._cluster()]
        if request.off:
            if cluster.unlock_key:
                await self._write(cluster, replace(cluster, unlock_key=""))
        elif request.rotate and not cluster.unlock_key:
            raise failed_precondition("the cluster is not locked; 'orc cluster lock' locks it")
        elif request.rotate or not cluster.unlock_key:
            key = request.key or new_unlock_key()
            try:
                repeated = unlock_key_id(key) == unlock_key_id(self._unlock_key())
            except WrongUnlockKey as error:
                raise invalid_argument(str(error)) from None
            if not repeated:
                sealed = self.ctx.vault.seal(key, UNLOCK_PURPOSE)
                await self._write(cluster, replace(cluster, unlock_key=sealed))
        await self._running_managers_follow()
        return await self.unlock_key()

    async def _running_managers_follow(self) -> None:
        """Wait until the running managers have changed their key files, at most for
        LOCKED_WITHIN."""
        async with self.ctx.cache.subscribe() as feed:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOCKED_WITHIN):
                    while any(
                        each.id in self.ctx.view.manager_presence for each in self._unchanged()
                    ):
                        await feed.next()

    def _unchanged(self) -> list[Manager]:
        """The managers whose key files are not locked as the cluster says."""
        wanted = unlock_key_id(self._unlock_key())
        return [each for each in self.ctx.view.managers.values() if each.unlock_key_id != wanted]

    def _unlock_key(self) -> str:
        """Empty if the cluster is not locked."""
        sealed = self._cluster().unlock_key
        return self.ctx.vault.open(sealed, UNLOCK_PURPOSE) if sealed else ""

    async def unlock_key(self) -> security_pb2.UnlockKeyReply:
        """The unlock key, and the managers whose key files it does not lock yet."""
        return security_pb2.UnlockKeyReply(
            key=self._unlock_key(),
            waiting_for=sorted(each.hostname for each in self._unchanged()),
        )
