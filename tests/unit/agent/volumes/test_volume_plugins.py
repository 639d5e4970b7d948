# SPDX-License-Identifier: Apache-2.0
"""Volume plugins: found, used, and not trusted to behave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from scriptedplugin import ScriptedPlugin
from volumekit import holder, volume_store

from orchestrator.agent.plugins import plugin_client
from orchestrator.agent.plugins.plugin_client import PluginError, parse_address
from orchestrator.agent.plugins.plugin_discovery import find
from orchestrator.agent.volumes import volume_store as store_module
from orchestrator.agent.volumes.volume_errors import VolumeError, VolumePluginUnavailable
from orchestrator.agent.volumes.volume_requests import VolumeListing
from orchestrator.agent.volumes.volume_store import VolumeStore
from orchestrator.model.mounts import MountSpec
from orchestrator.model.objects import Volume

DATA = MountSpec(source="data", target="/data", driver="toy", options={"colour": "red"})
USER = holder("t1", DATA)


@pytest.fixture
def plugin(tmp_path: Path) -> ScriptedPlugin:
    return ScriptedPlugin(tmp_path / "toys")


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeStore:
    return volume_store(tmp_path / "volumes", [tmp_path / "run"], [tmp_path / "etc"])


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_UNMOUNT_TIMEOUT", 0.2)


@pytest.fixture(params=["socket", "tcp spec", "tcp json"])
async def served(
    request: pytest.FixtureRequest, plugin: ScriptedPlugin, tmp_path: Path
) -> AsyncIterator[ScriptedPlugin]:
    """The plugin, to be found in each of the ways that there are."""
    etc = tmp_path / "etc"
    etc.mkdir()
    async with _listening(plugin, request.param, tmp_path / "run" / "toy.sock"):
        address = f"tcp://127.0.0.1:{plugin.port}"
        if request.param == "tcp spec":
            (etc / "toy.spec").write_text(f"{address}\n")
        elif request.param == "tcp json":
            (etc / "toy.json").write_text(json.dumps({"Name": "toy", "Addr": address}))
        yield plugin


@asynccontextmanager
async def _listening(plugin: ScriptedPlugin, way: str, socket: Path) -> AsyncIterator[None]:
    async with plugin.on_socket(socket) if way == "socket" else plugin.on_tcp():
        yield


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_lifecycle_of_a_plugin_volume(
    served: ScriptedPlugin, volumes: VolumeStore, chunked: bool
) -> None:
    served.chunked = chunked
    (mount,) = await volumes.attach(USER, {})
    assert mount.source == str(served.folder / "data")
    assert mount.owned
    assert served.volumes == {"data": {"colour": "red"}}
    await volumes.attach(holder("t2", DATA), {})
    assert served.mounts == {"data": {"t1", "t2"}}
    with pytest.raises(VolumeError, match="in use"):
        await volumes.remove(Volume(id="data", driver="toy"), force=False)
    await volumes.detach("t1", drop=True)
    assert served.mounts == {"data": {"t2"}}
    await volumes.detach("t2", drop=True)
    await volumes.remove(Volume(id="data", driver="toy"), force=False)
    assert served.volumes == {}
    assert volumes.known() == []


async def test_sockets_come_before_files(tmp_path: Path) -> None:
    run, etc, lib = tmp_path / "run", tmp_path / "etc", tmp_path / "lib"
    for path in (run / "a.sock", etc / "a.spec", etc / "b.json", lib / "b.spec", lib / "c/c.spec"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = {name: file.path for name, file in find([run], [etc, lib]).items()}
    assert found == {"a": run / "a.sock", "b": etc / "b.json", "c": lib / "c" / "c.spec"}


@pytest.mark.parametrize("url", ["ftp://x:1", "tcp://x", "nothing", "tcp://x:port"])
def test_invalid_addresses_are_refused(url: str) -> None:
    with pytest.raises(PluginError, match="not a plugin's address"):
        parse_address(url)


@pytest.mark.parametrize("scope", ["local", "global"])
async def test_scopes_are_reported(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path, scope: str
) -> None:
    plugin.scope = scope
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        await volumes.plugins.discover()
        assert volumes.plugins.scopes == {"toy": scope}
    await volumes.plugins.discover()
    assert volumes.plugins.scopes == {}


async def test_global_volume_is_recorded_while_it_is_used(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path
) -> None:
    plugin.scope = "global"
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        await volumes.create(Volume(id="data", driver="toy"))
        assert volumes.known() == []
        await volumes.attach(USER, {})
        assert [known.users for known in volumes.known()] == [("t1",)]
        await volumes.detach("t1", drop=False)
    assert volumes.known() == []
    assert plugin.volumes == {"data": {}}


async def test_an_old_plugin_without_capabilities_is_local(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path
) -> None:
    plugin.answers["Capabilities"] = b"HTTP/1.1 404 Not Found\r\n\r\nnot found\n"
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        await volumes.plugins.discover()
    assert volumes.plugins.scopes == {"toy": "local"}


async def test_a_plugins_refusal_is_reported_in_its_words(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path
) -> None:
    bad = holder("t1", replace(DATA, options={"colour": "none"}))
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        with pytest.raises(VolumeError, match="volume driver toy: there is no such colour"):
            await volumes.attach(bad, {})
    assert volumes.known() == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"Mountpoint": "", "Err": ""}', "not an absolute path"),
        (b'{"Mountpoint": "relative/path"}', "not an absolute path"),
        (b'{"Mountpoint": 7}', "not an absolute path"),
        (b'{"Mountpoint": "/nowhere/at/all"}', "which is not a folder"),
    ],
)
async def test_an_invalid_mountpoint_is_refused(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path, answer: bytes, words: str
) -> None:
    plugin.answers["Mount"] = b"HTTP/1.1 200 OK\r\n\r\n" + answer
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        with pytest.raises(VolumeError, match=words):
            await volumes.attach(USER, {})
        await volumes.detach("t1", drop=False)
        assert plugin.calls[-1] == "Unmount"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[1, 2]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200,
    ],
)
async def test_invalid_answer_is_an_error(
    plugin: ScriptedPlugin,
    volumes: VolumeStore,
    tmp_path: Path,
    answer: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin_client, "PATIENCE", 0.2)
    plugin.answers["Mount"] = answer
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        with pytest.raises(VolumePluginUnavailable, match="volume driver toy does not answer"):
            await volumes.attach(USER, {})


async def test_a_plugin_that_closes_the_connection_is_called_again(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path
) -> None:
    plugin.hang_up = {"Create": 1, "Mount": 2}
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        await volumes.attach(USER, {})
    assert plugin.calls.count("Mount") == 3


@contextmanager
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A plugin that hangs is given up without much delay in the block."""
    with monkeypatch.context() as patched:
        patched.setattr(plugin_client, "NOTICE", 0.1)
        patched.setattr(plugin_client, "SILENCE", 0.4)
        patched.setattr(plugin_client, "PATIENCE", 0.4)
        yield


