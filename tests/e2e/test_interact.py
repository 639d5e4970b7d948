# SPDX-License-Identifier: Apache-2.0
"""Programs, terminals, files and figures of containers, from any client."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest
from devcluster import ORC, Cluster, eventually
from ptydriver import at_terminal

pytestmark = [pytest.mark.root, pytest.mark.e2e]

BUSYBOX = "/bin/busybox"
LOOP = "while :; do sleep 1; done"


@pytest.fixture
def box(cluster: Cluster, hello: str) -> str:
    """The name of a container with a shell, that does nothing."""
    cluster.script("box", hello, LOOP, "--limit-memory", "64m")
    return "box.1"


def run(cluster: Cluster, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`orc` with bytes on stdin, whatever its exit status."""
    return subprocess.run([ORC, *arguments], env=cluster.env, input=data, capture_output=True)


def sh(cluster: Cluster, box: str, text: str) -> str:
    """What a shell script prints in the container; it must succeed."""
    return cluster.orc("exec", box, BUSYBOX, "sh", "-c", text).stdout


def top(cluster: Cluster, box: str) -> list[str]:
    document = json.loads(cluster.orc("top", "--format", "json", box).stdout)
    return [row["cmd"] for row in document]


def test_exec_keeps_streams_apart_and_passes_the_status_on(cluster: Cluster, box: str) -> None:
    done = run(cluster, "exec", box, BUSYBOX, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 9)
    assert run(cluster, "exec", box, BUSYBOX, "sh", "-c", "kill -9 $$").returncode == 137
    missing = run(cluster, "exec", box, "nothing-of-that-name")
    assert missing.returncode == 127
    assert missing.stderr == b"orc: the image has no program `nothing-of-that-name`\n"
    cannot = run(cluster, "exec", box, "/www")
    assert cannot.returncode == 126
    assert cannot.stderr.count(b"\n") == 1


def test_exec_user_folder_environment_and_capabilities(cluster: Cluster, box: str) -> None:
    text = "id -u; id -g; pwd; echo $COLOUR $HOME"
    done = cluster.orc(
        "exec", "-u", "1000:50", "-w", "/www", "-e", "COLOUR=blue", box, BUSYBOX, "sh", "-c", text
    )
    assert done.stdout.split() == ["1000", "50", "/www", "blue", "/"]
    held = "grep CapEff /proc/self/status"
    plain = sh(cluster, box, held).split()[1]
    privileged = cluster.orc("exec", "--privileged", box, BUSYBOX, "sh", "-c", held).stdout.split()
    assert int(privileged[1], 16) & ~int(plain, 16)
    assert not int(plain, 16) & 1 << 21  # CAP_SYS_ADMIN


def test_ten_megabytes_pass_through_unchanged_with_half_close(cluster: Cluster, box: str) -> None:
    data = random.Random(1).randbytes(10 << 20)
    # Neither ends before its input does; the second says something only then.
    echoed = run(cluster, "exec", "-i", box, BUSYBOX, "cat", data=data)
    assert echoed.returncode == 0
    assert hashlib.sha256(echoed.stdout).digest() == hashlib.sha256(data).digest()
    summed = run(cluster, "exec", "-i", box, BUSYBOX, "sha256sum", data=data)
    assert summed.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_unread_input_does_not_delay_the_exit(cluster: Cluster, box: str) -> None:
    data = bytes(4 << 20)
    done = run(cluster, "exec", "-i", box, BUSYBOX, "sh", "-c", "exec <&-; echo done", data=data)
    assert (done.stdout, done.returncode) == (b"done\n", 0)


def test_a_terminal_has_the_users_size_and_follows_it(cluster: Cluster, box: str) -> None:
    with at_terminal(cluster.env, "exec", "-it", box, BUSYBOX, "sh") as terminal:
        before = terminal.modes()
        terminal.expect(b"# ")
        assert terminal.modes() != before
        terminal.type(b"stty size\r")
        terminal.expect(b"40 123")
        terminal.resize(50, 150)
        # The new size is on its way beside the keys; the shell is asked until it has arrived.
        terminal.type(b"while [ \"$(stty size)\" != '50 150' ]; do sleep 0.05; done; echo so-$?\r")
        terminal.expect(b"so-0\r")
        terminal.type(b"sleep 100\r")
        eventually(lambda: "sleep 100" in top(cluster, box))
        terminal.type(b"\x03")
        terminal.expect(b"# ")
        terminal.type(b"exit 42\r")
        assert terminal.finish() == 42
        assert terminal.modes() == before


