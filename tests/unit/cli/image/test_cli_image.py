# SPDX-License-Identifier: Apache-2.0
"""`orc build` and `orc load`: the stream that is sent, `.dockerignore`, progress, errors."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from scripted_manager import Refusal

from orchestrator.cli.app.contexts import save_context
from orchestrator.cli.image import build_context
from orchestrator.cli.image.build_context import is_ignored, parse_rules
from orchestrator.pb import control_pb2 as pb
from orchestrator.pb import images_pb2

Run = Callable[..., Result]
Refused = Callable[..., str]
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "sub" / "keep.log").write_text("keep")
    (root / "sub" / "drop.log").write_text("drop")
    (root / "sub" / "deep" / "data").write_bytes(os.urandom(600_000))
    (root / "link").symlink_to("run.sh")
    (root / "ümlaut").write_text("u")
    return root


def untar(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar.getmembers()}


def streamed(folder: Path, dockerfile: str = "Dockerfile") -> bytes:
    rules = build_context.read_rules(folder, folder / dockerfile)
    return b"".join(build_context.stream(folder, rules))


def names(folder: Path, dockerfile: str = "Dockerfile") -> set[str]:
    return set(untar(streamed(folder, dockerfile)))


def test_stream_is_the_folder(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
    pieces = list(build_context.stream(folder, []))
    data = b"".join(pieces)
    assert max(map(len, pieces)) <= build_context.CHUNK
    members = untar(data)
    assert set(members) == {
        "Dockerfile",
        "run.sh",
        "link",
        "sub",
        "sub/deep",
        "sub/deep/data",
        "sub/drop.log",
        "sub/keep.log",
        "ümlaut",
    }
    assert members["run.sh"].mode == 0o755
    assert members["link"].linkname == "run.sh"
    assert {(member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, "")}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        content = tar.extractfile("sub/deep/data")
        assert content is not None
        assert content.read() == (folder / "sub/deep/data").read_bytes()
    assert data == streamed(folder)


def test_dockerignore_leaves_out(folder: Path) -> None:
    (folder / ".dockerignore").write_text(
        "# rules\n\nDockerfile\n**/*.log\n!sub/keep.log\n/sub/deep/\n"
    )
    assert names(folder) == {
        ".dockerignore",
        "link",
        "run.sh",
        "sub",
        "sub/keep.log",
        "ümlaut",
    }


def test_reincluded_files_bring_their_folders(folder: Path) -> None:
    (folder / ".dockerignore").write_text("*\n!sub/deep\n")
    assert names(folder) == {"sub", "sub/deep", "sub/deep/data"}


def test_a_dockerfile_may_have_rules_of_its_own(folder: Path) -> None:
    (folder / ".dockerignore").write_text("*\n")
    (folder / "sub" / "Other.dockerignore").write_text("*\n!link\n")
    assert names(folder, "sub/Other") == {"link"}
    assert names(folder) == set()


@pytest.mark.parametrize(
    ("pattern", "path", "ignored"),
    [
        ("*.log", "a.log", True),
        ("*.log", "sub/a.log", False),
        ("*/a.log", "sub/a.log", True),
        ("**/a.log", "a.log", True),
        ("**/a.log", "x/y/a.log", True),
        ("sub", "sub/deep/x", True),
        ("./sub/", "sub/x", True),
        ("/sub", "sub", True),
        ("su?", "sub", True),
        ("su?", "su/b", False),
        ("[a-c]x", "bx", True),
        ("[^a]x", "ax", False),
        ("a.b", "axb", False),
        (r"a\*b", "a*b", True),
        (r"a\*b", "axb", False),
        ("sub/**", "sub/x/y", True),
        (".", "x", False),
        ("*\n!x", "x", False),
        ("*\n!x\nx", "x", True),
        ("sub\n!sub/x", "sub/x", False),
        ("sub\n!sub/x", "sub/y", True),
    ],
)
def test_dockerignore_rules(pattern: str, path: str, ignored: bool) -> None:
    assert is_ignored(path, parse_rules(pattern)) is ignored


def test_a_file_that_shrinks_does_not_break_the_stream(folder: Path) -> None:
    (folder / "zz-grows").write_bytes(b"x" * 1000)
    stream = build_context.stream(folder, [])
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if b"zz-grows" in piece[:100]:
            (folder / "zz-grows").write_bytes(b"x")
    assert untar(b"".join(pieces))["zz-grows"].size == 1000


# --- orc build


def image(*names: str) -> Any:
    return pb.ImageProgress(image={"id": DIGEST, "names": names, "size": 4_070_000})


def test_build(manager: Any, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_US", "here")
    manager.script.answers["BuildImage"] = [pb.ImageProgress(line="STEP 1"), image("hello:1")]
    words = ["--build-arg", "A=1", "--build-arg", "FROM_US", "--node", "node2", "--no-cache"]
    result = run("build", "-t", "hello:1", *words, str(folder))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "built hello:1 (abababababab, 4.07MB)\n"
    assert result.stderr == "STEP 1\n"
    header, *rest = manager.script.request("BuildImage")
    assert header.header == pb.ImageHeader(
        name="hello:1",
        node="node2",
        dockerfile="Dockerfile",
        dockerfile_content=b"FROM scratch\nCOPY . /\n",
        build_args={"A": "1", "FROM_US": "here"},
        no_cache=True,
        format="docker",
    )
    assert "sub/deep/data" in untar(b"".join(message.data for message in rest))
    quiet = run("build", "-q", "-t", "hello", str(folder))
    assert (quiet.stdout, quiet.stderr) == (DIGEST + "\n", "")
    assert manager.script.request("BuildImage")[0].header.name == "hello:latest"


def test_build_whose_node_is_lost_is_started_again(
    manager: Any, run: Run, refused: Callable[..., str], folder: Path
) -> None:
    """From the beginning; the node has the layers of the steps that were done."""
    lost = Refusal(grpc.StatusCode.UNAVAILABLE, "the connection to node node1 broke")
    uploads: list[list[Any]] = []

    def build(messages: list[Any]) -> Iterator[Any]:
        uploads.append(messages)
        yield pb.ImageProgress(line="STEP 1")
        yield lost if len(uploads) < losses else image("hello:1")

    manager.script.answers["BuildImage"] = build
    losses = 3
    result = run("build", "-t", "hello:1", str(folder))
    assert (result.exit_code, result.stdout[:14]) == (0, "built hello:1 ")
    again = "orc: the connection to node node1 broke (the build starts again)\n"
    assert result.stderr == f"STEP 1\n{again}STEP 1\n{again}STEP 1\n"
    assert uploads == [uploads[0]] * 3
    losses = 10
    uploads.clear()
    assert refused("build", "-q", str(folder)) == "the connection to node node1 broke"
    with (folder / "Dockerfile").open("rb") as archive:
        uploads.clear()
        # Standard input cannot be read again.
        assert refused("build", "-q", "-", input=archive) == "the connection to node node1 broke"
    assert len(uploads) == 1


def test_build_without_a_manager_is_refused_in_one_line(
    manager: Any, refused: Callable[..., str], folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    save_context(replace(manager.context, endpoints=(f"127.0.0.1:{port}",)))
    assert "cannot reach a manager" in refused("build", str(folder))


def test_the_limits_of_a_build(manager: Any, run: Run, folder: Path) -> None:
    manager.script.answers["BuildImage"] = [image("hello:1")]
    limits = ["-m", "1g", "--memory-swap", "-1", "--cpus", "1.5", "-c", "512", "--cpuset-cpus", "0"]
    more = ["--pids-limit", "-1", "--shm-size", "8m", "--ulimit", "nofile=1024", "--quiet"]
    assert run("build", "-t", "hello:1", *limits, *more, str(folder)).exit_code == 0
    assert manager.script.request("BuildImage")[0].header.limits == pb.BuildLimits(
        memory=1 << 30,
        memory_swap=-1,
        cpu_quota=150_000,
        cpu_shares=512,
        cpuset_cpus="0",
        pids=-1,
        shm_size=8 << 20,
        ulimits=["nofile=1024:1024"],
    )
    run("build", "-t", "hello:1", "--cpu-quota", "20000", "--cpu-period", "40000", str(folder))
    assert manager.script.request("BuildImage")[0].header.limits == pb.BuildLimits(
        cpu_quota=20_000, cpu_period=40_000
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--cpus", "1", "--cpu-quota", "5000"], "either these or --cpus"),
        (["--memory-swap", "1g"], "give --memory as well"),
        (["--memory", "1g", "--memory-swap", "512m"], "cannot be below --memory"),
        (["--ulimit", "speed=1"], "names no limit"),
        (["--cpuset-mems", "0"], "memory follows the CPUs"),
    ],
)
def test_contradictory_limits_of_a_build(
    run: Run, folder: Path, flags: list[str], words: str
) -> None:
    result = run("build", "-t", "hello:1", *flags, str(folder))
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_all_options_of_a_build(
    manager: Any, run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "t0ken")
    (tmp_path / "key").write_text("k3y")
    manager.script.answers["BuildImage"] = [image("a:1", "b:2")]
    words = [
        *("-t", "a:1", "-t", "b:2", "--target", "run", "--pull", "--label", "l=1"),
        *("--secret", f"id=key,src={tmp_path}/key", "--secret", "id=token,env=TOKEN"),
        *("--secret", "id=TOKEN", "--platform", "linux/arm64", "--format", "oci"),
        *("--network", "none", "--add-host", "x:192.0.2.1", "--add-host", "y=::1"),
        *("--iidfile", str(tmp_path / "id"), "--progress", "quiet"),
    ]
    result = run("build", *words, str(folder))
    assert (result.stdout, result.stderr) == ("built a:1, b:2 (abababababab, 4.07MB)\n", "")
    assert (tmp_path / "id").read_text() == DIGEST
    header = manager.script.request("BuildImage")[0].header
    assert header.secrets == {"key": b"k3y", "token": b"t0ken", "TOKEN": b"t0ken"}
    assert list(header.more_names) == ["b:2"]
    assert list(header.add_hosts) == ["x:192.0.2.1", "y:::1"]
    shown = (header.target, header.pull, header.platform, header.format, header.network)
    assert shown == ("run", True, "linux/arm64", "oci", "none")


def test_a_build_is_pushed_and_written(
    manager: Any, run: Run, refused: Refused, folder: Path, tmp_path: Path
) -> None:
    answers = manager.script.answers
    answers["BuildImage"] = answers["Push"] = [image("a:1")]
    result = run("build", "-t", "r.test/a:1", "-t", "r.test/b:2", "--push", str(folder))
    assert result.stdout.endswith("and pushed it\n")
    pushed = [request for name, request in manager.script.requests if name == "Push"]
    assert [request.name for request in pushed] == ["r.test/a:1", "r.test/b:2"]
    assert "name it with -t" in refused("build", "--push", str(folder), status=2)
    assert "name it with -t" in refused("build", "-o", "type=registry", str(folder), status=2)

    archive = tmp_path / "image.tar"
    data = [images_pb2.FileData(data=b"arch"), images_pb2.FileData(data=b"ive")]
    answers["Save"] = lambda request: iter(data)
    answers["Remove"] = images_pb2.RemoveImageReply()
    run("build", "-o", f"type=oci,dest={archive}", str(folder))
    assert archive.read_bytes() == b"archive"
    assert manager.script.request("Remove").image == DIGEST
    removed = len(manager.script.requests)
    run("build", "-t", "a:1", "-o", f"type=oci,dest={archive}", str(folder))
    assert "Remove" not in [name for name, _ in manager.script.requests[removed:]]


def test_a_build_on_a_node_that_has_its_cache(manager: Any, run: Run, folder: Path) -> None:
    answers = manager.script.answers
    answers["BuildImage"] = [image("a:1")]
    rows = [{"node": {"id": id, "state": state}} for id, state in NODE_STATES.items()]
    answers["ListNodes"] = pb.ListNodesReply(nodes=rows)
    answers["ListImages"] = pb.ListImagesReply(
        images=[{"id": DIGEST, "names": ["a:1"], "nodes": ["n1", "n2"]}]
    )
    run("build", "--cache-from", "a:1", str(folder))
    assert manager.script.request("BuildImage")[0].header.node == "n2"
    run("build", "--cache-from", "type=registry,ref=a:1", "--node", "n3", str(folder))
    assert manager.script.request("BuildImage")[0].header.node == "n3"
    result = run("build", "--cache-from", "none:1", str(folder))
    assert "no ready node has none:1" in result.stderr
    assert manager.script.request("BuildImage")[0].header.node == ""


NODE_STATES = {"n1": "NODE_DOWN", "n2": "NODE_READY", "n3": "NODE_READY"}


def test_a_build_from_stdin(manager: Any, run: Run, folder: Path) -> None:
    manager.script.answers["BuildImage"] = [image("a:1")]
    run("build", "-t", "a:1", "-", input=b"FROM scratch\n")
    header, *rest = manager.script.request("BuildImage")
    assert header.header.dockerfile_content == b"FROM scratch\n"
    assert untar(b"".join(message.data for message in rest)) == {}
    run("build", "-f", "-", str(folder), input=b"FROM other\n")
    header, *rest = manager.script.request("BuildImage")
    assert header.header.dockerfile_content == b"FROM other\n"
    assert "run.sh" in untar(b"".join(message.data for message in rest))
    run("build", "-f", "sub/Other", "-", input=streamed(folder))
    header, *rest = manager.script.request("BuildImage")
    assert (header.header.dockerfile, header.header.dockerfile_content) == ("sub/Other", b"")
    assert b"".join(message.data for message in rest) == streamed(folder)
    # A manager must know which images it names.
    for archive in (streamed(folder), gzip.compress(streamed(folder))):
        run("build", "-t", "a:1", "-", input=archive)
        header, *rest = manager.script.request("BuildImage")
        assert header.header.dockerfile_inside == (folder / "Dockerfile").read_bytes()
        assert b"".join(message.data for message in rest) == archive


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--ssh", "default"), "SSH keys are not forwarded; use --secret"),
        (("--secret", "src=x"), "is not id=ID,src=FILE"),
        (("--secret", "id=x,env=NO_SUCH"), "the environment has no NO_SUCH"),
        (("--secret", "id=x,src=/none"), "cannot read /none: no such file"),
        (("--add-host", "x"), "not of the form HOST:IP"),
        (("--add-host", "x:y"), "not of the form HOST:IP"),
        (("--platform", "linux/amd64,linux/arm64"), "one platform at a time"),
        (("--platform", "windows/amd64"), "is no platform"),
    ],
)
def test_invalid_options_of_a_build(
    manager: Any, run: Run, folder: Path, words: tuple[str, ...], line: str
) -> None:
    result = run("build", *words, str(folder))
    assert result.exit_code in (1, 2)
    assert line in result.stderr
    assert manager.script.requests == []


def test_build_errors(manager: Any, refused: Refused, folder: Path) -> None:
    assert "upper-case letters" in refused("build", "-t", "Hello", str(folder), status=2)
    assert "/none is not a folder" in refused("build", "-t", "a", "/none")
    assert "contexts of ftp:// are unknown" in refused("build", "ftp://git.example/app.git")
    assert "cannot download http://127.0.0.1:1/a.tar" in refused(
        "build", "http://127.0.0.1:1/a.tar"
    )
    assert "/none/D not found; write one" in refused(
        "build", "-t", "a", "-f", "/none/D", str(folder)
    )
    assert "build argument '=x' is not" in refused(
        "build", "-t", "a", "--build-arg", "=x", str(folder), status=2
    )
    (folder / ".dockerignore").write_text("[z-a]\n")
    assert (
        refused("build", "-t", "a", str(folder)) == ".dockerignore has the invalid pattern '[z-a]'"
    )
    (folder / "Dockerfile").write_text(" \n")
    assert refused("build", str(folder)) == "Dockerfile is empty; a Dockerfile begins with FROM"
    assert manager.script.requests == []


def test_failed_build(manager: Any, run: Run, folder: Path) -> None:
    line = "the build failed: step 2 exited with status 1"
    manager.script.answers["BuildImage"] = [
        pb.ImageProgress(line="STEP 2"),
        Refusal(grpc.StatusCode.FAILED_PRECONDITION, line),
    ]
    result = run("build", "-t", "a", str(folder))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"STEP 2\norc: {line}\n"


def test_a_file_that_cannot_be_read(
    manager: Any, refused: Refused, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanished(*_: Any, **more: Any) -> Any:
        yield b"x"
        raise FileNotFoundError(2, "No such file or directory", "sub/x")

    monkeypatch.setattr(build_context, "stream", vanished)
    manager.script.answers["BuildImage"] = [image()]
    line = refused("build", "-t", "a", str(folder))
    assert line == "cannot read sub/x: No such file or directory"


# --- orc load


def test_load_sends_the_archive(manager: Any, run: Run, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"x" * 600_000)
    manager.script.answers["LoadImage"] = [image("hello:1", "hello:2")]
    result = run("load", "-i", str(archive))
    assert result.stdout == "loaded hello:1, hello:2 (abababababab, 4.07MB)\n"
    header, *rest = manager.script.request("LoadImage")
    assert header.header == pb.ImageHeader()
    assert b"".join(message.data for message in rest) == archive.read_bytes()
    assert run("load", "-q", "-t", "x", str(archive)).stdout == DIGEST + "\n"
    assert manager.script.request("LoadImage")[0].header.name == "x:latest"
    assert run("load", input=b"piped").exit_code == 0
    assert manager.script.request("LoadImage")[1].data == b"piped"


def test_load_errors(manager: Any, refused: Refused, tmp_path: Path) -> None:
    assert refused("load", "/none.tar") == "cannot read /none.tar: no such file or directory"
    assert "the archive is given twice" in refused("load", "-i", "a", "b", status=2)
    line = "this is neither an OCI nor a Docker archive"
    manager.script.answers["LoadImage"] = [Refusal(grpc.StatusCode.INVALID_ARGUMENT, line)]
    assert refused("load", input=b"x") == line
    manager.script.answers["LoadImage"] = []
    assert "ended the upload without an image" in refused("load", input=b"x")


@pytest.mark.parametrize("command", [("image", "inspect"), ("inspect", "--type", "image")])
def test_every_missing_image_is_reported(manager: Any, run: Run, command: tuple[str, ...]) -> None:
    def answer(request: images_pb2.InspectImageRequest) -> Any:
        return Refusal(grpc.StatusCode.NOT_FOUND, f"no image '{request.image}'")

    manager.script.answers["Inspect"] = answer
    done = run(*command, "one:1", "two:1")
    assert (done.exit_code, done.stdout) == (1, "[]\n")
    assert done.stderr.splitlines() == ["orc: no image 'one:1'", "orc: no image 'two:1'"]
