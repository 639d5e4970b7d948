# SPDX-License-Identifier: Apache-2.0
"""Build contexts from real Git and HTTP servers."""

from __future__ import annotations

import http.server
import io
import os
import signal
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.cli.app.errors import CliError
from orchestrator.cli.image.build_commands import _from_folder
from orchestrator.cli.image.remote_build_context import context_folder
from orchestrator.pb import control_pb2


def git(folder: Path, *arguments: str) -> str:
    identity = (
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.test",
        "-c",
        "init.defaultBranch=main",
    )
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with two commits, a tag on the first, a folder, and a link out of it."""
    folder, served = tmp_path / "work", tmp_path / "served" / "web.git"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "Dockerfile").write_text("FROM one\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    git(folder, "tag", "v1")
    (folder / "Dockerfile").write_text("FROM two\n")
    (folder / "inner").mkdir()
    (folder / "inner/Dockerfile").write_text("FROM inner\n")
    (folder / "out").mkdir()
    (folder / "out/Dockerfile").symlink_to("/etc/passwd")
    (folder / "away").symlink_to("/etc")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "two")
    git(folder, "clone", "--quiet", "--bare", ".", str(served))
    git(served, "update-server-info")
    return served


@pytest.fixture
def web(tmp_path: Path, repository: Path) -> Iterator[str]:
    """The URL of a plain web server, which knows nothing of Git."""
    (tmp_path / "served/Dockerfile").write_text("FROM text\n")
    (tmp_path / "served/binary").write_bytes(bytes(100))
    with tarfile.open(tmp_path / "served/context.tar.gz", "w:gz") as archive:
        for name, text in (("Dockerfile", b"FROM tar\n"), ("web/Dockerfile", b"FROM web\n")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    with tarfile.open(tmp_path / "served/evil.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../evil"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def daemon(tmp_path: Path, repository: Path) -> Iterator[str]:
    """The URL of Git's own server."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", "--verbose",
         f"--base-path={tmp_path / 'served'}", f"--port={port}"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert any("Ready to rumble" in line for line in process.stderr)
        yield f"git://127.0.0.1:{port}"
    finally:
        # `git daemon` is a child of `git`, which may end before it and leave it the pipe.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def dockerfile(context: str, file: str | None = None) -> bytes:
    header = control_pb2.ImageHeader()
    with context_folder(context) as folder:
        _from_folder(header, folder, file, remote=True)
        assert not (folder / ".git").exists()
    assert not folder.exists()
    return bytes(header.dockerfile_content)


@pytest.mark.parametrize("server", ["daemon", "web"])
def test_a_repository_at_a_branch_a_tag_a_commit_and_a_folder(
    server: str, repository: Path, request: pytest.FixtureRequest
) -> None:
    url = f"{request.getfixturevalue(server)}/web.git"
    first, second = git(repository, "log", "--format=%H").split()[::-1]
    assert dockerfile(url) == b"FROM two\n"
    assert dockerfile(f"{url}#main") == b"FROM two\n"
    assert dockerfile(f"{url}#v1") == b"FROM one\n"
    assert dockerfile(f"{url}#{first}") == b"FROM one\n"
    assert dockerfile(f"{url}#{second}:inner") == b"FROM inner\n"
    assert dockerfile(f"{url}#main:inner", "Dockerfile") == b"FROM inner\n"


def test_links_out_of_the_repository_are_not_read(daemon: str) -> None:
    for context, words in (
        (f"{daemon}/web.git#:out", "Dockerfile of the context is a link that leaves it"),
        (f"{daemon}/web.git#:away", "has no folder away"),
        (f"{daemon}/web.git#:lacking", "has no folder lacking"),
        (f"{daemon}/web.git#lacking", "git fetch: couldn't find remote ref lacking"),
        (f"{daemon}/lacking.git", "git fetch: "),
    ):
        with pytest.raises(CliError, match=words):
            dockerfile(context)
    with pytest.raises(CliError, match="passwd of the context is a link that leaves it"):
        dockerfile(f"{daemon}/web.git", "away/passwd")


def test_archives_and_dockerfiles_are_downloaded(web: str) -> None:
    assert dockerfile(f"{web}/context.tar.gz") == b"FROM tar\n"
    assert dockerfile(f"{web}/context.tar.gz", "web/Dockerfile") == b"FROM web\n"
    assert dockerfile(f"{web}/Dockerfile") == b"FROM text\n"
    for name, words in (
        ("evil.tar", "cannot unpack the archive"),
        ("binary", "neither a Dockerfile nor a tar archive"),
        ("lacking.tar", "cannot download .*404"),
    ):
        with pytest.raises(CliError, match=words):
            dockerfile(f"{web}/{name}")


def test_missing_git_is_an_error_with_a_hint(daemon: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CliError, match="is a Git repository: install git"):
        dockerfile(f"{daemon}/web.git")
