# SPDX-License-Identifier: Apache-2.0
"""The support bundle: one file, whole, for its owner, whatever the hosts say or do not say."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from orchestrator.cli.system.support_bundle import safe_path
from orchestrator.pb import control_pb2 as pb
from orchestrator.pb import support_pb2
from orchestrator.supportbundle.hostfacts import Fact, own_log, packed, tail

Run = Callable[..., Result]


def files(path: Path) -> dict[str, str]:
    """What is in the archive, by the path in its one folder."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert len({each.name.partition("/")[0] for each in members}) == 1
        assert all(each.isfile() for each in members)
        return {
            each.name.partition("/")[2]: archive.extractfile(each).read().decode()  # type: ignore[union-attr]
            for each in members
        }


@pytest.fixture
def bundle(run: Run, tmp_path: Path) -> Callable[[], tuple[dict[str, str], Result]]:
    def make() -> tuple[dict[str, str], Result]:
        target = tmp_path / "bundle.tar.gz"
        result = run("support-bundle", "-o", str(target))
        assert (result.exit_code, result.stdout) == (0, f"{target}\n")
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert [path.name for path in tmp_path.glob("*bundle*")] == ["bundle.tar.gz"]
        return files(target), result

    return make


def test_without_a_cluster_bundle_has_this_host(bundle: Any) -> None:
    found, result = bundle()
    assert "no cluster is set up here" in result.stderr
    assert "no cluster is set up here" in found["problems.txt"]
    assert "kernel: " in found["here/host/orc.txt"]
    assert "MemTotal" in found["here/kernel/meminfo.txt"]
    assert "/sys" in found["here/kernel/mountinfo.txt"]


def test_files_of_hosts_are_redacted_and_confined(manager: Any, bundle: Any) -> None:
    token = f"ORC-1-{'a' * 64}-{'b' * 30}"
    spec = {"name": "web", "task": {"container": {"env": ["DB_PASSWORD=swordfish", "MODE=plain"]}}}
    manager.script.answers.update(
        GetCluster=pb.ClusterInfo(
            id="c1", version="9", worker_token=token, scrape_token="scrape-me-not"
        ),
        ListServices=pb.ListServicesReply(services=[{"service": {"spec": spec}}]),
        ListNodes=pb.ListNodesReply(),
        Collect=[
            support_pb2.SupportPart(
                host="../../node1",
                facts=packed(
                    [
                        Fact("../log/agent.log", f"swordfish, {'b' * 30}, scrape-me-not\n"),
                        Fact("..", "x"),
                    ]
                ),
            ),
            support_pb2.SupportPart(host="node2", notice="node node2 is down"),
        ],
    )
    found, result = bundle()
    text = "".join(found.values())
    for secret in ("swordfish", "b" * 30, "scrape-me-not", "=plain"):
        assert secret not in text
    assert found["node1/log/agent.log"] == "(removed), (removed), (removed)\n"
    assert '"MODE=(removed)"' in found["cluster/services.json"]
    assert '"version": "9"' in found["cluster/cluster.json"]
    assert "node node2 is down\n" in found["problems.txt"]
    assert "node node2 is down" in result.stderr
    # What this manager does not know of is noted down, and all else is there.
    assert "containers: " in found["problems.txt"]


def test_unwritable_target(refused: Any, tmp_path: Path) -> None:
    assert "no such file or directory" in refused("support-bundle", "-o", f"{tmp_path}/no/file")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("node1/log/agent.log", "node1/log/agent.log"),
        ("/etc/passwd", "etc/passwd"),
        ("../../x", "x"),
        ("a/./b/../c d;e", "a/b/c_d_e"),
        ("", "unnamed"),
    ],
)
def test_paths(name: str, path: str) -> None:
    assert safe_path(name) == path


def test_log_tail_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first line\nsecond line\nthird\n")
    assert tail(log, 10) == "third\n"
    assert tail(log, 1000) == log.read_text()
    assert tail(log, len(log.read_text())) == log.read_text()
    assert "no such file" in tail(tmp_path / "none")
    assert own_log("manager").name == "log/manager.log"
