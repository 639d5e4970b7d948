"""Docker's remote network driver and IPAM protocols, one call after the other.

Source: moby's `daemon/libnetwork/docs/remote.md` and `ipam.md`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

from orchestrator.agent.network.helper import NetworkError
from orchestrator.agent.network.values import Interface
from orchestrator.agent.plugins import errors
from orchestrator.agent.plugins.calls import ask, patiently, work
from orchestrator.agent.plugins.http import Address
from orchestrator.model.networks import GLOBAL, LOCAL

log = logging.getLogger(__name__)

END_SECONDS = 5.0
"""For each call that gives something back: a container's end waits for them."""

GENERIC = "com.docker.network.generic"
INTERNAL, IPV6 = "com.docker.network.internal", "com.docker.network.enable_ipv6"
GATEWAY = "com.docker.network.gateway"
REQUEST_KIND = "RequestAddressType"
MAC = "com.docker.network.endpoint.macaddress"
PORT_MAP = "com.docker.network.portmap"
EXPOSED = "com.docker.network.endpoint.exposedports"

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


class NetworkPlugin:
    """A plugin that drives networks, gives out addresses, or both."""

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        scope: str,
        gives: bool,
        mac: bool,
    ) -> None:
        self.name = name
        self.scope = scope
        """How far its networks reach, `local` or `global`; empty: it drives none."""
        self.gives = gives
        """It gives out addresses."""
        self.wants_mac = mac
        """It wants to know for which hardware address."""
        self._address = address

    @classmethod
    async def activate(cls, name: str, address: Address, implements: list[str]) -> Self | None:
        """One that implements this; None when it has nothing to do with networks. Raises
        PluginError."""
        scope, gives, mac = "", "IpamDriver" in implements, False
        if "NetworkDriver" in implements:
            told = await ask(address, "/NetworkDriver.GetCapabilities", {}, _driver(name))
            word = str(told.get("ConnectivityScope") or told.get("Scope")).lower()
            scope = GLOBAL if word == GLOBAL else LOCAL
        if gives:
            with suppress(errors.UnknownCall):  # it may be left out
                told = await ask(address, "/IpamDriver.GetCapabilities", {}, _ipam(name))
                mac = bool(told.get("RequiresMACAddress"))
        return cls(name, address, scope=scope, gives=gives, mac=mac) if scope or gives else None

    async def drive(self, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """`/NetworkDriver.<method>`; one that does not answer is asked again for a while. Raises
        NetworkError."""
        return await self._ask(f"/NetworkDriver.{method}", body, _driver(self.name))

    async def give(self, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """`/IpamDriver.<method>`, likewise."""
        return await self._ask(f"/IpamDriver.{method}", body, _ipam(self.name))

    async def take_back(self, path: str, body: Mapping[str, Any]) -> None:
        """A call that gives something back, once and soon. What the plugin itself says against it
        is no error: then it has none of it. Raises NetworkError while it does not answer."""
        try:
            await ask(self._address, path, body, _driver(self.name), END_SECONDS)
        except errors.PluginAway as error:
            raise NetworkError(f"{_driver(self.name)} does not answer: {error}") from error
        except errors.PluginError as error:
            log.info("%s", error)

    async def may(self, method: str, body: Mapping[str, Any]) -> None:
        """`/NetworkDriver.<method>` of a plugin that knows it. Raises NetworkError."""
        with of_networks(), suppress(errors.UnknownCall):
            await ask(self._address, f"/NetworkDriver.{method}", body, _driver(self.name))

    async def _ask(self, path: str, body: Mapping[str, Any], what: str) -> dict[str, Any]:
        with of_networks():
            try:
                return await patiently(lambda: work(self._address, path, body, what))
            except errors.PluginAway as error:
                raise errors.PluginAway(f"{what} does not answer: {error}") from error


@contextmanager
def of_networks() -> Iterator[None]:
    """Errors of a plugin's within are errors with networks."""
    try:
        yield
    except errors.PluginError as error:
        raise NetworkError(str(error)) from error


def endpoint_options(interface: Interface) -> dict[str, Any]:
    """The options of an endpoint: its published ports, and what the user says to the driver."""
    ports = [(_PROTOCOLS[port.protocol], port) for port in interface.ports]
    options: dict[str, Any] = dict(interface.options)
    if ports:
        options[PORT_MAP] = [
            {
                "Proto": protocol,
                "IP": "",
                "Port": port.container_port,
                "HostIP": port.host_ip,
                "HostPort": port.host_port,
                "HostPortEnd": port.host_port,
            }
            for protocol, port in ports
        ]
        options[EXPOSED] = [
            {"Proto": protocol, "Port": port.container_port} for protocol, port in ports
        ]
    return options


def _driver(name: str) -> str:
    return f"network plugin {name}"


def _ipam(name: str) -> str:
    return f"ipam plugin {name}"
