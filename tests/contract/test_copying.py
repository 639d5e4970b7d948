"""The copying program in the root of a container that does not run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from orchestrator import bareprogram

pytestmark = pytest.mark.root


def program(words: dict[str, object], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*bareprogram.command("orchestrator.agent.copier"), json.dumps(words)],
        input=data,
        capture_output=True,
    )


def test_files_of_a_stopped_container(tmp_path: Path) -> None:
    place: dict[str, object] = {"layers": [str(tmp_path / "low"), str(tmp_path / "high")]}
    for name in ("low/etc", "high", "upper", "work", "root"):
        (tmp_path / name).mkdir(parents=True)
    place |= {name: str(tmp_path / name) for name in ("upper", "work", "root")}
    (tmp_path / "low/etc/a").write_text("low")
    (tmp_path / "low/etc/b").write_text("b")
    (tmp_path / "high/etc").mkdir()
    (tmp_path / "high/etc/a").write_text("high")
    (tmp_path / "secret").write_text("the host's")
    (tmp_path / "upper/link").symlink_to(tmp_path / "secret")
    packed = program({**place, "verb": "pack", "path": "etc", "follow": False})
    assert packed.stderr == b""
    head, _, tar = packed.stdout.partition(b"\n")
    assert json.loads(head) == {"top": "etc", "folder": True}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert sorted(archive.getnames()) == ["etc", "etc/a", "etc/b"]
        content = archive.extractfile("etc/a")
        assert content is not None
        assert content.read() == b"high"
    words = {"verb": "unpack", "path": "/new", "top": "etc", "folder": True, "owner": [7, 8]}
    done = program({**place, **words}, tar)
    assert (done.returncode, done.stderr) == (0, b"")
    status = (tmp_path / "upper/new/b").stat()
    assert (status.st_uid, status.st_gid) == (7, 8)
    refused = program({**place, "verb": "pack", "path": "link", "follow": True})
    assert refused.returncode == 1
    assert b"no such file" in refused.stderr
    # The mount was the program's own.
    assert os.listdir(tmp_path / "root") == []
