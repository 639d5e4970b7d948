# SPDX-License-Identifier: Apache-2.0
"""The client's side of terminals, copies and figures, as far as it needs no container."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import copying
from orchestrator.cli.app.errors import ManagerLost, Refused
from orchestrator.cli.container.foreground import foreground
from orchestrator.cli.container.interactive_session import Session
from orchestrator.cli.container.terminal import DETACH_KEYS, DetachKeys, parse_keys
from orchestrator.cli.rpc.client import Client
from orchestrator.cli.top.stats_command import Sample, samples
from orchestrator.model.states import TaskState
from orchestrator.pb import containers_pb2, interact_pb2


def test_key_syntax() -> None:
    assert parse_keys(DETACH_KEYS) == b"\x10\x11"
    assert parse_keys("ctrl-@,a,ctrl-[,ctrl-_") == b"\x00a\x1b\x1f"
    assert parse_keys("") == b""
    for wrong in ("ctrl-", "ctrl-!", "ab", "ctrl-p ctrl-q"):
        with pytest.raises(ValueError, match="is not a key"):
            parse_keys(wrong)


def test_partial_key_sequence_is_held_back() -> None:
    keys = DetachKeys(b"\x10\x11")
    assert keys.feed(b"ab\x10") == (b"ab", False)
    assert keys.feed(b"c") == (b"\x10c", False)
    assert keys.feed(b"\x10\x10") == (b"\x10", False)
    assert keys.feed(b"\x11rest") == (b"", True)
    assert DetachKeys(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


@given(st.binary(max_size=8).map(lambda b: bytes(c % 3 for c in b)), st.integers(1, 3), st.data())
def test_no_key_is_lost_and_no_sequence_missed(
    typed: bytes, length: int, data: st.DataObject
) -> None:
    sequence = bytes(data.draw(st.integers(0, 2)) for _ in range(length))
    keys, passed, detached = DetachKeys(sequence), b"", False
    for byte in typed:
        part, detached = keys.feed(bytes([byte]))
        passed += part
        if detached:
            break
    assert detached == (sequence in typed)
    if detached:
        assert passed == typed[: typed.index(sequence)]
    else:
        # All but what may still become the sequence.
        assert typed.startswith(passed)
        assert sequence.startswith(typed[len(passed) :])


def packed(path: Path, name: str = "") -> io.BytesIO:
    place, top, _ = copying.source(f"{path}{name}", False)
    out = io.BytesIO()
    copying.pack(place, top, out)
    return io.BytesIO(out.getvalue())


def test_copy_target_follows_docker(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("a")
    existing = tmp_path / "existing"
    existing.mkdir()
    file = tmp_path / "file"
    file.write_text("")
    assert copying.target(str(existing), "tree", True) == (str(existing), "tree")
    assert copying.target(str(tmp_path / "new"), "tree", True) == (str(tmp_path), "new")
    assert copying.target(str(file), "a", False) == (str(tmp_path), "file")
    for path, folder in ((file, True), (tmp_path / "no/where", True), (f"{tmp_path}/new/", False)):
        with pytest.raises(copying.CopyError):
            copying.target(str(path), "tree", folder)
    with pytest.raises(copying.CopyError):
        copying.target(str(tmp_path / "new"), "", False)
    owner = copying.Owner(keep=False)
    copying.unpack(packed(tree, "/."), str(tmp_path), ".", "new", owner)
    copying.unpack(packed(tree), str(existing), "tree", "other", owner)
    assert (tmp_path / "new/a").read_text() == (existing / "other/a").read_text() == "a"


def test_extraction_never_follows_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "way").symlink_to(outside)
    for name in ("way/planted", "../planted", "x/../../planted"):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        data.seek(0)
        with pytest.raises(copying.CopyError):
            copying.unpack(data, str(inside), "", "", copying.Owner(keep=False))
    assert os.listdir(outside) == []
    assert sorted(os.listdir(tmp_path)) == ["inside", "outside"]


def figures(task: str, at: float, cpu: float) -> interact_pb2.ContainerStats:
    return interact_pb2.ContainerStats(
        task_id=task,
        name=f"{task}.1",
        at=at,
        cpu=int(cpu * 1e9),
        memory=1 << 20,
        memory_limit=4 << 20,
    )


def test_rates_need_two_samples_and_silent_nodes_do_not_block() -> None:
    picture = Sample()
    picture.take(interact_pb2.NodeStats(node="n1", containers=[figures("a", 10.0, 1.0)]))
    assert not picture.complete(2, 0.0)
    picture.take(interact_pb2.NodeStats(node="n1", containers=[figures("a", 12.0, 2.0)]))
    assert picture.take(interact_pb2.NodeStats(node="n2", notice="n2 is away")) == "n2 is away"
    assert picture.complete(2, 0.0)
    (row,) = picture.rows()
    assert (row["node"], row["cpu_percent"], row["memory_percent"]) == ("n1", 50.0, 25.0)
    picture.take(interact_pb2.NodeStats(node="n2"))
    assert not picture.complete(3, 0.0), "a node that is back is counted once"


def test_first_sample_is_shown_when_complete() -> None:
    class Manager:
        """Its nodes are all away, and it has nothing more to say of them."""

        def stream(self, method: str, request: object) -> Iterator[interact_pb2.NodeStats]:
            for node in ("n1", "n2"):
                yield interact_pb2.NodeStats(node=node, nodes=2, notice=f"{node} is away")
            raise AssertionError("more was waited for")

    said: list[str] = []
    assert next(samples(cast(Client, Manager()), (), said.append)) == []
    assert said == ["n1 is away", "n2 is away"]


@pytest.mark.parametrize("attached", [False, True])
def test_lost_session_prints_how_to_reattach(attached: bool) -> None:
    class Breaking:
        has_alternatives = False

        def stream(self, method: str, request: Any, **_: Any) -> Iterator[Any]:
            if method == "Containers.WatchContainer":
                row = containers_pb2.ContainerRow()
                row.task.container_name = "box"
                row.task.status.state = TaskState.READY
                yield row
                return
            if attached:
                yield interact_pb2.SessionOutput(attached=interact_pb2.Attached())
            raise ManagerLost("the connection to node node1 broke")

        def call(self, method: str, request: Any) -> None:
            assert method == "Containers.StartContainer"

    with pytest.raises(ManagerLost) as lost:
        foreground(
            cast(Client, Breaking()), "c1", stdin=False, tty=False, keys=b"", sig_proxy=False
        )
    way = " ('orc attach box' attaches to the container again)" if attached else ""
    assert lost.value.message == f"the connection to node node1 broke{way}"


@pytest.mark.parametrize("ended", [False, True])
def test_container_is_attached_to_again_when_its_manager_is_lost(
    ended: bool, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    class Moving:
        has_alternatives = True
        sessions = 0

        def stream(self, method: str, request: Any, **_: Any) -> Iterator[Any]:
            row = containers_pb2.ContainerRow()
            row.task.status.state = TaskState.READY
            if method == "Containers.WatchContainer":
                yield row
                row.task.status.state, row.task.status.exit_code = TaskState.FAILED, 7
                yield row
                return
            self.sessions += 1
            assert next(request).attach.container == "box"
            if ended and self.sessions > 1:
                raise Refused("container 'box' is not running")
            yield interact_pb2.SessionOutput(attached=interact_pb2.Attached())
            if self.sessions == 1:
                yield interact_pb2.SessionOutput(stdout=b"one ")
                raise ManagerLost("the connection broke")
            yield interact_pb2.SessionOutput(stdout=b"two")
            yield interact_pb2.SessionOutput(exited=interact_pb2.Exited(code=7))

        def call(self, method: str, request: Any) -> None:
            assert method == "Containers.StartContainer"
            assert self.sessions == 1, "it is started once"

    client = cast(Client, Moving())
    status = foreground(client, "box", stdin=False, tty=False, keys=b"", sig_proxy=False)
    assert status == 7
    written = capfdbinary.readouterr()
    assert written.out == (b"one " if ended else b"one two")
    assert (b"attached again" in written.err) is not ended


class Resuming:
    """Two managers; the first ends after some output, and the second has read some of the input."""

    has_alternatives = True

    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal
        self.sessions = 0

    def stream(self, method: str, request: Any, **_: Any) -> Iterator[Any]:
        self.sessions += 1
        first = next(request)
        if self.sessions == 1:
            self.id = first.exec.session
            yield output(attached=attached())
            assert next(request).stdin == b"input"
            assert next(request).eof
            yield output(stdout=b"one ")
            raise ManagerLost("the connection broke")
        resume = first.resume
        assert (resume.session, resume.container, resume.received) == (self.id, "task-id", 4)
        if self.refusal:
            raise Refused(self.refusal)
        yield output(attached=attached(stdin_received=2))
        assert next(request).stdin == b"put"
        assert next(request).eof
        yield output(stdout=b"two")
        yield output(exited=interact_pb2.Exited(code=7))


def output(**message: Any) -> interact_pb2.SessionOutput:
    return interact_pb2.SessionOutput(**message)


def attached(**more: Any) -> interact_pb2.Attached:
    return interact_pb2.Attached(
        stdin=True, stdin_window=1 << 18, resumable=True, container="task-id", **more
    )


@pytest.fixture
def piped() -> Iterator[None]:
    """Standard input with some bytes."""
    before = os.dup(0)
    end, other = os.pipe()
    os.write(other, b"input")
    os.close(other)
    os.dup2(end, 0)
    yield
    os.dup2(before, 0)
    for descriptor in (before, end):
        os.close(descriptor)


def execute(client: Resuming) -> Session:
    request = interact_pb2.ExecRequest(container="box", command=["cat"], stdin=True)
    return Session(cast(Client, client), request, stdin=True, keys=b"")


@pytest.mark.usefixtures("piped")
def test_exec_is_resumed_without_a_gap(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert execute(Resuming()).run() == 7
    written = capfdbinary.readouterr()
    assert (written.out, written.err) == (b"one two", b"")


@pytest.mark.usefixtures("piped")
def test_exec_that_has_ended_on_its_node_is_lost(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    client = Resuming("the session has ended on its node")
    said = "the connection broke, and the session has ended on its node"
    with pytest.raises(ManagerLost, match=said):
        execute(client).run()
    assert client.sessions == 2
