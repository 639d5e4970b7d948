# SPDX-License-Identifier: Apache-2.0
"""Build contexts by URL, fetched to a temporary folder of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cli.app.errors import CliError
from orchestrator.model.formats.build_contexts import DownloadedContext, GitContext, remote_context

_TIMEOUT = 60.0
"""Timeout of a server in seconds."""
_MAX_DOCKERFILE = 1 << 20
"""Maximum bytes of a download that is not an archive."""


@contextmanager
def context_folder(text: str) -> Iterator[Path]:
    """The folder that a context names: itself, or what its URL leads to, for as long as the block
    lasts. Raises CliError."""
    try:
        context = remote_context(text)
    except ValueError as error:
        raise CliError(str(error)) from None
    if context is None:
        yield Path(text)
        return
    with tempfile.TemporaryDirectory(prefix="orc-context-") as scratch:
        folder = Path(scratch, "context")
        folder.mkdir()
        if isinstance(context, GitContext):
            yield _cloned(context, folder)
        else:
            _download(context, folder, Path(scratch, "download"))
            yield folder


def _cloned(context: GitContext, folder: Path) -> Path:
    if shutil.which("git") is None:
        raise CliError(
            f"{context.url} is a Git repository: install git, or clone it and name the folder"
        )
    _git(folder, "init", "--quiet")
    _git(folder, "remote", "add", "--", "origin", context.url)
    ref = context.ref or "HEAD"
    try:
        _git(folder, "fetch", "--quiet", "--depth=1", "--", "origin", ref)
        wanted = "FETCH_HEAD"
    except CliError as error:
        # Not every server serves single commits or shallow clones.
        if _is_commit(ref):
            _git(folder, "fetch", "--quiet", "--", "origin", "+refs/*:refs/origin/*")
            wanted = ref
        elif "shallow" in str(error):
            _git(folder, "fetch", "--quiet", "--", "origin", ref)
            wanted = "FETCH_HEAD"
        else:
            raise
    _git(folder, "checkout", "--quiet", "--detach", wanted, "--")
    if (folder / ".gitmodules").exists():
        _git(folder, "submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
    shutil.rmtree(folder / ".git")
    inner = (folder / context.folder).resolve()
    if not inner.is_relative_to(folder.resolve()) or not inner.is_dir():
        raise CliError(f"{context.url} has no folder {context.folder} at {ref}")
    return inner


def _is_commit(ref: str) -> bool:
    return 7 <= len(ref) <= 64 and set(ref) <= set("0123456789abcdef")


def _git(folder: Path, *arguments: str) -> None:
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        environment.pop(variable, None)
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("fatal:")), "".join(lines[-1:]))
        raise CliError(f"git {arguments[0]}: {reason.removeprefix('fatal: ') or 'failed'}")


def _download(context: DownloadedContext, folder: Path, file: Path) -> None:
    """A tar archive is unpacked; anything else is a Dockerfile without a context."""
    try:
        with (
            urllib.request.urlopen(context.url, timeout=_TIMEOUT) as answer,
            file.open("wb") as out,
        ):
            shutil.copyfileobj(answer, out)
    except urllib.error.HTTPError as error:
        raise CliError(f"cannot download {context.url}: status {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise CliError(f"cannot download {context.url}: {reason}") from None
    try:
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="data")
        return
    except tarfile.ReadError:
        pass
    except (tarfile.TarError, OSError) as error:
        raise CliError(f"{context.url}: cannot unpack the archive: {error}") from None
    content = file.read_bytes() if file.stat().st_size <= _MAX_DOCKERFILE else b"\0"
    if b"\0" in content:
        raise CliError(
            f"{context.url} is neither a Dockerfile nor a tar archive (plain, gzip, bzip2 or xz)"
        )
    (folder / "Dockerfile").write_bytes(content)
