# SPDX-License-Identifier: Apache-2.0
"""What a container's process is, sees and may do on this kernel."""

from __future__ import annotations

import os
import signal
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from crunkit import cmdline, limits, running
from runtimehost import CrunWorld, UnifiedWorld, private, remove_leftovers

from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import Container
from orchestrator.agent.runtime.io import logfiles
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, detect
from orchestrator.model.specs import Resources

pytestmark = pytest.mark.root


DEFAULT_CAPABILITIES = 0xA80425FB


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


async def output(runtime: CrunRuntime, container: Container) -> list[str]:
    """Run a container to its end: what it wrote."""
    await runtime.create(container)
    await runtime.start(container.id)
    await runtime.wait(container.id)
    path = runtime.log_path(container.id)
    return [record.line.decode() async for some in logfiles.read(path) for record in some]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def first_id(pid: int) -> int:
    """The host's id of a container's root."""
    inside, outside, _ = Path(f"/proc/{pid}/uid_map").read_text().split()
    assert inside == "0"
    return int(outside)


def first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@private
async def test_confinement_of_the_process(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        pid = await running(runtime, world, world.graceful("a"))
        found = status(pid)
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            assert int(found[kind], 16) == DEFAULT_CAPABILITIES
        assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"
        assert found["NSpid"].split()[-1] == "1"
        for kind in ("pid", "mnt", "uts", "ipc", "net", "cgroup"):
            own = os.readlink("/proc/thread-self/ns/" + kind)
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != own


@private
async def test_a_user_other_than_root_has_no_capability(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", "echo ready; while :; do sleep 1; done")
        spec = replace(container.spec.container, user="web")
        container = replace(container, spec=replace(container.spec, container=spec))
        pid = await running(runtime, world, container)
        found, first = status(pid), first_id(pid)
        assert found["Uid"].split() == [str(first + 1000)] * 4
        assert found["Gid"].split() == [str(first + 1001)] * 4
        assert found["Groups"].split() == [str(first + 44)]
        assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0


@private
async def test_limits_are_enforced_by_the_kernel(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.container(
            "a",
            "sh",
            "-c",
            "echo ready; sleep 100",
            limit=Resources(shares=512, memory=32 << 20),
            shares=2048,
            pids_limit=77,
        )
        await running(runtime, world, container)
        found = limits(world, "a")
        assert found["memory"] == str(32 << 20)
        assert found["pids"] == "77"
        if detect().mode is CgroupMode.V2:
            assert int(found["weight"]) > 1
            assert found["swap"] == "0"
            assert found["quota"] == "50000 100000"
        else:
            assert found["weight"] == "2048"
            assert found["swap"] == str(32 << 20)
            assert found["quota"] == "50000"


@private
async def test_default_limits(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        await running(runtime, world, world.graceful("a"))
        found = limits(world, "a")
        assert found["pids"] == "4096"
        if detect().mode is not CgroupMode.V2:
            assert found["weight"] == "128"
            assert found["quota"] == "-1"


@private
async def test_view_of_the_process(world: CrunWorld) -> None:
    script = (
        "hostname; cat /etc/hostname; pwd; echo $HOME; echo $PATH; echo $HOSTNAME; "
        "cat /etc/resolv.conf; tail -n1 /etc/hosts; echo $$; ls /dev/mqueue; ls -d /dev/shm"
    )
    async with world, world.runtime() as runtime:
        container = world.container("a", "busybox", "sh", "-c", script, workdir="srv/new")
        container = replace(
            container, hostname="web-3", address="10.1.2.3", nameservers=("10.1.0.1",)
        )
        assert await output(runtime, container) == [
            "web-3",
            "web-3",
            "/srv/new",
            "/root",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "web-3",
            "nameserver 10.1.0.1",
            "options ndots:0",
            "10.1.2.3\tweb-3",
            "1",
            "/dev/shm",
        ]


@pytest.mark.parametrize("kind", [CrunWorld, UnifiedWorld])
@private
async def test_forbidden_operations(tmp_path: Path, kind: type[CrunWorld]) -> None:
    script = (
        "mount -t tmpfs none /tmp 2>/dev/null || echo no mount; "
        "touch /sys/x 2>/dev/null || echo no sys; "
        "for f in /sys/fs/cgroup/ /sys/fs/cgroup/*/; do touch $f/x 2>/dev/null && echo $f; done; "
        "ls /sys/fs/cgroup/memory* >/dev/null || echo no cgroup; "
        "echo 1 2>/dev/null >/proc/sys/kernel/panic || echo no sysctl; "
        "mknod /tmp/disk b 254 0 2>/dev/null || echo no disk; "
        "ls /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | busybox grep -v : ; "
        "cat /proc/keys; echo end"
    )
    async with kind(tmp_path) as world, world.runtime() as runtime:
        lines = await output(runtime, world.container("a", "sh", "-c", script))
        assert [line for line in lines if line] == [
            "no mount",
            "no sys",
            "no sysctl",
            "no disk",
            "end",
        ]


@pytest.mark.parametrize("userns", ["private", "host"])
@private
async def test_a_device_node_in_the_image_cannot_be_opened(world: CrunWorld, userns: str) -> None:
    """Though its mode lets everybody."""
    device = world.path / "base/mem"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 1))
    device.chmod(0o666)
    script = "ls -l /mem; dd if=/mem of=/tmp/x bs=1 count=1 2>/dev/null || echo refused"
    async with world, world.runtime() as runtime:
        listed, *rest = await output(
            runtime, world.container("a", "sh", "-c", script, userns=userns)
        )
    assert listed.startswith("crw-rw-rw-")
    assert rest == ["refused"]


@private
async def test_a_read_only_root(world: CrunWorld) -> None:
    script = "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo written"
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", script, read_only=True)
        assert await output(runtime, container) == ["refused", "written"]


@private
async def test_layers_are_shared_and_writes_are_removed(world: CrunWorld) -> None:
    upper = world.path / "second"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/motd").write_text("from above\n")
    image = replace(world.image, layers=(*world.image.layers, upper))
    script = "cat /etc/motd; echo changed > /etc/motd; cat /etc/motd"
    async with world, world.runtime() as runtime:
        for name in ("a", "b"):
            container = replace(world.container(name, "sh", "-c", script), image=image)
            assert await output(runtime, container) == ["from above", "changed"]
        assert (upper / "etc/motd").read_text() == "from above\n"
        await runtime.remove("a")
        assert not (world.path / "state/a").exists()


@private
async def test_a_hundred_layers_with_long_and_unusual_names(world: CrunWorld) -> None:
    layers = [world.image.layers[0]]
    for number in range(99):
        layer = world.path / f"layer,with:odd characters and a long name {number:064d}"
        layer.mkdir()
        (layer / f"f{number}").touch()
        layers.append(layer)
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", "ls -d /f* | busybox wc -l")
        container = replace(container, image=replace(world.image, layers=tuple(layers)))
        assert await output(runtime, container) == ["99"]


@private
async def test_sharing_the_nodes_pid_and_ipc_namespaces(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        script = "sleep 1000 & echo ready; trap 'exit 0' TERM; while :; do sleep 0.1; done"
        container = world.container("a", "sh", "-c", script)
        spec = replace(container.spec.container, pid="host", ipc="host")
        container = replace(container, spec=replace(container.spec, container=spec))
        pid = await running(runtime, world, container)
        found = status(pid)
        for kind in ("pid", "ipc", "user"):
            own = os.readlink("/proc/thread-self/ns/" + kind)
            assert os.readlink(f"/proc/{pid}/ns/{kind}") == own
        assert found["NSpid"].split() == [str(pid)]
        assert os.stat(f"/proc/{pid}/root/dev/shm").st_dev == os.stat("/dev/shm").st_dev
        child = first_child(pid)
        await runtime.kill(container.id, signal.SIGTERM)
        await runtime.wait(container.id)
        await runtime.remove(container.id)
        # The end of its first process ends no other one, as it would in a namespace of its own.
        assert cmdline(child) == b""
