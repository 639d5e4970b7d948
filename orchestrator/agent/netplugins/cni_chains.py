# SPDX-License-Identifier: Apache-2.0
"""Networks of CNI plugins: a CNI runtime whose state survives kills and reboots.

ADD runs through the chain with each plugin's result as the next one's `prevResult`; the last result
is recorded and passed to CHECK and DEL. If a plugin of a chain fails, the whole chain is undone.
Source: CNI specification 1.1, sections 2 to 4, and CONVENTIONS.md for `runtimeConfig`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from orchestrator.agent.netplugins.attachment_records import (
    AttachmentRecord,
    AttachmentRecords,
    ReleaseRetries,
    namespace_created,
    namespace_stamp,
    same_namespace,
)
from orchestrator.agent.netplugins.cni_program import TRY_AGAIN, Call, Programs
from orchestrator.agent.netplugins.plugin_results import (
    Place,
    answers_here,
    attachment_of,
    given,
    guest_of,
    places_of,
)
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Attachment, Guest, Interface, NetworkConfig
from orchestrator.model.formats.conflist import Conflist, bandwidth, parse_conflist


def asked_of(interface: Interface) -> dict[str, Any]:
    """A container's requests by CNI capability, for `runtimeConfig`."""
    return {
        "portMappings": [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                **({"hostIP": port.host_ip} if port.host_ip else {}),
            }
            for port in interface.ports
        ],
        "ips": [address for address in (interface.ip, interface.ip6) if address],
        "mac": interface.mac,
        "aliases": list(interface.aliases),
        "bandwidth": bandwidth(interface.options),
    }


def configs(chain: Conflist, record: AttachmentRecord) -> list[dict[str, Any]]:
    """The configuration of each plugin, except `prevResult`."""
    found = []
    for plugin in chain.plugins:
        config = {**plugin.config, "name": chain.name, "cniVersion": record.body["version"]}
        asked = record.body["asked"]
        supported = {key: asked[key] for key in plugin.capabilities & asked.keys() if asked[key]}
        if supported:
            config["runtimeConfig"] = supported
        found.append(config)
    return found


def call_of(command: str, record: AttachmentRecord) -> Call:
    """A call about a container."""
    return Call(command, record.container, record.netns, record.ifname)


def same(known: AttachmentRecord, wanted: AttachmentRecord) -> bool:
    """Whether a record is as desired, in the same namespace."""
    return (
        bool(known.body.get("result"))
        and known.ifname == wanted.ifname
        and same_namespace(known, wanted)
        and all(known.body.get(key) == wanted.body[key] for key in ("conflist", "asked"))
    )


def before(version: str, other: str) -> bool:
    """Whether a version is older than another."""
    return numbers(version) < numbers(other)


def numbers(version: str) -> tuple[int, ...]:
    """A version as comparable numbers."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


log = logging.getLogger(__name__)

ADD_SECONDS = 60.0
"""Seconds of each plugin of a chain; some wait for their daemon."""
DEL_SECONDS = 12.0
"""Seconds of a whole chain; the agent's limit for a release is 20."""
ASK_SECONDS = 10.0
"""Seconds of CHECK, STATUS, GC and VERSION."""
PATIENCE = 30.0
"""Seconds for which a call that fails with "try again later" is retried."""
_PERIOD = 5.0
"""Seconds between two discoveries of plugins."""
_LOCK_PERIOD = 0.05
"""Seconds between attempts to take a container's lock."""

_CHECKS, _COLLECTS = "0.4.0", "1.1.0"
"""The versions that introduced CHECK, and STATUS and GC."""