def test_a_terminal_needs_a_terminal(cluster: Cluster, box: str) -> None:
    assert "not a terminal" in cluster.refused("exec", "-it", box, BUSYBOX, "sh")
    # Without input, there is nothing to be a terminal.
    shown = cluster.orc("exec", "-t", box, BUSYBOX, "sh", "-c", "test -t 1 && echo yes")
    assert shown.stdout == "yes\n" or shown.stdout == "yes\r\n"


def test_detach_keys_leave_the_program(cluster: Cluster, box: str) -> None:
    with at_terminal(cluster.env, "exec", "-it", box, BUSYBOX, "sleep", "4711") as terminal:
        eventually(lambda: "/bin/busybox sleep 4711" in top(cluster, box))
        before = terminal.modes()
        terminal.type(b"\x10\x11")
        terminal.expect(b"Detached")
        assert terminal.finish() == 0
        assert terminal.modes() != before
    assert "/bin/busybox sleep 4711" in top(cluster, box)
    with at_terminal(
        cluster.env, "exec", "-it", "--detach-keys", "ctrl-a,d", box, BUSYBOX, "cat"
    ) as terminal:
        before = terminal.modes()
        eventually(lambda: terminal.modes() != before)
        terminal.type(b"\x10x\r")
        terminal.expect(b"^Px\r\n")
        terminal.type(b"\x01d")
        terminal.expect(b"Detached")
        assert terminal.finish() == 0


def test_a_broken_client_leaves_the_program(cluster: Cluster, box: str) -> None:
    with at_terminal(cluster.env, "exec", "-it", box, BUSYBOX, "sleep", "4712") as terminal:
        eventually(lambda: "/bin/busybox sleep 4712" in top(cluster, box))
        terminal.kill()
    # It writes more than any buffer holds, to nobody, and ends well.
    text = "trap '' PIPE; sleep 1; head -c 2000000 /dev/zero && touch /written"
    client = subprocess.Popen(
        [ORC, "exec", box, BUSYBOX, "sh", "-c", text], env=cluster.env, stdout=subprocess.PIPE
    )
    eventually(lambda: any("2000000" in line for line in top(cluster, box)))
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert client.stdout is not None
    client.stdout.close()
    eventually(lambda: sh(cluster, box, "ls /").split().count("written"))
    assert "/bin/busybox sleep 4712" in top(cluster, box)
    assert len(cluster.running("box")) == 1


def test_slow_client_stalls_no_other_client(cluster: Cluster, box: str) -> None:
    client = subprocess.Popen(
        [ORC, "exec", box, BUSYBOX, "yes"], env=cluster.env, stdout=subprocess.PIPE
    )
    try:
        assert client.stdout is not None
        assert client.stdout.read(10) == b"y\ny\ny\ny\ny\n"
        # Nobody reads on: the program is made to wait, and all else goes its way.
        for _ in range(3):
            assert run(cluster, "exec", box, BUSYBOX, "echo", "hi").stdout == b"hi\n"
        assert len(cluster.running("box")) == 1
    finally:
        client.kill()
        client.wait()
        assert client.stdout is not None
        client.stdout.close()


def test_a_detached_program_runs_on(cluster: Cluster, box: str) -> None:
    assert run(cluster, "exec", "-d", box, BUSYBOX, "sleep", "4713").returncode == 0
    assert "/bin/busybox sleep 4713" in top(cluster, box)
    assert run(cluster, "exec", "-d", box, "nothing-of-that-name").returncode == 127


