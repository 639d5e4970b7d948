# SPDX-License-Identifier: Apache-2.0
"""Connecting and disconnecting a container: the plugin as a command, the agent's warm helper, and
Debian's Go plugins (`bridge` with `host-local`), in a network namespace that stands for a host; and
the entries of a thousand peers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.agent.network.network_types import NetworkConfig, Peer
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.cni.plugin.installer import install
from tests.bench.cluster import BenchError
from tests.bench.processes import Process, memory, run_number
from tests.bench.tables import Table, median, seconds

ROUNDS = 30
PEERS = 1000
GO_PLUGINS = Path("/usr/lib/cni")
ADDRESS = "192.0.2.11"
SUBNET = "10.128.7.0/24"
_GO_SUBNET = "10.99.7.0/24"


@dataclass(slots=True)
class Times:
    """Seconds of each round."""

    add: list[float] = field(default_factory=list)
    delete: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Cni:
    """All ways; `go` is empty where those plugins are not installed."""

    helper: Times = field(default_factory=Times)
    command: Times = field(default_factory=Times)
    cold: Times = field(default_factory=Times)
    """The command must start its server first, for ADD."""
    go: Times = field(default_factory=Times)
    peers: float = 0.0
    """Seconds until a thousand peers of a dual-stack network are in the kernel."""
    again: float = 0.0
    """Seconds of the next pass over them, which changes nothing."""
    memory: int = 0
    """Bytes that the helper then has resident."""


async def measure(folder: Path) -> Cni:
    """Measure by turns. Raises BenchError with a plugin's words."""
    result = Cni()
    name = f"orc-bench-{run_number()}"
    with _namespace(name), _namespace(f"{name}-c") as container:
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "add", "uplink", "type", "bridge")
        _ip("-n", name, "address", "add", f"{ADDRESS}/24", "dev", "uplink")
        _ip("-n", name, "link", "set", "uplink", "up")
        # Unlike `ip netns exec`, this leaves a command in its view of the file system.
        host = ("nsenter", f"--net=/run/netns/{name}")
        ours = _document(folder)
        theirs = _go_document(folder) if (GO_PLUGINS / "bridge").exists() else None
        await _in_helper(folder, (*host, sys.executable, "-m", "orchestrator.cni.helper"), result)
        plugin = str(install(folder / "bin"))
        sockets = folder / "sockets"
        for number in range(ROUNDS):
            way = Plugin((*host, plugin), ours, f"c{number}", container, sockets)
            way.forget_server()
            way.round(result.cold)
            way.round(result.command)
            if theirs is not None:
                command = (*host, str(GO_PLUGINS / "bridge"))
                Plugin(command, theirs, f"c{number}", container, sockets).round(result.go)
        way.forget_server()
    return result


@dataclass(frozen=True, slots=True)
class Plugin:
    """A CNI plugin as a command, about to connect one container."""

    command: Sequence[str]
    document: Mapping[str, Any]
    container: str
    netns: str
    sockets: Path

    def forget_server(self) -> None:
        """End the server that serves the command, if one does."""
        for lock in self.sockets.glob("*.lock"):
            pid = int(lock.read_text())
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.001)

    def round(self, into: Times) -> None:
        """ADD, then DEL."""
        into.add.append(self._call("ADD"))
        into.delete.append(self._call("DEL"))

    def _call(self, operation: str) -> float:
        environment = {
            **os.environ,
            "CNI_COMMAND": operation,
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(GO_PLUGINS),
            "ORC_CNI_RUN": str(self.sockets),
        }
        began = time.perf_counter()
        done = subprocess.run(
            self.command,
            input=json.dumps(self.document),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - began
        if done.returncode != 0:
            raise BenchError(f"{self.command[-1]} {operation}: {done.stdout or done.stderr}")
        return took


async def _in_helper(folder: Path, command: Sequence[str], result: Cni) -> None:
    config = NetworkConfig(
        id="bench",
        name="bench",
        vni=7,
        cluster_cidr="10.128.0.0/14",
        subnet=SUBNET,
        mtu=0,
        node_address=ADDRESS,
        subnet6="fd00:0:0:7::/64",
        cluster_cidr6="fd00::/48",
    )
    async with NodeNetwork(folder / "cni-node", folder / "cni-run", command=command) as network:
        await network.apply(config)
        for number in range(ROUNDS):
            began = time.perf_counter()
            await network.attach(config.id, f"h{number}")
            attached = time.perf_counter()
            await network.detach(f"h{number}")
            result.helper.add.append(attached - began)
            result.helper.delete.append(time.perf_counter() - attached)
        await network.apply(_with_peers(config))  # the helper has grown
        await network.apply(config)
        began = time.perf_counter()
        await network.apply(_with_peers(config))
        result.peers = time.perf_counter() - began
        began = time.perf_counter()
        await network.apply(_with_peers(config))
        result.again = time.perf_counter() - began
        assert network.helper_pid is not None
        result.memory = memory([Process(network.helper_pid, 0, ())]).rss
        await network.remove(config.id)


def _with_peers(config: NetworkConfig) -> NetworkConfig:
    peers = tuple(
        Peer(
            f"10.{129 + n // 250}.{n % 250}.0/24",
            f"198.18.{n // 250}.{n % 250 + 1}",
            f"fd00:0:0:{n + 256:x}::/64",
        )
        for n in range(PEERS)
    )
    return replace(config, peers=peers)


def _document(folder: Path) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": "command",
        "type": "orc-cni",
        "bridge": "orcbench0",
        "subnet": "10.128.8.0/24",
        "clusterCIDR": "10.128.0.0/14",
        "vni": 8,
        "nodeAddress": ADDRESS,
        "dataDir": str(folder / "cni-command"),
    }


def _go_document(folder: Path) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "go",
        "type": "bridge",
        "bridge": "gobench0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "subnet": _GO_SUBNET,
            "dataDir": str(folder / "cni-go"),
        },
    }


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    """A network namespace; its path."""
    _ip("netns", "add", name)
    try:
        yield f"/run/netns/{name}"
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def report(result: Cni) -> Table:
    """Pure."""
    rows = [
        ("Orc's warm helper, with the namespace", *_figures(result.helper)),
        ("`orc-cni`, a command", *_figures(result.command)),
        ("`orc-cni`, when ADD must start its server", *_figures(result.cold)),
    ]
    notes = ["All commands with the same `nsenter` before them, about a millisecond."]
    if result.go.add:
        rows.append(("Debian's `bridge` and `host-local`, commands", *_figures(result.go)))
        notes.append("The Go plugins make no VXLAN device and no rules here; `orc-cni` does.")
        ratio = median(result.command.add) / median(result.go.add)
        removal = median(result.command.delete) / median(result.go.delete)
        notes.append(f"`orc-cni` takes {ratio:.2f} times as long for ADD, {removal:.2f} for DEL.")
    else:
        notes.append("Debian's plugins are not installed (containernetworking-plugins).")
    notes.append(
        f"{PEERS} peers of a dual-stack network: {seconds(result.peers)} until they are in the"
        f" kernel, {seconds(result.again)} for a pass that changes nothing; the helper then has"
        f" {result.memory / (1 << 20):.0f} MiB resident."
    )
    return Table(
        "Connecting a container", ("what", "rounds", "ADD", "DEL"), tuple(rows), tuple(notes)
    )


def _figures(times: Times) -> tuple[str, str, str]:
    return str(len(times.add)), seconds(median(times.add)), seconds(median(times.delete))
