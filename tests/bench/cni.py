"""Connecting and disconnecting a container: the plugin as a command, the agent's warm helper, and
Debian's Go plugins (`bridge` with `host-local`), in a network namespace that stands for a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.agent.network import NetworkConfig, NodeNetwork
from tests.bench.cluster import BenchError
from tests.bench.tables import Table, median, seconds

ROUNDS = 21
GO_PLUGINS = Path("/usr/lib/cni")
PLUGIN = str(Path(sys.executable).with_name("orc-cni"))
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
    """All three ways; `go` is empty where those plugins are not installed."""

    helper: Times = field(default_factory=Times)
    command: Times = field(default_factory=Times)
    go: Times = field(default_factory=Times)


async def measure(folder: Path) -> Cni:
    """Measure by turns. Raises BenchError with a plugin's words."""
    result = Cni()
    name = f"orc-bench-{os.getpid()}"
    with _namespace(name), _namespace(f"{name}-c") as container:
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "add", "uplink", "type", "bridge")
        _ip("-n", name, "address", "add", f"{ADDRESS}/24", "dev", "uplink")
        _ip("-n", name, "link", "set", "uplink", "up")
        host = ("ip", "netns", "exec", name)
        ours = _document(folder)
        theirs = _go_document(folder) if (GO_PLUGINS / "bridge").exists() else None
        await _in_helper(folder, (*host, sys.executable, "-m", "orchestrator.cni.helper"), result)
        for number in range(ROUNDS):
            way = Plugin((*host, PLUGIN), ours, f"c{number}", container)
            way.round(result.command)
            if theirs is not None:
                Plugin((*host, str(GO_PLUGINS / "bridge")), theirs, f"c{number}", container).round(
                    result.go
                )
    return result


@dataclass(frozen=True, slots=True)
class Plugin:
    """A CNI plugin as a command, about to connect one container."""

    command: Sequence[str]
    document: Mapping[str, Any]
    container: str
    netns: str

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
        peers=(),
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
        await network.remove(config.id)


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


def remove_leftovers(pid: int) -> None:
    """Remove the namespaces of a run that was killed."""
    for name in (f"orc-bench-{pid}", f"orc-bench-{pid}-c"):
        if Path("/run/netns", name).exists():
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
    ]
    notes = ["All commands with the same `ip netns exec` before them, some 3 ms."]
    if result.go.add:
        rows.append(("Debian's `bridge` and `host-local`, commands", *_figures(result.go)))
        notes.append("The Go plugins make no VXLAN device and no rules here; `orc-cni` does.")
    else:
        notes.append("Debian's plugins are not installed (containernetworking-plugins).")
    return Table(
        "Connecting a container", ("what", "rounds", "ADD", "DEL"), tuple(rows), tuple(notes)
    )


def _figures(times: Times) -> tuple[str, str, str]:
    return str(len(times.add)), seconds(median(times.add)), seconds(median(times.delete))
