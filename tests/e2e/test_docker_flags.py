# SPDX-License-Identifier: Apache-2.0
"""Flags that a Docker user expects of `run`, `start`, `exec`, `rm`, `ps`: what comes of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from devcluster import ORC, Cluster, eventually

pytestmark = pytest.mark.root

BOX = ("--entrypoint", "/bin/busybox")


def test_publish_all_maps_exposed_ports(cluster: Cluster, hello: str) -> None:
    """`-P` publishes what the image exposes, on ports that lead there."""
    cluster.orc("run", "-d", "--name", "web", "-P", "-p", "81", hello)
    lines = cluster.orc("port", "web").stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["81/tcp", "80/tcp"]
    address = cluster.orc("port", "web", "80").stdout.strip()
    node = cluster.json("ps")[0]["node"]
    eventually(lambda: cluster.exec(node, "busybox", "wget", "-qO-", f"http://{address}/").stdout)


def test_a_container_is_attached_to_again_and_again(cluster: Cluster, hello: str) -> None:
    cluster.orc("create", "-i", "--name", "cat", *BOX, hello, "sh", "-c", "echo on; cat; exit 7")
    for data in (b"one\n", b"two\n"):
        done = subprocess.run(
            [ORC, "start", "-ai", "cat"],
            env=cluster.env, input=data, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert (done.stdout, done.returncode) == (b"on\n" + data, 7), done.stderr
    assert cluster.orc("logs", "cat").stdout == "on\none\non\ntwo\n"


def test_ids_variables_and_volumes(cluster: Cluster, hello: str, tmp_path: Path) -> None:
    file = tmp_path / "id"
    run = ("run", "-d", "--name", "box", "-v", "/data", "--cidfile", str(file))
    cluster.orc(*run, "--pull", "never", *BOX, hello, "sleep", "1000")
    rows = cluster.orc("ps", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.State}}").stdout
    assert rows == f"{file.read_text()} box running\n"
    variables = tmp_path / "variables"
    variables.write_text("FROM_FILE=yes\n")
    shown = cluster.orc(
        "exec", "--env-file", str(variables), "-e", "GIVEN=too", "box", "/bin/busybox", "env"
    ).stdout.splitlines()
    assert {"FROM_FILE=yes", "GIVEN=too"} <= set(shown)
    kept = cluster.orc("volume", "ls", "-q").stdout.split()
    assert len(kept) == 1
    assert "no container 'boxx'; did you mean 'box'?" in (
        cluster.refused("run", "--volumes-from", "boxx:ro", hello)
    )
    cluster.orc("stop", "-t", "0", "box")
    cluster.orc("rm", "-v", "box")
    assert cluster.orc("volume", "ls", "-q").stdout.split() == []
    assert "--pull is never" in cluster.refused("run", "--pull", "never", "nothing-here:1")
    assert json.loads(cluster.orc("ps", "-a", "--format", "json").stdout) == []
