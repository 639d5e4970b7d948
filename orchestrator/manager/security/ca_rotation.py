# SPDX-License-Identifier: Apache-2.0
"""Rotation of the cluster's CA, online.

1. *trusting*: managers trust both CAs, one after another, since etcd reads the CAs that it trusts
   when it starts. Nodes get both over their sessions.
2. *renewing*: once all managers do, the new CA signs, and join tokens are replaced. What it signs
   comes with a certificate of the new CA that the former one signed, so holders of the former alone
   accept it. Managers and nodes renew at once, admins with their next command.
   An external CA has no key here and can sign no such certificate: if it is the former one, the new
   one signs only once nodes and admins have learned to trust it, too.
3. Once all have, or an admin forces it, the former CA is removed, and everything that it signed is
   refused. Admins have a limited time, since some never run a command again.

The state is in the cluster's object. Each manager compares it with its files and its etcd member,
and reports what it reached in its own object; the leader takes the next step. So any of them goes
on after a crash.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.identity import ca
from orchestrator.identity.authority import Authority, write_external
from orchestrator.identity.certificates import KeyPair, TlsFiles, issuer_key_id, own_key_id
from orchestrator.identity.join_tokens import new_secret
from orchestrator.identity.key_files import CA_KEY, EXTERNAL_KEY, KeyFiles
from orchestrator.linux.atomicfile import write_file
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.certificates import CertificateAuthority, revocation_for
from orchestrator.manager.security.store_follower import follow_store
from orchestrator.manager.security.vault import CA_PURPOSE, Vault, VaultError
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict, Kv
from orchestrator.model.administration.access import CaRotation, Certificate
from orchestrator.model.administration.managers import Manager
from orchestrator.model.objects import Cluster

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaMember:
    """A holder of certificates, as a rotation sees it."""

    kind: str
    """`manager`, `node` or `admin`."""
    id: str
    name: str
    renewed: bool
    blocking: bool
    """The rotation does not go on before it has."""
    reason: str
    """Why it has not renewed; empty if it has."""


def members(view: ClusterView, now: float) -> Iterator[CaMember]:
    """All holders of certificates, and whether they have renewed theirs under the CA that signs."""
    assert view.cluster is not None
    rotation = view.cluster.ca_rotation
    wanted = own_key_id(rotation.successor or view.cluster.ca_certificate)
    for manager in view.managers.values():
        if manager.joining:
            continue
        if rotation.signing_since:
            done, reason = manager.certificate_ca == wanted, "its certificate is of the former CA"
        else:
            done, reason = wanted in manager.trusted_cas, "it does not trust the new CA yet"
        if not done and manager.id not in view.manager_presence:
            reason = "it is down"
        name = manager.hostname
        yield CaMember("manager", manager.id, name, done, not done, "" if done else reason)
    for node in view.nodes.values():
        session = view.sessions.get(node.id)
        done = session is not None and session.certificate_ca == wanted
        reason = "it is not connected" if session is None else "its certificate is of another CA"
        name = node.description.hostname
        if rotation.signing_since or rotation.link:
            waits = bool(rotation.signing_since) and not done
        else:
            done = session is not None  # it gets both CAs over that
            waits = not done
        yield CaMember("node", node.id, name, done, waits, "" if done else reason)
    admins: dict[str, bool] = {}
    for each in view.certificates.values():
        valid = each.expires_at > now and revocation_for(view.revocations, each) is None
        if each.role == "admin" and valid:
            admins[each.name] = admins.get(each.name, False) or has_renewed(rotation, each)
    what = "signs" if rotation.signing_since or rotation.link else "is trusted"
    for name, done in sorted(admins.items()):
        reason = "" if done else f"it has run no command since the new CA {what}"
        waits = not done and now < rotation.admins_until
        yield CaMember("admin", name, name, done, waits, reason)


def has_renewed(rotation: CaRotation, certificate: Certificate) -> bool:
    """Whether an admin got this certificate as the rotation demands: of the new CA, or with the
    word that the new CA is to be trusted."""
    new = own_key_id(rotation.successor)
    if rotation.signing_since or rotation.link:
        return certificate.ca == new
    return new in (certificate.ca, certificate.told_ca)


def signing_anew(cluster: Cluster, now: float) -> Cluster:
    """The cluster whose new CA signs from now on. Join tokens are replaced, too: a leaked backup or
    key file of the former CA may come with leaked tokens."""
    rotation = cluster.ca_rotation
    return replace(
        cluster,
        worker_token=new_secret(),
        manager_token=new_secret(),
        ca_certificate=rotation.successor,
        ca_rotation=replace(rotation, signing_since=now),
        external_ca=rotation.external,
    )


class CaFollower:
    """Keeps a manager's trust and certificate as the store says; while it leads, advances a
    rotation."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        vault: Vault,
        files: TlsFiles,
        keys: KeyFiles,
        authority: CertificateAuthority,
        manager_id: str,
        *,
        restart_etcd: Callable[[], Awaitable[None]],
        leads: Callable[[], bool],
        now: Callable[[], float],
        renew: asyncio.Event,
        end_sessions: Callable[[str, Mapping[str, str]], None],
    ) -> None:
        """`restart_etcd` restarts the manager's etcd member, if it has peers, and returns once it
        serves. `renew` is set when the manager's own certificate is of another CA. `end_sessions`
        gets the key id of the CA that signs, and its certificates of nodes (serial number → node
        id), whose sessions are to be opened anew with these."""
        self._kv = kv
        self._cache = cache
        self._vault = vault
        self._files = files
        self._keys = keys
        self._authority = authority
        self._manager_id = manager_id
        self._restart_etcd = restart_etcd
        self._leads = leads
        self._now = now
        self._renew = renew
        self._end_sessions = end_sessions

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await follow_store(self._cache, self._pass, log, "cannot follow the CA")

    async def _pass(self) -> None:
        await self._update()
        if self._leads():
            await self._advance()

    async def prepare(self) -> None:
        """Before the manager serves, trust and sign as the store says. Raises VaultError,
        OSError."""
        if (cluster := self._cache.view.cluster) is not None:
            await self._follow(cluster)

    async def _follow(self, cluster: Cluster) -> None:
        wanted = cluster.trusted_cas
        if self._files.ca.read_text() != wanted:
            await asyncio.to_thread(write_file, self._files.ca, wanted, mode=0o644)
        await self._sign_as(cluster)
        await asyncio.to_thread(write_external, self._keys.folder, cluster.external_ca)

    async def _sign_as(self, cluster: Cluster) -> None:
        """Have the authority sign with the CA that the cluster names."""
        rotation = cluster.ca_rotation
        signs = cluster.ca_certificate
        if cluster.external_ca.url:
            sealed = cluster.external_ca.auth_key
            auth_key = self._vault.open(sealed, CA_PURPOSE) if sealed else ""
            if auth_key:
                await asyncio.to_thread(self._keys.write, EXTERNAL_KEY, auth_key)
            await asyncio.to_thread(self._keys.remove, CA_KEY)
            external = Authority(
                signs,
                external=cluster.external_ca,
                client=self._files.pair.read(),
                auth_key=auth_key,
            )
            self._authority.use(external, rotation.link if rotation.successor == signs else "")
            return
        await asyncio.to_thread(self._keys.remove, EXTERNAL_KEY)
        if rotation.successor and rotation.successor == signs:
            key = self._vault.open(rotation.key, CA_PURPOSE)
            await asyncio.to_thread(self._keys.write, CA_KEY, key)
            self._authority.use(Authority(signs, key), rotation.link)
        elif key := self._keys.text(CA_KEY) or "":
            if not ca.is_pair(KeyPair(signs, key)):
                raise VaultError(
                    f"{CA_KEY} is of a former CA: this manager was down while the CA was rotated; "
                    "remove it ('orc manager rm') and let it join again"
                )
            self._authority.use(Authority(signs, key))
        else:
            raise VaultError(
                f"{self._keys.folder / CA_KEY} is missing: restore it from a backup of that "
                "folder, or remove this manager and let it join again"
            )

    async def _update(self) -> None:
        view = self._cache.view
        cluster = view.cluster
        if cluster is None:
            return
        await self._follow(cluster)
        signer = self._authority.key_id
        issuer = issuer_key_id(self._files.pair.read().certificate)
        if issuer != signer:
            self._renew.set()
        if cluster.ca_rotation.signing_since:
            renewed = {
                each.id: each.name
                for each in view.certificates.values()
                if each.role == "worker" and each.ca == signer
            }
            self._end_sessions(signer, renewed)
        own = view.managers.get(self._manager_id)
        if own is None:
            return
        ids = tuple(sorted(map(own_key_id, ca.certificates_in(cluster.trusted_cas))))
        if own.trusted_cas != ids:
            rotating = bool(own.trusted_cas or cluster.ca_rotation.successor)
            if rotating and not self._is_turn(view, ids):
                return
            if rotating:
                await self._restart_etcd()
            log.info("trusted CAs changed", extra={"cas": ",".join(ids)})
        after = replace(own, trusted_cas=ids, certificate_ca=issuer)
        if after != own:
            await self._write(own, after)

    def _is_turn(self, view: ClusterView, ids: tuple[str, ...]) -> bool:
        """Whether no running manager with a lower id is still to restart its etcd member."""
        return not any(
            each.trusted_cas != ids and each.id < self._manager_id
            for each in view.managers.values()
            if not each.joining and each.id in view.manager_presence
        )

    async def _advance(self) -> None:
        """Take the next step of a rotation, if it is time."""
        view = self._cache.view
        cluster = view.cluster
        if cluster is None or not (rotation := cluster.ca_rotation).successor:
            return
        found = list(members(view, self._now()))
        if not found or any(each.blocking for each in found):
            return
        if not rotation.signing_since:
            log.info("the new CA signs from now on")
            await self._write(cluster, signing_anew(cluster, self._now()))
        else:
            late = ",".join(each.name for each in found if not each.renewed)
            log.info("the former CA is removed", extra={"not_renewed": late})
            await self._write(cluster, replace(cluster, ca_rotation=CaRotation()))

    async def _write(self, before: Manager | Cluster, after: Manager | Cluster) -> None:
        with suppress(Conflict):
            await self._cache.wait_for(await commit(self._kv, [Change(before, after)]))
