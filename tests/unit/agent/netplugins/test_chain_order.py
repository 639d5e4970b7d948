# SPDX-License-Identifier: Apache-2.0
"""What plugins are told and in which order, over errors, kills and time: with plugins that write
down what they hear."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from chainkit import Bench, config, eth, until

from orchestrator.agent.netplugins import cni_chains as chains_module
from orchestrator.agent.network.helper_process import NetworkError

pytestmark = pytest.mark.root

VERSION = (
    '[ "$CNI_COMMAND" = VERSION ] && '
    'echo \'{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}\' && exit 0'
)
"""The beginning of a plugin that speaks three versions."""


def answer(address: str) -> str:
    """The end of a plugin that gives an address."""
    result = {"cniVersion": "1.1.0", "ips": [{"address": f"{address}/24"}]}
    return f"[ \"$CNI_COMMAND\" != ADD ] || echo '{json.dumps(result)}'"


def listening(bench: Bench, name: str, address: str = "10.9.0.2", more: str = "") -> None:
    """A plugin that writes its input to the file NAME.VERB, and then runs `more`."""
    bench.script(
        name,
        f"{VERSION}\ncat > {bench.calls.parent}/{name}.$CNI_COMMAND\n"
        f"env | sort > {bench.calls.parent}/{name}.env\n{more}\n{answer(address)}",
    )


def told(bench: Bench, name: str, verb: str) -> dict[str, Any]:
    """What it was told last."""
    found: dict[str, Any] = json.loads((bench.calls.parent / f"{name}.{verb}").read_text())
    return found


def order(bench: Bench) -> list[str]:
    """All calls, as `one ADD`."""
    return bench.calls.read_text().splitlines() if bench.calls.exists() else []


def chain(bench: Bench, *more: dict[str, Any], version: str = "1.1.0") -> str:
    return bench.conflist(
        {"type": "one", "key": "value", "capabilities": {"mac": True, "aliases": True}},
        {"type": "two"},
        *more,
        version=version,
    )


async def test_each_plugin_gets_the_previous_result(bench: Bench) -> None:
    listening(bench, "one", "10.9.0.2")
    listening(bench, "two", "10.9.0.3")
    chains, network = bench.chains(), config(chain(bench))
    netns = bench.container("c1")
    made = await chains.attach(network, "c1", eth(mac="02:00:00:00:00:01", aliases=("db",)), netns)
    assert made.address == "10.9.0.3"
    heard = told(bench, "one", "ADD")
    assert "prevResult" not in heard
    assert (heard["name"], heard["cniVersion"], heard["key"]) == ("apps", "1.1.0", "value")
    # Only what it has the capability for.
    assert heard["runtimeConfig"] == {"mac": "02:00:00:00:00:01", "aliases": ["db"]}
    assert "runtimeConfig" not in told(bench, "two", "ADD")
    assert told(bench, "two", "ADD")["prevResult"]["ips"] == [{"address": "10.9.0.2/24"}]
    environment = (bench.calls.parent / "one.env").read_text().splitlines()
    assert f"CNI_NETNS={netns}" in environment
    assert "CNI_CONTAINERID=c1" in environment
    assert "CNI_IFNAME=eth0" in environment
    assert f"CNI_PATH={bench.plugins}" in environment

    # Another agent, to which the network is not known any more.
    await bench.chains().detach("c1")
    assert order(bench) == [
        "one STATUS",
        "two STATUS",
        "one ADD",
        "two ADD",
        "two DEL",
        "one DEL",
    ]
    for name in ("one", "two"):
        assert told(bench, name, "DEL")["prevResult"]["ips"] == [{"address": "10.9.0.3/24"}]


async def test_a_plugin_that_is_not_ready_refuses_before_any_change(bench: Bench) -> None:
    error = '{"cniVersion":"1.1.0","code":50,"msg":"no daemon","details":"start it"}'
    listening(bench, "one", more=f"[ $CNI_COMMAND != STATUS ] || {{ echo '{error}'; exit 1; }}")
    listening(bench, "two")
    with pytest.raises(NetworkError) as caught:
        await bench.chains().attach(config(chain(bench)), "c1", eth(), bench.container("c1"))
    assert str(caught.value) == "CNI plugin one (STATUS): no daemon: start it"
    assert caught.value.code == 50
    assert "one ADD" not in order(bench)


async def test_a_call_that_may_work_later_is_retried(bench: Bench) -> None:
    tries = bench.calls.parent / "tries"
    error = '{"cniVersion":"1.1.0","code":11,"msg":"try again later"}'
    listening(
        bench,
        "one",
        more=f"[ $CNI_COMMAND != ADD ] || [ -e {tries} ] || "
        f"{{ touch {tries}; echo '{error}'; exit 1; }}",
    )
    listening(bench, "two")
    made = await bench.chains().attach(config(chain(bench)), "c1", eth(), bench.container("c1"))
    assert made.address == "10.9.0.2"
    assert order(bench).count("one ADD") == 2


async def test_failing_plugin_rolls_back_earlier_plugins(bench: Bench) -> None:
    listening(bench, "one")
    listening(
        bench, "two", more='[ "$CNI_COMMAND" != ADD ] || { echo "no  such\nthing" >&2; exit 3; }'
    )
    chains = bench.chains()
    with pytest.raises(NetworkError) as caught:
        await chains.attach(config(chain(bench)), "c1", eth(), bench.container("c1"))
    assert str(caught.value) == "CNI plugin two (ADD): no such thing"
    assert order(bench)[-2:] == ["two DEL", "one DEL"]
    assert "prevResult" not in told(bench, "one", "DEL")
    assert chains.interfaces("c1") == {}
    assert not [path for path in bench.state.rglob("*") if path.is_file()]


async def test_plugin_that_exceeds_its_time_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains_module, "ADD_SECONDS", 0.3)
    listening(bench, "one", more='[ "$CNI_COMMAND" != ADD ] || sleep 98765')
    listening(bench, "two")
    with pytest.raises(NetworkError, match=r"one \(ADD\) did not finish within 0 s and was killed"):
        await bench.chains().attach(config(chain(bench)), "c1", eth(), bench.container("c1"))
    # With all that it had started, though the kernel ends those in its own time.
    async with asyncio.timeout(60):
        while any(b"sleep\00098765" in each for each in _commands()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_plugin_that_releases_nothing_delays_no_others(bench: Bench) -> None:
    broken = bench.calls.parent / "broken"
    listening(bench, "one")
    listening(bench, "two", more=f"[ $CNI_COMMAND != DEL ] || [ ! -e {broken} ] || exit 1")
    chains, network = bench.chains(), config(chain(bench))
    await chains.apply(network)
    await chains.attach(network, "c1", eth(), bench.container("c1"))
    broken.touch()
    await chains.detach("c1")
    # The others were called nevertheless.
    assert order(bench)[-2:] == ["two DEL", "one DEL"]
    assert chains.interfaces("c1") == {"n1": "eth0"}
    assert chains.unused() == []
    broken.unlink()
    async with _running(chains):
        await until(lambda: chains.unused() == ["n1"])
    assert told(bench, "two", "DEL")["prevResult"]["ips"]


async def test_leftovers_of_an_earlier_agent_are_removed_and_held_attachments_stay(
    bench: Bench,
) -> None:
    listening(bench, "one")
    listening(bench, "two")
    before, network = bench.chains(), config(chain(bench))
    await before.apply(network)
    for name in ("c1", "c2"):
        await before.attach(network, name, eth(), bench.container(name))
    bench.calls.unlink()

    chains = bench.chains()
    chains.collect(["c2"])
    async with _running(chains):
        await until(lambda: order(bench)[-2:] == ["one CHECK", "two CHECK"])
    assert order(bench) == [
        "two DEL",
        "one DEL",
        "one GC",
        "two GC",
        "one CHECK",
        "two CHECK",
    ]
    assert chains.interfaces("c1") == {}
    assert chains.interfaces("c2") == {"n1": "eth0"}
    valid = told(bench, "one", "GC")["cni.dev/valid-attachments"]
    assert valid == [{"containerID": "c2", "ifname": "eth0"}]
    # GC is also called for a removed network.
    await chains.detach("c2")
    await _forgotten(bench, chains)
    assert told(bench, "one", "GC")["cni.dev/valid-attachments"] == []


async def test_a_plugin_of_version_1_1(bench: Bench) -> None:
    """Our own plugin, as one of other people's: with STATUS and GC."""
    state = bench.host.state / "orc-cni"
    enter = f"nsenter --net={bench.host.netns} {sys.executable} -m orchestrator.cni.plugin.protocol"
    bench.script("orc-cni", f"PYTHONPATH={':'.join(filter(None, sys.path))} exec {enter}")
    text = bench.conflist(
        {
            "type": "orc-cni",
            "bridge": "apps0",
            "subnet": "10.50.0.0/24",
            "dataDir": str(state),
            "capabilities": {"ips": True},
        },
        version="1.1.0",
    )
    before, network = bench.chains(), config(text)
    await before.apply(network)
    first = await before.attach(network, "c1", eth(ip="10.50.0.9"), bench.container("c1"))
    assert (first.address, first.leads_out) == ("10.50.0.9", True)
    assert first.result["cniVersion"] == "1.1.0"
    await before.attach(network, "c2", eth(), bench.container("c2"))
    chains = bench.chains()
    # What an agent that lost its records had made, its plugin forgets by GC.
    (file,) = [path for path in (bench.state / "attachments").iterdir() if "c2" in path.name]
    file.unlink()
    chains = bench.chains()
    chains.collect(["c1"])
    async with _running(chains):
        await until(lambda: bench.called("orc-cni")[-1] == "CHECK")
    assert bench.called("orc-cni") == ["STATUS", "ADD", "STATUS", "ADD", "GC", "CHECK"]
    await chains.attach(network, "c3", eth(ip="10.50.0.2"), bench.container("c3"))
    await chains.detach("c1")
    await chains.detach("c3")