def test_forty_execs_leave_nothing(cluster: Cluster, box: str) -> None:
    (task,) = cluster.running("box")
    node = str(task["node"])
    agent = cluster.status()[node]["daemon_pid"]

    def descriptors() -> int:
        return int(cluster.exec(node, "sh", "-c", f"ls /proc/{agent}/fd | wc -l").stdout)

    run(cluster, "exec", box, BUSYBOX, "true")
    before = descriptors()
    for _ in range(4):
        clients = [
            subprocess.Popen(
                [ORC, "exec", *flags, box, BUSYBOX, "true"],
                env=cluster.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for flags in (["-i"], ["-t"], [], ["-d"], ["-i"]) * 2
        ]
        assert [client.wait() for client in clients] == [0] * 10

    def clean() -> bool:
        # One at most for a call that ends just now, of forty.
        assert descriptors() <= before + 1
        assert not cluster.exec(node, "pgrep", "-x", "crun", ok=False).stdout
        assert set(top(cluster, box)) <= {f"{BUSYBOX} sh -c {LOOP}", "sleep 1"}
        return True

    eventually(clean)


def test_shell_in_a_stopped_container_is_refused(cluster: Cluster, hello: str) -> None:
    assert "no container 'nobody.7'" in cluster.refused("exec", "nobody.7", "sh")
    cluster.orc(
        "service", "create", "-d", "--name", "gone", "--restart-condition", "none",
        "--entrypoint", BUSYBOX, hello, "true",
    )  # fmt: skip
    eventually(lambda: cluster.task("gone")["state"] == "complete")
    line = cluster.refused("exec", "gone.1", BUSYBOX, "true")
    assert "the container is not running" in line


def test_attach_shows_output_of_a_container(cluster: Cluster, hello: str) -> None:
    cluster.script("talk", hello, "while :; do echo out; echo err >&2; sleep 0.1; done")
    with at_terminal(cluster.env, "attach", "--no-stdin", "--sig-proxy", "false", "talk.1") as term:
        term.expect(b"out")
        term.expect(b"err")
        term.type(b"\x03")
        assert term.finish() == 130
    assert len(cluster.running("talk")) == 1
    # By default what the client gets, the container gets.
    client = subprocess.Popen(
        [ORC, "attach", "talk.1"], env=cluster.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"out\n"
    client.send_signal(signal.SIGKILL)
    client.wait()
    client.stdout.close()
    assert len(cluster.running("talk")) == 1


def make_tree(folder: Path) -> Path:
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "one").write_bytes(b"one\n")
    (tree / "sub" / "data").write_bytes(random.Random(2).randbytes(1 << 20))
    (tree / "sub" / "tool").write_bytes(b"#!/bin/sh\n")
    (tree / "sub" / "tool").chmod(0o4755)
    (tree / "link").symlink_to("one")
    os.link(tree / "one", tree / "again")
    os.chown(tree / "one", 1234, 55)
    return tree


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (status.st_mode, content)
    return found


def test_copies_keep_file_types_and_modes(cluster: Cluster, box: str, tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    cluster.orc("cp", str(tree), f"{box}:/there")
    assert sh(cluster, box, "stat -c %u:%g:%a /there/one /there/sub/tool").split() == [
        "1234:55:644",
        "0:0:4755",
    ]
    cluster.orc("cp", f"{box}:/there", str(tmp_path / "back"))
    assert listing(tmp_path / "back") == listing(tree)
    assert (tmp_path / "back" / "one").stat().st_nlink == 2
    assert (tmp_path / "back" / "one").stat().st_uid == os.geteuid()
    cluster.orc("cp", "-a", f"{box}:/there/one", str(tmp_path / "kept"))
    assert (tmp_path / "kept").stat().st_uid == 1234


def test_copies_work_with_stopped_containers(cluster: Cluster, hello: str, tmp_path: Path) -> None:
    def exec(*command: str) -> str:
        return cluster.orc("exec", "still", BUSYBOX, *command).stdout

    tree = make_tree(tmp_path)
    script = "mkdir -p /data; echo $$ >> /data/runs; exec sleep 1000"
    flags = ("-d", "--name", "still", "--stop-signal", "KILL", "--entrypoint", BUSYBOX)
    cluster.orc("run", *flags, hello, "sh", "-c", script)
    try:
        eventually(lambda: exec("cat", "/data/runs") == "1\n")
        cluster.orc("stop", "still")
        cluster.orc("cp", str(tree), "still:/data/")
        cluster.orc("cp", "still:/data", str(tmp_path / "back"))
        assert (tmp_path / "back" / "runs").read_text() == "1\n"
        assert listing(tmp_path / "back" / "tree") == listing(tree)
        assert "folder /nowhere does not exist" in cluster.refused(
            "cp", str(tree), "still:/nowhere/x"
        )
        changed = set(cluster.orc("diff", "still").stdout.splitlines())
        assert {"A /data", "A /data/runs", "A /data/tree", "A /data/tree/sub"} <= changed
        # Nothing of a copy is left but what was copied, and its next run has that.
        cluster.orc("start", "still")
        eventually(lambda: exec("cat", "/data/runs") == "1\n1\n")
        assert exec("stat", "-c", "%u:%g", "/data/tree/one", "/data/runs") == "1234:55\n0:0\n"
        assert set(cluster.orc("diff", "still").stdout.splitlines()) == changed
    finally:
        cluster.orc("rm", "-f", "still")


def test_where_copies_go(cluster: Cluster, box: str, tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    cluster.orc("cp", str(tree), f"{box}:/www")  # an existing folder: into it
    cluster.orc("cp", f"{tree}/.", f"{box}:/www")  # what is in it
    cluster.orc("cp", str(tree / "one"), f"{box}:/www/renamed")
    names = sh(cluster, box, "ls /www").split()
    assert {"tree", "one", "sub", "renamed"} <= set(names)
    assert "folder /nowhere/ does not exist" in cluster.refused(
        "cp", str(tree / "one"), f"{box}:/nowhere/"
    )
    refused = cluster.refused("cp", str(tree), f"{box}:/www/one")
    assert "cannot copy a folder to the file /www/one" in refused
    assert "no such file" in cluster.refused("cp", f"{box}:/nothing", str(tmp_path))
    out = run(cluster, "cp", f"{box}:/www/tree/sub", "-")
    with tarfile.open(fileobj=io.BytesIO(out.stdout)) as archive:
        assert sorted(archive.getnames()) == ["sub", "sub/data", "sub/tool"]
    sh(cluster, box, "mkdir /in")
    assert run(cluster, "cp", "-", f"{box}:/in", data=out.stdout).returncode == 0
    assert sh(cluster, box, "ls /in/sub").split() == ["data", "tool"]


def test_no_link_leads_a_copy_out_of_the_container(
    cluster: Cluster, box: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    up = "../" * 12
    sh(cluster, box, f"ln -s {secret} /direct; ln -s {up}{tmp_path} /folder; ln -s /www /inside")
    for path in ("/direct", "/folder/secret", f"{up}{secret}"):
        assert "no such file" in cluster.refused("cp", "-L", f"{box}:{path}", str(tmp_path / "x"))
    cluster.refused("cp", str(secret), f"{box}:/folder/")
    cluster.orc("cp", str(secret), f"{box}:/inside/")
    assert sh(cluster, box, "cat /www/secret") == "the host's"
    # Nor does a container's tar lead a client out of the folder that it copies to.
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as archive:
        link = tarfile.TarInfo("d/way")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        file = tarfile.TarInfo("d/way/planted")
        archive.addfile(file, io.BytesIO())
    assert run(cluster, "cp", "-", f"{box}:/www", data=evil.getvalue()).returncode == 1
    assert not (tmp_path / "planted").exists()


def test_top_and_stats(cluster: Cluster, hello: str) -> None:
    cluster.script(
        "busy", hello, "while :; do :; done", "--replicas", "3", "--limit-memory", "64m",
        "--limit-cpu", "0.2",
    )  # fmt: skip
    rows = cluster.json("stats", "--no-stream")
    busy = [row for row in rows if row["name"].startswith("busy.")]
    assert [row["name"] for row in busy] == ["busy.1", "busy.2", "busy.3"]
    assert {row["node"] for row in busy} == {"node1", "node2", "node3"}
    for row in busy:
        assert 0 < row["cpu_percent"] < 100, "a fifth of a core is its limit"
        assert 0 < row["memory"] < row["memory_limit"] == 64 << 20
        assert row["pids"] == 1
        assert row["net_received"] > 0
    one = cluster.json("stats", "--no-stream", "busy.2")
    assert [row["name"] for row in one] == ["busy.2"]
    table = cluster.orc("top", "busy.1", "-o", "pid,args").stdout.splitlines()
    assert table[0].split() == ["PID", "COMMAND"]
    assert len(table) == 2
    assert "while :; do :; done" in table[1]
    assert "column PID" in cluster.refused("top", "busy.1", "-o", "args")