class Chains:
    """The CNI networks of this node."""

    def __init__(
        self,
        records: AttachmentRecords,
        programs: Programs,
        is_own: Callable[[str], bool] = answers_here,
    ) -> None:
        """`is_own`: whether this node has an address."""
        self._records = records
        self._programs = programs
        self._is_own = is_own
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One operation per container at a time, as the specification demands."""
        self._releases = ReleaseRetries(records)
        self._leaving: set[str] = set()
        """Networks to remove from this node."""
        self._uncollected = False
        self.changed = asyncio.Event()
        """Set when the set of plugins has changed."""
        self.names: tuple[str, ...] = programs.names()

    # -- methods of `composite.Driver` ------------------------------------------------------------

    async def apply(self, config: NetworkConfig) -> None:
        """Record a network. Raises NetworkError for a plugin that this node lacks."""
        chain = parse_conflist(config.conflist)
        self._leaving.discard(config.id)
        kept = {
            "name": config.name,
            "conflist": config.conflist,
            "source_check": config.source_check,
            "allowed_sources": list(config.allowed_sources),
        }
        self._records.put_network(config.id, kept)
        for name in chain.programs:
            self._programs.find(name)

    async def attach(
        self, config: NetworkConfig, container: str, interface: Interface, netns: str
    ) -> Attachment:
        """Connect a container; repeated, check that it still is (`_check`)."""
        wanted = AttachmentRecord(
            config.id,
            container,
            interface.ifname,
            netns,
            namespace_stamp(netns),
            {
                "conflist": config.conflist,
                "asked": asked_of(interface),
                "created": namespace_created(netns),
            },
        )
        async with self._turn(container) as lock:
            known = self._records.get(*wanted.key)
            if known is not None:
                if same(known, wanted):
                    await self._check(known, lock)
                    return attachment_of(known, known.body["result"], self._is_own)
                await self._delete(known, lock)
            version = await self._version(parse_conflist(config.conflist))
            record = replace(wanted, body={**wanted.body, "version": version})
            self._records.put(record)
            self._releases.forget(record.key)
            try:
                result = await self._add(record, lock)
                attachment = attachment_of(record, result, self._is_own)
            except NetworkError:
                await self._try_to_delete(record, lock)
                raise
            self._records.put(replace(record, body={**record.body, "result": result}))
            return attachment

    async def disconnect(self, network: str, container: str) -> None:
        """Disconnect a container from a network; a release that fails is retried later."""
        if (record := self._records.get(network, container)) is not None:
            async with self._turn(container) as lock:
                await self._try_to_delete(record, lock)

    async def detach(self, container: str) -> None:
        """Disconnect a container from all networks, while its namespace still exists."""
        for record in reversed(self._records.of_container(container)):
            await self.disconnect(*record.key)
        self._turns.pop(container, None)

    def collect(self, valid: Collection[str]) -> None:
        """Schedule the release of all other containers' attachments, and a check of the remaining
        ones."""
        for record in self._records.all():
            if record.container not in valid:
                self._releases.note(record.key)
        self._uncollected = True
        self._releases.changed.set()

    def interfaces(self, container: str) -> dict[str, str]:
        """Network → interface of a container."""
        return {each.network: each.ifname for each in self._records.of_container(container)}

    def unused(self) -> list[str]:
        """Networks without a container."""
        networks = self._records.networks.keys() - self._leaving
        return [id for id in sorted(networks) if not self._records.of_network(id)]

    async def remove(self, network: str) -> None:
        """Schedule the removal of a network without containers, also from its plugins."""
        if network in self._records.networks:
            self._leaving.add(network)
            self._releases.changed.set()

    # -- background work ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Release the remains of earlier agents, and discover plugins, until cancelled."""
        while True:
            self._releases.changed.clear()
            for key in self._releases.due():
                await self._clear(key)
            for network in sorted(self._leaving):
                known = self._records.networks[network]
                await self._collect_garbage(known, [])
                # It may have been ordered again meanwhile.
                if network in self._leaving:
                    self._leaving.discard(network)
                    self._records.drop_network(network)
            if self._uncollected:
                self._uncollected = False
                await self._check_after_restart()
            names = await asyncio.to_thread(self._programs.names)
            if names != self.names:
                self.names = names
                self.changed.set()
            await self._releases.wait(_PERIOD)

    def places(self) -> dict[str, Place]:
        """Network id → where this node can serve DNS in it: its own addresses among the gateways
        of its containers."""
        return places_of(
            (
                (record.network, each.gateway, str(each.address.network))
                for record in self._records.all()
                if (result := record.body.get("result"))
                for each in given(result, record.ifname)
            ),
            self._is_own,
        )

    def addresses(self) -> frozenset[str]:
        """The addresses of all containers on these networks, without prefix length."""
        return frozenset(
            str(each.address.ip)
            for record in self._records.all()
            if (result := record.body.get("result"))
            for each in given(result, record.ifname)
        )

    def checked(self) -> list[Guest]:
        """The interfaces of containers whose source addresses are checked."""
        return [
            guest_of(record, result, self._records.allowed(record.network))
            for record in self._records.all()
            if (result := record.body.get("result")) and self._records.checks(record.network)
        ]

    async def _clear(self, key: tuple[str, str]) -> None:
        """Try to release the attachments of removed containers."""
        try:
            async with self._turn(key[1]) as lock:
                # Its container may have been connected again meanwhile.
                record = self._records.get(*key)
                if record is not None and key in self._releases:
                    await self._delete(record, lock)
        except NetworkError as error:
            self._releases.failed(key, error)
        if self._records.get(*key) is None:
            self._releases.forget(key)

    async def _check_after_restart(self) -> None:
        """Once per agent process: GC of the plugins' remains, and CHECK of the attachments."""
        for id, known in list(self._records.networks.items()):
            await self._collect_garbage(known, self._records.of_network(id))
        for record in self._records.all():
            try:
                async with self._turn(record.container) as lock:
                    now = self._records.get(*record.key)
                    if now is not None and now.body.get("result") and now.key not in self._releases:
                        await self._check(now, lock)
            except NetworkError as error:
                log.warning(
                    "attachment cannot be checked: %s", error, extra={"task": record.container}
                )

    # -- CNI operations ----------------------------------------------------------------------------

    async def _add(self, record: AttachmentRecord, lock: int) -> Mapping[str, Any]:
        chain = parse_conflist(record.body["conflist"])
        await self._status(chain, record.body["version"])
        loop = asyncio.get_running_loop()
        give_up, pause = loop.time() + PATIENCE, 0.25
        while True:
            try:
                return await self._add_once(chain, record, lock)
            except NetworkError as error:
                if error.code != TRY_AGAIN or loop.time() + pause > give_up:
                    raise
                log.info("retrying ADD: %s", error, extra={"task": record.container})
            await asyncio.sleep(pause)
            pause *= 2

    async def _add_once(
        self, chain: Conflist, record: AttachmentRecord, lock: int
    ) -> Mapping[str, Any]:
        result: Mapping[str, Any] | None = None
        for index, config in enumerate(configs(chain, record)):
            if result is not None:
                config["prevResult"] = result
            call = call_of("ADD", record)
            result = await self._programs.call(
                chain.plugins[index].type, call, config, ADD_SECONDS, lock
            )
        assert result is not None  # a chain has a plugin
        return result

    async def _check(self, record: AttachmentRecord, lock: int) -> None:
        """Log an attachment that has drifted (CHECK). It is not repaired: its container may run,
        and some plugins reject their own attachments."""
        chain, version = parse_conflist(record.body["conflist"]), record.body["version"]
        if not chain.checks or before(version, _CHECKS):
            return
        try:
            for plugin, config in zip(chain.plugins, configs(chain, record), strict=True):
                config["prevResult"] = record.body["result"]
                await self._programs.call(
                    plugin.type, call_of("CHECK", record), config, ASK_SECONDS, lock
                )
        except NetworkError as error:
            log.warning("attachment may have drifted: %s", error, extra={"task": record.container})

    async def _delete(self, record: AttachmentRecord, lock: int) -> None:
        """DEL of all plugins, in reverse, despite errors; then delete the record. Raises the first
        of their errors."""
        chain = parse_conflist(record.body["conflist"])
        loop = asyncio.get_running_loop()
        end = loop.time() + DEL_SECONDS
        failure: NetworkError | None = None
        each_config = configs(chain, record)
        for plugin, config in reversed(list(zip(chain.plugins, each_config, strict=True))):
            if result := record.body.get("result"):
                config["prevResult"] = result
            left = max(end - loop.time(), 1.0)
            try:
                await self._programs.call(plugin.type, call_of("DEL", record), config, left, lock)
            except NetworkError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        self._records.drop(record)
        self._releases.forget(record.key)

    async def _try_to_delete(self, record: AttachmentRecord, lock: int) -> None:
        """DEL, retried later if it fails."""
        try:
            await self._delete(record, lock)
        except NetworkError as error:
            self._releases.failed(record.key, error)

    async def _status(self, chain: Conflist, version: str) -> None:
        """Raise NetworkError if a plugin cannot connect containers now (STATUS)."""
        if before(version, _COLLECTS):
            return
        for plugin in chain.plugins:
            config = {**plugin.config, "name": chain.name, "cniVersion": version}
            await self._programs.call(plugin.type, Call("STATUS"), config, ASK_SECONDS)

    async def _collect_garbage(
        self, network: Mapping[str, Any], valid: list[AttachmentRecord]
    ) -> None:
        """GC: have the plugins release everything except these attachments."""
        chain = parse_conflist(network["conflist"])
        if not chain.collects or before(chain.versions[0], _COLLECTS):
            return
        attachments = [{"containerID": each.container, "ifname": each.ifname} for each in valid]
        try:
            if before(version := await self._version(chain), _COLLECTS):
                return
            for plugin in chain.plugins:
                config = {
                    **plugin.config,
                    "name": chain.name,
                    "cniVersion": version,
                    "cni.dev/valid-attachments": attachments,
                }
                await self._programs.call(plugin.type, Call("GC"), config, ASK_SECONDS)
        except NetworkError as error:
            log.warning("network %s: %s", network["name"], error)

    async def _version(self, chain: Conflist) -> str:
        """The newest version that the list and all its plugins support. Raises NetworkError."""
        common = list(chain.versions)
        for plugin in chain.plugins:
            supported = await self._programs.versions(plugin.type, common[0], ASK_SECONDS)
            if not (left := [each for each in common if each in supported]):
                known = ", ".join(sorted(supported, key=numbers)) or "none that it reports"
                raise NetworkError(
                    f"CNI plugin {plugin.type} of this node supports versions {known}, and the "
                    f"conflist has {', '.join(chain.versions)}: set cniVersion to one of them"
                )
            common = left
        return common[0]

    @asynccontextmanager
    async def _turn(self, container: str) -> AsyncIterator[int]:
        """Serialize operations on a container, also with plugins that an earlier agent started."""
        async with self._turns[container]:
            loop = asyncio.get_running_loop()
            give_up = loop.time() + ADD_SECONDS
            while True:
                with self._records.lock(container) as lock:
                    if lock is not None:
                        yield lock
                        return
                if loop.time() > give_up:
                    raise NetworkError(
                        "a CNI plugin that was called before the agent restarted is still running"
                    )
                await asyncio.sleep(_LOCK_PERIOD)
