# SPDX-License-Identifier: Apache-2.0
"""The etcd member that a manager runs for itself, against Debian's etcd."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kvhost import hosted

from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.etcd_process import find_orphan
from orchestrator.manager.store.kv import Put, StoreError, StoreUnavailable
from tests.freeports import ephemeral_ports, free_ports
from tests.freezing import freeze

PREFIX = "orc-member-test-"


@pytest.fixture(scope="module", autouse=True)
def leftovers() -> None:
    """End what a killed run left behind: orphans are what these tests make."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        if not Path(f"/proc/{owner}").exists():
            remove(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    yield made
    assert find_orphan(made / "etcd") is None, "an etcd was left running"
    remove(made)


def remove(folder: Path) -> None:
    if (orphan := find_orphan(folder / "etcd")) is not None:
        signal.pidfd_send_signal(orphan.pidfd, signal.SIGKILL)
        os.close(orphan.pidfd)
    shutil.rmtree(folder)


async def value(kv: EtcdKv, key: str) -> bytes:
    """What is stored, as soon as etcd answers."""
    async with asyncio.timeout(60):
        while True:
            try:
                entry = await kv.get(key)
            except StoreUnavailable:
                continue
            assert entry is not None
            return entry.value


async def test_a_killed_etcd_is_back_with_its_data(folder: Path) -> None:
    async with EtcdMember(folder / "etcd") as member, EtcdKv(member.endpoints, member.tls) as kv:
        await kv.txn([], [Put("a", b"1")])
        lease = await kv.grant(3)
        for _ in range(2):
            killed = member.pid
            os.kill(killed, signal.SIGKILL)
            assert await value(kv, "a") == b"1"
            assert member.pid != killed
        assert await kv.keepalive(lease) == 3, "a lease outlives a short restart"


async def test_the_data_and_the_address_survive_a_stop(folder: Path) -> None:
    async with EtcdMember(folder / "etcd") as member, EtcdKv(member.endpoints, member.tls) as kv:
        endpoints = member.endpoints
        await kv.txn([], [Put("a", b"1")])
    async with EtcdMember(folder / "etcd") as member, EtcdKv(endpoints, member.tls) as kv:
        assert member.endpoints == endpoints
        assert await value(kv, "a") == b"1"


async def test_no_outgoing_connection_takes_the_port_of_a_stopped_member(folder: Path) -> None:
    low, high = ephemeral_ports()
    async with EtcdMember(folder / "etcd") as member:
        assert not low <= int(member.endpoints[0].rpartition(":")[2]) <= high


async def test_a_remembered_port_that_is_taken_is_replaced(folder: Path) -> None:
    async with EtcdMember(folder / "etcd") as member:
        port = int(member.endpoints[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        async with EtcdMember(folder / "etcd") as member:
            assert member.endpoints != (f"https://127.0.0.1:{port}",)


async def test_the_next_manager_adopts_the_etcd_of_a_killed_one(folder: Path) -> None:
    with hosted(folder / "etcd") as host:
        async with EtcdKv(host.endpoints, host.tls) as kv:
            revision = await kv.txn([], [Put("a", b"1")])
            async with kv.watch("a", revision + 1) as changes:
                host.process.kill()
                host.process.wait()
                await kv.txn([], [Put("a", b"2")])  # nobody supervises, the store does not mind
                async with EtcdMember(folder / "etcd") as member:
                    assert member.pid == host.first_pid
                    assert member.endpoints == host.endpoints
                    await kv.txn([], [Put("a", b"3")])
                    async with asyncio.timeout(60):
                        seen = [(await anext(changes)).revision for _ in range(2)]
                    assert seen == [revision + 1, revision + 2]
                    os.kill(member.pid, signal.SIGKILL)
                    assert await value(kv, "a") == b"3"
                    assert member.pid != host.first_pid


async def test_an_adopted_etcd_with_other_settings_is_restarted(folder: Path) -> None:
    with hosted(folder / "etcd") as host:
        host.process.kill()
        host.process.wait()
    port = free_ports()
    async with EtcdMember(folder / "etcd", client_port=port) as member:
        assert member.pid != host.first_pid
        assert member.endpoints == (f"https://127.0.0.1:{port}",)


async def test_a_frozen_orphan_is_restarted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.manager.store.etcd_member.ADOPT_TIMEOUT", 0.5)
    monkeypatch.setattr("orchestrator.manager.store.etcd_process.STOP_TIMEOUT", 0.1)
    with hosted(folder / "etcd") as host:
        freeze(host.first_pid)
        host.process.kill()
        host.process.wait()
    async with EtcdMember(folder / "etcd") as member:
        assert member.pid != host.first_pid


async def test_a_temporarily_missing_binary_is_retried(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As while its package is upgraded."""
    debians = shutil.which("etcd")
    assert debians is not None
    binary = folder / "binary"
    binary.symlink_to(debians)
    async with (
        EtcdMember(folder / "etcd", binary=str(binary)) as member,
        EtcdKv(member.endpoints, member.tls, timeout=1.0) as kv,
    ):
        await kv.txn([], [Put("a", b"1")])
        binary.unlink()
        os.kill(member.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while "cannot start etcd" not in caplog.text:
                with pytest.raises(StoreUnavailable):
                    await kv.get("a")
        binary.symlink_to(debians)
        assert await value(kv, "a") == b"1"


async def test_data_folder_is_locked_by_one_manager(folder: Path) -> None:
    async with EtcdMember(folder / "etcd") as first:
        with pytest.raises(StoreError, match="another manager runs on"):
            async with EtcdMember(folder / "etcd"):
                pass
        async with EtcdKv(first.endpoints, first.tls) as kv:
            assert await kv.get("a") is None


async def test_the_body_s_own_failure_comes_out_as_it_is(folder: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with EtcdMember(folder / "etcd"):
            raise LookupError("mine")


async def test_without_etcd_the_package_is_named(folder: Path) -> None:
    with pytest.raises(StoreError, match="no-etcd is not installed: apt install etcd-server"):
        async with EtcdMember(folder / "etcd", binary="no-etcd"):
            pass


async def test_etcd_s_reason_for_not_starting_is_passed_on(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StoreError, match=r"does not start: .*address already in use"):
            async with EtcdMember(folder / "etcd", client_port=port):
                pass


async def test_a_damaged_database_is_named_with_the_remedy(folder: Path) -> None:
    async with EtcdMember(folder / "etcd") as member, EtcdKv(member.endpoints, member.tls) as kv:
        await kv.txn([], [Put("a", b"1")])
    path = folder / "etcd" / "data" / "member" / "snap" / "db"
    meta = 2 * 4096
    path.write_bytes(path.read_bytes()[:meta] + b"damaged" * 4096)
    damaged = r"does not start: panic: .*etcd\.err\); if its data are damaged, restore a backup"
    with pytest.raises(StoreError, match=damaged):
        async with EtcdMember(folder / "etcd"):
            pass


async def test_an_etcd_without_the_newest_flags_will_do(folder: Path) -> None:
    """Such as the 3.4 of Debian 12 and Ubuntu 24.04; the flags are those that it does not have."""
    older = folder / "etcd-3.4"
    older.write_text(
        "#!/bin/sh\n"
        "unknown='tls-min-version|enable-log-rotation|log-rotation-config-json'\n"
        'if [ "$1" = --help ]; then etcd --help 2>&1 | grep -Ev -- "--($unknown) " >&2; exit; fi\n'
        "for flag; do\n"
        '  if echo "$flag" | grep -Eq -- "--($unknown)"; then echo "no $flag" >&2; exit 2; fi\n'
        "done\n"
        'exec etcd "$@"\n'
    )
    older.chmod(0o755)
    async with (
        EtcdMember(folder / "etcd", binary=str(older)) as member,
        EtcdKv(member.endpoints, member.tls) as kv,
    ):
        await kv.txn([], [Put("a", b"1")])
        assert await value(kv, "a") == b"1"


async def test_member_listens_on_loopback_and_its_folder_is_private(folder: Path) -> None:
    async with EtcdMember(folder / "etcd") as member:
        assert (folder / "etcd").stat().st_mode & 0o777 == 0o700
        assert listening(member.pid) == {"0100007F"}


def listening(pid: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal, on which a process accepts TCP."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed just now
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    lines = [
        line.split()
        for family in ("tcp", "tcp6")
        for line in Path("/proc/net", family).read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}