async def test_a_list_may_forbid_checks_and_collection(bench: Bench) -> None:
    listening(bench, "one")
    chains = bench.chains()
    text = bench.conflist({"type": "one"}, version="1.1.0", disableCheck=True, disableGC=True)
    network = config(text)
    await chains.apply(network)
    netns = bench.container("c1")
    await chains.attach(network, "c1", eth(), netns)
    await chains.attach(network, "c1", eth(), netns)
    await chains.detach("c1")
    await _forgotten(bench, chains)
    assert order(bench) == ["one STATUS", "one ADD", "one DEL"]


async def test_older_versions_have_fewer_verbs(bench: Bench) -> None:
    listening(bench, "one")
    chains = bench.chains()
    network = config(bench.conflist({"type": "one"}, version="1.0.0"))
    await chains.apply(network)
    await chains.attach(network, "c1", eth(), bench.container("c1"))
    await chains.detach("c1")
    await _forgotten(bench, chains)
    assert order(bench) == ["one ADD", "one DEL"]


async def test_a_kill_in_the_middle_of_add(bench: Bench) -> None:
    """The plugin continues without its agent; the next agent waits for it, and calls DEL."""
    gate = bench.calls.parent / "gate"
    os.mkfifo(gate)
    waits = f"{{ touch {gate}.reached; cat {gate}; }}"
    listening(bench, "one", more=f'[ "$CNI_COMMAND" != ADD ] || [ -e {gate}.open ] || {waits}')
    listening(bench, "two")
    netns, text = bench.container("c1"), chain(bench)
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        str(bench.state),
        str(bench.plugins),
        text,
        netns,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    await until(lambda: (bench.calls.parent / "gate.reached").exists())
    agent.send_signal(signal.SIGKILL)
    await agent.wait()

    chains = bench.chains()
    assert chains.interfaces("c1") == {"n1": "eth0"}
    (bench.calls.parent / "gate.open").touch()
    anew = asyncio.create_task(chains.attach(config(text), "c1", eth(), netns))
    done, _ = await asyncio.wait([anew], timeout=0.3)
    assert not done, "it went on while the plugin was still at work"
    with gate.open("w"):
        pass  # lets it end
    made = await anew
    assert made.address == "10.9.0.2"
    assert order(bench) == [
        "one STATUS",
        "two STATUS",
        "one ADD",
        "two DEL",
        "one DEL",
        "one STATUS",
        "two STATUS",
        "one ADD",
        "two ADD",
    ]
    assert "prevResult" not in told(bench, "one", "DEL")


