# SPDX-License-Identifier: Apache-2.0
"""`orc run` and `attach` in a user's hands: a terminal, signals, a pipe, a client that breaks."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually
from ptydriver import at_terminal

pytestmark = [pytest.mark.root, pytest.mark.e2e]

BOX = ("--entrypoint", "/bin/busybox")


def state(cluster: Cluster, name: str) -> str:
    return cluster.orc("inspect", "-f", "{{.state}}", name).stdout.strip()


def test_a_shell_is_left_and_found_again(cluster: Cluster, hello: str) -> None:
    with at_terminal(cluster.env, "run", "-it", "--name", "sh", *BOX, hello, "sh") as terminal:
        before = terminal.modes()
        terminal.expect(b"# ")
        assert terminal.modes() != before
        terminal.type(b"stty size; NAME=kept\r")
        terminal.expect(b"40 123")
        terminal.type(b"\x10\x11")
        terminal.expect(b"Detached")
        assert terminal.finish() == 0
    assert state(cluster, "sh") == "running"
    with at_terminal(cluster.env, "attach", "sh", rows=50, columns=150) as terminal:
        terminal.type(
            b"until [ \"$(stty size)\" = '50 150' ]; do sleep 0.05; done; echo $NAME-$?\r"
        )
        terminal.expect(b"kept-0\r")
        terminal.resize(30, 90)
        terminal.type(b"while [ \"$(stty size)\" != '30 90' ]; do sleep 0.05; done; echo so-$?\r")
        terminal.expect(b"so-0\r")
        terminal.type(b"sleep 1000\r")
        eventually(lambda: "sleep 1000" in cluster.orc("top", "sh").stdout)
        terminal.type(b"\x03")
        terminal.expect(b"# ")
        terminal.type(b"exit 43\r")
        assert terminal.finish() == 43
    assert state(cluster, "sh") == "exited"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminated_client_restores_the_terminal(
    cluster: Cluster, hello: str, number: signal.Signals
) -> None:
    with at_terminal(cluster.env, "run", "-it", "--name", "sh", *BOX, hello, "sh") as terminal:
        before = terminal.modes()
        terminal.expect(b"# ")
        terminal.signal(number)
        assert terminal.finish() == 128 + number
        assert terminal.modes() == before
    assert state(cluster, "sh") == "running"


def test_a_client_that_breaks_kills_nothing(cluster: Cluster, hello: str) -> None:
    with at_terminal(cluster.env, "run", "-it", "--name", "sh", *BOX, hello, "sh") as terminal:
        terminal.expect(b"# ")
        terminal.kill()
    # More than any buffer holds, written to a client that is gone.
    script = (
        "trap '' PIPE; while [ ! -e /go ]; do sleep 0.05; done; seq 300000; echo end >&2; sleep 9"
    )
    client = subprocess.Popen(
        [ORC, "run", "--name", "loud", *BOX, hello, "sh", "-c", script],
        env=cluster.env, stdout=subprocess.PIPE,
    )  # fmt: skip
    eventually(lambda: "loud" in cluster.orc("ps", "--format", "{{.Names}}").stdout)
    client.kill()
    client.wait()
    assert client.stdout is not None
    client.stdout.close()
    cluster.orc("exec", "loud", "/bin/busybox", "touch", "/go")
    eventually(lambda: "end\n" in cluster.orc("logs", "loud").stderr)
    assert state(cluster, "sh") == "running"


def test_signals_go_to_the_program_unless_kept(cluster: Cluster, hello: str) -> None:
    script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    proxy: tuple[str, ...]
    for proxy, status, after in (((), 5, "exited"), (("--sig-proxy=false",), -15, "running")):
        client = subprocess.Popen(
            [ORC, "run", "--name", "trap", *proxy, *BOX, hello, "sh", "-c", script],
            env=cluster.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.terminate()
        assert client.wait(PATIENCE) == status
        client.stdout.close()
        # The client has seen the end; of what runs, its node may yet have to tell.
        eventually(lambda after=after: state(cluster, "trap") == after)
        cluster.orc("rm", "-f", "trap")


def test_a_pipe_is_passed_through_unchanged_with_half_close(cluster: Cluster, hello: str) -> None:
    data = random.Random(3).randbytes(8 << 20)
    script = "tee /dev/stderr | sha256sum; exit 6"
    done = subprocess.run(
        [ORC, "run", "--rm", "-i", *BOX, hello, "sh", "-c", script],
        env=cluster.env, input=data, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 6
    assert done.stderr == data
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_blocked_reader_stalls_no_other_client(cluster: Cluster, hello: str) -> None:
    run = [ORC, "run", "--name", "yes", "--node", "node1", *BOX, hello, "yes"]
    client = subprocess.Popen(run, env=cluster.env, stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert client.stdout.read(4) == b"y\ny\n"
        for _ in range(3):
            other = cluster.orc("run", "--rm", "--node", "node1", *BOX, hello, "echo", "hi")
            assert other.stdout == "hi\n"
        assert cluster.orc("exec", "yes", "/bin/busybox", "echo", "hi").stdout == "hi\n"
    finally:
        client.kill()
        client.wait()
        assert client.stdout is not None
        client.stdout.close()
