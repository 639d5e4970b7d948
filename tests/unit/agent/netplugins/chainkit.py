# SPDX-License-Identifier: Apache-2.0
"""A host in a namespace on which real CNI plugins connect real containers' namespaces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nshosts import NsHost, within

from orchestrator.agent.netplugins.attachment_records import AttachmentRecords
from orchestrator.agent.netplugins.cni_chains import Chains
from orchestrator.agent.netplugins.cni_program import Programs
from orchestrator.agent.netplugins.plugin_results import answers_here
from orchestrator.agent.network.network_types import Interface, NetworkConfig
from orchestrator.cni.netlink import namespaces

DEBIAN = Path("/usr/lib/cni")


class Bench:
    """A host; its records are in `state`, across instances of its networks."""

    def __init__(self, host: NsHost, folder: Path) -> None:
        self.host = host
        self.state = folder / "state"
        self.plugins = folder / "plugins"
        """Where plugins are looked for: each runs in the host's network."""
        self.plugins.mkdir()
        self.calls = folder / "calls"
        """A line for each call of a plugin: its name and the verb."""
        self._netns: list[Path] = []

    def install(self, *names: str) -> None:
        """Have plugins of Debian's."""
        for name in names:
            self.script(name, f"exec nsenter --net={self.host.netns} {DEBIAN / name}")

    def script(self, name: str, text: str) -> None:
        """Have a plugin that is a shell script; its calls are noted."""
        path = self.plugins / name
        note = f'[ "$CNI_COMMAND" = VERSION ] || echo "{name} $CNI_COMMAND" >> {self.calls}'
        path.write_text(f"#!/bin/sh\n{note}\n{text}\n")
        path.chmod(0o755)

    def called(self, name: str) -> list[str]:
        """The verbs that a plugin was called with."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line.split()[1] for line in lines if line.split()[0] == name]

    def chains(self) -> Chains:
        """An agent's networks, as a new agent finds them."""
        return Chains(
            AttachmentRecords(self.state), Programs("node1", [self.plugins]), self._has_address
        )

    def _has_address(self, address: str) -> bool:
        """Whether the host has it: an agent would run in the host's network."""
        return within(self.host.netns, lambda: answers_here(address))

    def container(self, name: str) -> str:
        """A new namespace; its path."""
        path = self.host.run / "containers" / name
        namespaces.ensure(path)
        self._netns.append(path)
        return str(path)

    def conflist(self, *plugins: dict[str, Any], version: str = "1.0.0", **more: Any) -> str:
        """A list of these plugins, called `apps`."""
        return json.dumps({"cniVersion": version, "name": "apps", "plugins": plugins, **more})

    def ipam(self, subnet: str = "10.77.0.0/24", **more: Any) -> dict[str, Any]:
        """Addresses by host-local, with the default route."""
        return {
            "type": "host-local",
            "dataDir": str(self.host.state / "addresses"),
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            **more,
        }

    def leases(self) -> list[str]:
        """The addresses that host-local has given out."""
        folder = self.host.state / "addresses" / "apps"
        return sorted(path.name for path in folder.glob("10.*"))

    def close(self) -> None:
        for path in self._netns:
            namespaces.remove(path)


def config(conflist: str, id: str = "n1") -> NetworkConfig:
    """A network of a chain."""
    return NetworkConfig(id, "apps", 0, "", "", 0, "", driver="cni", conflist=conflist)


def shell(netns: str, *argv: str) -> str:
    """Run a command in a container's network namespace."""
    return NsHost(Path(netns), "", Path(), Path()).shell(*argv)


def shown(netns: str, *argv: str) -> list[dict[str, Any]]:
    """What `ip` shows there."""
    found: list[dict[str, Any]] = json.loads(shell(netns, "ip", "-json", *argv) or "[]")
    return found


def eth(name: str = "eth0", **more: Any) -> Interface:
    """What a container asks for."""
    return Interface(name, **more)


async def until(true: Callable[[], object]) -> None:
    """Until something that other processes bring about is so."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - they tell nobody
            await asyncio.sleep(0.02)