async def test_a_missing_plugin_is_refused(bench: Bench) -> None:
    listening(bench, "one")
    chains = bench.chains()
    network = config(chain(bench, {"type": "three", "ipam": {"type": "four"}}))
    with pytest.raises(NetworkError) as caught:
        await chains.apply(network)
    assert str(caught.value) == f"node node1 has no CNI plugin two in {bench.plugins}"
    # A change is reported.
    listening(bench, "two")
    async with _running(chains):
        await chains.changed.wait()
    assert chains.names == ("one", "two")


async def test_invalid_answer_is_an_error(bench: Bench) -> None:
    bench.script("one", f"{VERSION}\n[ $CNI_COMMAND != ADD ] || echo hello")
    network = config(bench.conflist({"type": "one"}))
    with pytest.raises(NetworkError, match=r"one \(ADD\): its output is not a JSON object"):
        await bench.chains().attach(network, "c1", eth(), bench.container("c1"))


async def _forgotten(bench: Bench, chains: chains_module.Chains) -> None:
    """Remove the network, and wait until its record is deleted."""
    assert chains.unused() == ["n1"]
    await chains.remove("n1")
    async with _running(chains):
        await until(lambda: not (bench.state / "networks" / "n1.json").exists())


def _commands() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes())
    return found


class _running:
    """The chains' background work runs meanwhile."""

    def __init__(self, chains: chains_module.Chains) -> None:
        self._chains = chains

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._chains.run())

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


if __name__ == "__main__":
    from orchestrator.agent.netplugins.attachment_records import AttachmentRecords
    from orchestrator.agent.netplugins.cni_program import Programs

    state, plugins, conflist, place = sys.argv[1:]
    agent_chains = chains_module.Chains(
        AttachmentRecords(Path(state)), Programs("node1", [Path(plugins)])
    )
    asyncio.run(agent_chains.attach(config(conflist), "c1", eth(), place))
