# SPDX-License-Identifier: Apache-2.0
"""The command `orc-cni`, executed by a container runtime: a thin client of a warm server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nshosts import NsHost, reach, wait_for

from orchestrator.agent.network.network_types import NetworkConfig
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.cni.netlink import namespaces
from orchestrator.cni.plugin.installer import install

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Runtime:
    """Executes the installed plugin on a host, with a configuration from its own folder."""

    host: NsHost
    command: Path
    run: Path

    def conf(self, **more: Any) -> dict[str, Any]:
        return {
            "cniVersion": "1.1.0",
            "name": "testnet",
            "type": "orc-cni",
            "bridge": "orc0",
            "subnet": "10.128.0.0/24",
            "dataDir": str(self.host.state),
            **more,
        }

    def start(
        self, operation: str, container: str = "c1", conf: dict[str, Any] | None = None
    ) -> subprocess.Popen[str]:
        box = self.host.run / container
        environment = {
            **os.environ,
            "ORC_CNI_RUN": str(self.run),
            "CNI_COMMAND": operation,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(box),
            "CNI_IFNAME": "eth0",
        }
        process = subprocess.Popen(
            self.host.command(str(self.command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(conf or self.conf()))
        process.stdin.close()
        process.stdin = None
        return process

    def __call__(
        self, operation: str, container: str = "c1", conf: dict[str, Any] | None = None
    ) -> tuple[int, Any]:
        process = self.start(operation, container, conf)
        printed, complaint = process.communicate(timeout=30)
        assert complaint == ""
        return process.returncode, json.loads(printed) if printed else None

    def box(self, container: str) -> Path:
        path = self.host.run / container
        namespaces.ensure(path)
        return path

    def servers(self) -> list[int]:
        """The processes that serve."""
        found = []
        for path in self.run.glob("*.lock"):
            pid = int(path.read_text() or 0)
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"orc-cni" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


@pytest.fixture
def runtime(host: NsHost) -> Iterator[Runtime]:
    made = Runtime(host, install(host.run / "bin"), host.run / "sockets")
    try:
        yield made
    finally:
        for pid in made.servers():
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: pid not in made.servers())  # type: ignore[misc]


def test_a_runtime_needs_no_agent(runtime: Runtime) -> None:
    box = runtime.box("c1")
    status, result = runtime("ADD")
    assert status == 0, result
    assert result["ips"][0]["address"] == "10.128.0.2/24"
    assert reach(box, runtime.host.netns, "10.128.0.2", 80) == "10.128.0.1"
    (server,) = runtime.servers()
    assert runtime("CHECK", conf=runtime.conf(prevResult=result)) == (0, None)
    assert runtime("STATUS") == (0, None)
    assert runtime("VERSION")[1]["supportedVersions"] == ["0.4.0", "1.0.0", "1.1.0"]
    assert runtime("DEL", conf=runtime.conf(prevResult=result)) == (0, None)
    status, error = runtime("ADD", "absent")
    assert (status, error["code"]) == (1, 8)
    assert "absent cannot be opened: No such file" in error["msg"]
    assert runtime.servers() == [server], "one serves them all"


def test_without_a_server_it_runs_the_plugin_itself(runtime: Runtime) -> None:
    runtime.box("c1")
    runtime.run.write_text("not a folder")
    status, result = runtime("ADD")
    assert (status, result["ips"][0]["address"]) == (0, "10.128.0.2/24")
    assert runtime("DEL") == (0, None)
    runtime.run.unlink()


def test_fifty_at_once_start_one_server_and_get_fifty_addresses(runtime: Runtime) -> None:
    names = [f"c{number}" for number in range(50)]
    for name in names:
        runtime.box(name)
    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(lambda name: runtime("ADD", name), names))
    assert [status for status, _ in results] == [0] * 50
    assert len({result["ips"][0]["address"] for _, result in results}) == 50
    assert len(runtime.servers()) == 1


def test_kill_9_of_the_server_in_the_middle_is_not_noticed(runtime: Runtime) -> None:
    chance = random.Random(7)
    done = threading.Event()

    def killing() -> None:
        while not done.wait(chance.uniform(0.05, 0.4)):
            for pid in runtime.servers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=killing)
    killer.start()
    try:
        given = {}
        for number in range(25):
            name = f"c{number}"
            runtime.box(name)
            status, result = runtime("ADD", name)
            assert status == 0, result
            given[name] = result
    finally:
        done.set()
        killer.join()
    assert len({result["ips"][0]["address"] for result in given.values()}) == 25
    for name, result in given.items():
        assert runtime("CHECK", name, runtime.conf(prevResult=result)) == (0, None)
        assert runtime("DEL", name) == (0, None)
    assert not [link for link in runtime.host.ip("link") if link["ifname"].startswith("orcv")]


def test_kill_9_of_the_command_in_the_middle_leaves_nothing_that_del_does_not_find(
    runtime: Runtime,
) -> None:
    runtime.box("warm")
    runtime("ADD", "warm")
    for number in range(20):
        name = f"c{number}"
        runtime.box(name)
        process = runtime.start("ADD", name)
        time.sleep(number * 0.001)  # at a different point of each
        process.kill()
        process.communicate()
        assert runtime("DEL", name) == (0, None)
    ends = [link for link in runtime.host.ip("link") if link["ifname"].startswith("orcv")]
    assert len(ends) == 1
    valid = [{"containerID": "warm", "ifname": "eth0"}]
    assert runtime("GC", conf=runtime.conf(**{"cni.dev/valid-attachments": valid})) == (0, None)


def test_an_idle_server_ends(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORC_CNI_IDLE", "0.2")
    assert runtime("STATUS") == (0, None)
    wait_for(lambda: runtime.servers() == [])
    assert [path.suffix for path in runtime.run.iterdir()].count("") == 0, "its socket is gone"
    assert runtime("STATUS") == (0, None), "the next one starts another"


def test_a_removed_data_folder_is_a_new_beginning(runtime: Runtime) -> None:
    runtime.box("c1")
    runtime("ADD")
    for path in runtime.host.state.iterdir():
        path.unlink()
    runtime.box("c2")
    status, result = runtime("ADD", "c2")
    assert (status, result["ips"][0]["address"]) == (0, "10.128.0.2/24")


def test_the_client_loads_nothing_that_is_not_in_the_interpreter(runtime: Runtime) -> None:
    code = f"""
