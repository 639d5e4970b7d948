# SPDX-License-Identifier: Apache-2.0
"""An agent's description of its host, its files, and its command line."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator import __version__
from orchestrator.agent.command import agent
from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.images.pulls import ImagePuller
from orchestrator.agent.images.staging import IncomingBlob
from orchestrator.agent.logs.retained_logs import RetainedLogs
from orchestrator.agent.session import node_description
from orchestrator.model.specs import Resources

DIGEST = "sha256:" + "1" * 64


def test_a_host_is_described_by_its_resources() -> None:
    found = node_description.describe(
        address="10.0.0.1",
        blob_port=7423,
        metrics_port=7424,
        cgroup="v2",
        runtime="crun 1.21",
        labels={"zone": "a"},
        offered=Resources(),
    )
    assert found.hostname == os.uname().nodename
    assert found.resources.shares == 1024 * len(os.sched_getaffinity(0))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert abs(found.resources.memory - pages) < pages / 10
    assert found.version == __version__
    assert (found.address, found.labels, found.blob_port) == ("10.0.0.1", {"zone": "a"}, 7423)


def test_a_host_may_offer_less() -> None:
    found = node_description.describe(
        address="",
        blob_port=0,
        metrics_port=0,
        cgroup="",
        runtime="",
        labels={},
        offered=Resources(512, 1 << 30),
    )
    assert found.resources == Resources(512, 1 << 30)


def test_routes_are_reported_except_orcs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes, routes6 = tmp_path / "route", tmp_path / "ipv6_route"
    routes.write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "tun0\t0000050A\t010200C0\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "orcbr7\t0001800A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    none = f"{0:032x} 00 {0:032x} 00000400 00000001 00000000 00000001"
    routes6.write_text(
        f"fd00000000000000{0:016x} 40 {0:032x} 00 {none} eth0\n"
        f"fe80000000000000{0:016x} 40 {0:032x} 00 {none} eth0\n"
        f"fd00000700000000{0:016x} 30 {0:032x} 00 {none} orcvx7\n"
        f"{0:032x} 00 {0:032x} 00 {none} eth0\n"
        f"{1:032x} 80 {0:032x} 00 {none} lo\n"
    )
    monkeypatch.setattr(node_description, "_ROUTES", routes)
    monkeypatch.setattr(node_description, "_ROUTES6", routes6)
    assert node_description.routes() == ("10.5.0.0/16", "192.0.2.0/24", "fd00::/64")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n', "Debian GNU/Linux 13 (trixie)"),
        ("PRETTY_NAME=Alpine\n", "Alpine"),
        ("", "Linux"),
    ],
)
def test_the_systems_name(text: str, name: str) -> None:
    assert node_description.os_name(text) == name


async def test_the_runtimes_version(tmp_path: Path) -> None:
    assert (await node_description.runtime_version("crun")).startswith("crun 1.")
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    assert await node_description.runtime_version(str(silent)) == "silent"


def test_the_log_of_an_ended_task_is_kept_with_its_older_parts(tmp_path: Path) -> None:
    live = tmp_path / "containers" / "t1" / "log"
    live.parent.mkdir(parents=True)
    for name, text in (("log", "new"), ("log.1", "old"), ("log.tmp", "no log")):
        (live.parent / name).write_text(text)
    kept = RetainedLogs(tmp_path / "logs")
    kept.keep("t1", live)
    kept.keep("t1", live)
    found = kept.path("t1")
    assert found.read_text() == "new"
    assert found.with_name("log.1").read_text() == "old"
    assert [path.name for path in live.parent.iterdir()] == ["log.tmp"]
    kept.retain({"t1"})
    assert found.exists()
    kept.retain(set())
    assert not found.exists()
    kept.forget("t1")


class FakeStore:
    """An image store that records the sources of a fetch."""

    def __init__(self, *present: str) -> None:
        self.present = present
        self.tried = ""

    def resolve(self, reference: str) -> str | None:
        return DIGEST if reference in self.present else None

    async def ensure(self, digest: str, fetch: Any) -> LocalImage:
        if digest not in self.present:
            with IncomingBlob(Path("/dev/null"), digest, None, 0) as blob:
                await fetch(blob)
        return LocalImage(digest, (), ImageConfig())


def images(store: FakeStore) -> ImagePuller:
    def dial(address: str) -> Any:
        store.tried = address
        raise ImageError(f"asked {address}")

    return ImagePuller(store, dial, "10.0.0.1:7423", random.Random(1))  # type: ignore[arg-type]


async def test_a_present_image_is_not_fetched() -> None:
    assert (await images(FakeStore(DIGEST)).prepare("hello:1", DIGEST, [])).digest == DIGEST
    found = await images(FakeStore(DIGEST, "hello:1")).prepare("hello:1", "", ["10.0.0.2:1"])
    assert found.digest == DIGEST


async def test_an_image_is_not_fetched_from_its_own_node() -> None:
    store = FakeStore()
    with pytest.raises(ImageError, match=r"asked 10\.0\.0\.2:1"):
        await images(store).prepare("hello:1", DIGEST, ["10.0.0.1:7423", "10.0.0.2:1"])


@pytest.mark.parametrize(("digest", "sources"), [(DIGEST, ["10.0.0.1:7423"]), ("", ["a:1"])])
async def test_an_image_that_no_node_has(digest: str, sources: list[str]) -> None:
    with pytest.raises(ImageError, match="no node that is up has the image hello:1"):
        await images(FakeStore()).prepare("hello:1", digest, sources)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(agent, arguments)
    return result.exit_code, result.output


def test_user_other_than_root_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, output = run()
    assert status == 1
    assert "must run as root" in output


def test_a_host_that_has_not_joined_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    status, output = run("--data-dir", str(tmp_path))
    assert status == 1
    assert "has not joined a cluster" in output
    assert "orc cluster join" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memory", "12q"), "'12q' is not a size"),
        (("--label", "zone"), "'zone' is not KEY=VALUE"),
        (("--shares", "0"), "0 is not in the range"),
        (("--image-gc-high", "70", "--image-gc-low", "80"), "(80) must be below --image-gc-high"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], words: str) -> None:
    status, output = run(*arguments)
    assert status == 2
    assert words in output