async def test_a_hung_plugin_times_out_with_its_name(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        await volumes.create(Volume(id="data", driver="toy"))
        for hung in ({"*"}, {"Mount", "Activate"}):
            told.clear()
            plugin.hang = hung
            with (
                soon_given_up(monkeypatch),
                pytest.raises(
                    VolumePluginUnavailable, match="volume driver toy does not answer: no answer"
                ),
            ):
                await volumes.attach(USER, {}, told.append)
            assert told == ["volume driver toy has not answered yet (volume data)", ""]
            assert volumes.plugins.scopes == {}
            assert "no answer within" in volumes.plugins.silent["toy"]
            await volumes.detach("t1", drop=False)
            # Meanwhile others go on.
            await volumes.attach(holder("t2", MountSpec(source="own", target="/own")), {})
            # It comes back, and is used again.
            plugin.hang = set()
            (mount,) = await volumes.attach(USER, {})
            assert mount.source == str(plugin.folder / "data")
            assert volumes.plugins.scopes == {"toy": "local"}


async def test_a_removal_by_a_hung_plugin_is_given_up(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(id="data", driver="toy")
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        await volumes.create(volume)
        plugin.hang = {"*"}
        with (
            soon_given_up(monkeypatch),
            pytest.raises(VolumePluginUnavailable, match="volume driver toy does not answer"),
        ):
            await volumes.remove(volume, force=False)
        plugin.hang = set()
        await volumes.remove(volume, force=False)
    assert plugin.volumes == {}


async def test_mounts_are_released_before_removal(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path
) -> None:
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        await volumes.attach(USER, {})
        plugin.hang = {"Unmount"}
        await volumes.detach("t1", drop=False)
        assert plugin.mounts == {"data": {"t1"}}
        plugin.hang = set()
        await volumes.remove(Volume(id="data", driver="toy"), force=False)
    assert plugin.mounts == {"data": set()}
    assert plugin.volumes == {}


async def test_a_busy_plugin_is_awaited(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long to mount, and responds to other calls meanwhile."""
    monkeypatch.setattr(plugin_client, "NOTICE", 0.05)
    monkeypatch.setattr(plugin_client, "SILENCE", 60.0)
    plugin.busy["Mount"] = asyncio.Event()
    waits: list[str] = []
    socket = tmp_path / "run" / "toy.sock"
    async with plugin.on_socket(socket), asyncio.timeout(60), asyncio.TaskGroup() as group:
        attaching = group.create_task(volumes.attach(USER, {}, waits.append))
        while plugin.calls.count("Activate") < 4:  # noqa: ASYNC110 - the plugin is waited for
            await asyncio.sleep(0.01)
        plugin.busy["Mount"].set()
        (mount,) = await attaching
    assert mount.source == str(plugin.folder / "data")
    # On a busy host, the calls before the mount may be slow as well.
    assert waits[-2:] == ["volume driver toy has not answered yet (volume data)", ""]


async def test_an_interrupted_mount_is_released(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path
) -> None:
    plugin.hang = {"Mount"}
    async with plugin.on_socket(tmp_path / "run" / "toy.sock"):
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            attaching = group.create_task(volumes.attach(USER, {}))
            await plugin.asked.wait()
            attaching.cancel()
        await volumes.detach("t1", drop=False)
        assert "Unmount" in plugin.calls


async def test_a_plugin_that_dies_blocks_no_others_and_is_called_later(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path
) -> None:
    socket = tmp_path / "run" / "toy.sock"
    local = MountSpec(source="own", target="/own")
    async with plugin.on_socket(socket):
        await volumes.attach(holder("t1", DATA, local), {})
    await volumes.detach("t1", drop=True)
    assert plugin.mounts == {"data": {"t1"}}
    # Another agent knows it too, and gives it back when the plugin is there again.
    again = volume_store(tmp_path / "volumes", [tmp_path / "run"])
    async with plugin.on_socket(socket), asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(again.run())
        while plugin.mounts["data"]:  # noqa: ASYNC110 - the plugin is what is waited for
            await asyncio.sleep(0.01)
        running.cancel()


@pytest.mark.parametrize("dead", ["hangs", "refuses"])
async def test_a_listing_names_the_dead_and_lists_the_rest(
    plugin: ScriptedPlugin, volumes: VolumeStore, tmp_path: Path, dead: str
) -> None:
    await volumes.create(Volume(id="own", labels={"a": "b"}))
    other = ScriptedPlugin(tmp_path / "others")
    other.volumes = {"elsewhere": {}}
    run = tmp_path / "run"
    with VolumeListing(volumes) as listing:
        async with plugin.on_socket(run / "toy.sock"), other.on_socket(run / "other.sock"):
            await volumes.plugins.discover()
            if dead == "hangs":
                plugin.hang = {"List"}
            else:
                plugin.answers["List"] = b"HTTP/1.1 500 Oops\r\n\r\nit is broken"
            found = await listing.collect()
    assert [(each.name, each.driver, each.managed) for each in found.volumes] == [
        ("own", "local", True),
        ("elsewhere", "other", False),
    ]
    (notice,) = found.notices
    assert notice.startswith("volume driver toy does not answer (")


async def test_a_socket_without_a_listener_is_named(volumes: VolumeStore, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "toy.sock").touch()
    with VolumeListing(volumes) as listing:
        found = await listing.collect()
    assert found.notices == ["volume driver toy does not answer (connection refused)"]