import sys
sys.argv = ["orc-cni"]
before = set(sys.modules)
exec(compile(open({str(runtime.command)!r}).read(), "orc-cni", "exec"), {{"__name__": "x"}})
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-ISE", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["_socket"]


async def test_an_agent_on_the_same_host_neither_knows_nor_touches_its_networks(
    runtime: Runtime,
) -> None:
    host, box = runtime.host, runtime.box("c1")
    conf = runtime.conf(
        runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    )
    status, result = runtime("ADD", conf=conf)
    assert status == 0, result
    config = NetworkConfig(
        id="a",
        name="a",
        vni=1,
        cluster_cidr="10.1.0.0/16",
        subnet="10.1.1.0/24",
        mtu=0,
        node_address=host.address,
        peers=(),
    )
    async with NodeNetwork(host.state / "agent", host.run / "agent", command=host.helper) as agent:
        await agent.apply(config)
        theirs = await agent.attach("a", "c2")
        assert reach(box, host.netns, host.address, 8080, 80)
        with pytest.raises(TimeoutError):
            reach(box, theirs.netns, "10.128.0.2", 80)
        # The other way about: what the command takes back is its own.
        assert runtime("DEL", conf=conf) == (0, None)
        assert reach(theirs.netns, host.netns, theirs.address, 80)
        status, result = runtime("ADD", conf=conf)
        assert status == 0, result
        await agent.collect([])
        await agent.remove("a")
    assert reach(box, host.netns, host.address, 8080, 80)
    again = {**conf, "prevResult": result}
    assert runtime("CHECK", conf=again) == (0, None)
