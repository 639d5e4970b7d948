# SPDX-License-Identifier: Apache-2.0
"""`orc top` at a real terminal: a screen of the cluster to walk about in."""

from __future__ import annotations

import json

import pytest
from devcluster import Cluster
from ptydriver import at_terminal

from orchestrator.cli.app.errors import INTERRUPTED

pytestmark = pytest.mark.root


def test_the_screen(cluster: Cluster, hello: str) -> None:
    there = ("--constraint", "node.hostname==node2")
    cluster.orc("service", "create", "--name", "seen", "--replicas", "2", *there, hello)
    env = {**cluster.env, "TERM": "xterm-256color"}
    del env["COLUMNS"]
    with at_terminal(env, "top", rows=30, columns=160) as terminal:
        before = terminal.modes()
        terminal.expect(b"3/3 nodes ready, 1 service, 2/2 tasks running")
        terminal.expect(b"nodes, 3 of them")
        terminal.expect(b"node2")
        terminal.type(b"2")
        terminal.expect(b"services, 1 of them")
        terminal.expect(b"2/2")
        terminal.type(b"\r")
        terminal.expect(b"tasks, service seen, 2 of them")
        # Filter, as fast as one types.
        terminal.type(b"/.2\r")
        terminal.expect("with “.2”, 1 of them".encode())
        terminal.type(b"\r")
        terminal.expect(b"processes of seen.2 on node2")
        terminal.expect(b"httpd")
        terminal.type(b"q")
        terminal.expect(b"tasks, service seen, with")
        terminal.type(b"3")
        terminal.expect("tasks, with “.2”, 1 of them".encode())
        terminal.type(b"\x1b")
        terminal.expect(b"tasks, 2 of them")
        terminal.type(b">")
        terminal.expect("NODE ▲".encode())
        terminal.type(b"r")
        terminal.expect("NODE ▼".encode())
        # The picture moves by itself.
        cluster.orc("service", "scale", "seen=3")
        terminal.expect(b"3/3 tasks running")
        cluster.stop("manager1")
        try:
            terminal.expect(b"cannot reach a manager")
        finally:
            cluster.start("manager1")
        terminal.type(b"q")
        assert terminal.finish() == 0
        assert terminal.modes() == before
    # The manager has its nodes' sessions a moment after it is back, and waits for them.
    rows = json.loads(cluster.orc("top", "--no-stream", "--format", "json").stdout)
    assert sum(row["containers"] for row in rows) == 3
    with at_terminal(env, "top") as terminal:
        terminal.expect(b"nodes, 3 of them")
        terminal.type(b"\x03")
        assert terminal.finish() == INTERRUPTED
    # Where nothing can be drawn there are lines, and with a container its processes.
    with at_terminal({**cluster.env, "TERM": "dumb"}, "top", "--no-stream") as terminal:
        terminal.expect(b"NODE")
        assert terminal.finish() == 0
    rows = json.loads(cluster.orc("top", "--no-stream", "--format", "json").stdout)
    assert [row["hostname"] for row in rows] == ["node1", "node2", "node3"]
    assert "httpd" in cluster.orc("top", "seen.1").stdout
    cluster.orc("service", "rm", "-d", "seen")
