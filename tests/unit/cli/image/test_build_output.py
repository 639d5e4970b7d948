# SPDX-License-Identifier: Apache-2.0
"""What a build writes on the client's side: forms of `--output`, and layers as one tree."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import click
import pytest

from orchestrator.cli.image.build_output import (
    Output,
    flatten,
    is_stored,
    parse_output,
    write_outputs,
)
from orchestrator.pb import images_pb2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out", Output("local", "out")),
        ("-", Output("tar", "-")),
        ("type=local,dest=out", Output("local", "out")),
        ("type=tar,dest=a.tar", Output("tar", "a.tar")),
        ("type=oci,dest=a.tar", Output("oci", "a.tar")),
        ("type=docker", Output("docker", "-")),
        ("type=image,push=true", Output("image", push=True)),
        ("type=registry", Output("registry", push=True)),
    ],
)
def test_output_syntax_of_docker(text: str, expected: Output) -> None:
    assert parse_output(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type=zip,dest=a", "the type 'zip' is unknown; known are local, tar"),
        ("dest=a", "the type '' is unknown"),
        ("type=local", "needs a destination, dest=DIR"),
        ("type=local,dest=-", "a folder cannot go to stdout"),
        ("type=tar,dest=a,push=true", "push goes with type=image"),
        ("type=tar,dest=a,compression=zstd", "compression is unknown"),
    ],
)
def test_invalid_output_syntax(text: str, words: str) -> None:
    with pytest.raises(click.UsageError, match=words):
        parse_output(text)


def test_image_built_for_an_output_is_not_kept_in_the_cluster() -> None:
    assert is_stored([])
    assert is_stored([Output("tar", "a"), Output("registry", push=True)])
    assert not is_stored([Output("tar", "a"), Output("local", "b")])


def layer(*entries: tuple[str, str | bytes | None], links: dict[str, str] | None = None) -> bytes:
    """A layer: text is a symbolic link's, bytes a file's, None a folder; `links` are hard ones."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            else:
                entry.size, entry.uid = len(content), 7
            tar.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.LNKTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


LAYERS = (
    layer(
        ("etc/", None),
        ("etc/kept", b"kept"),
        ("etc/changed", b"old"),
        ("etc/removed", b"gone"),
        ("gone/", None),
        ("gone/inner/", None),
        ("gone/inner/file", b"gone"),
        ("emptied/", None),
        ("emptied/old", b"old"),
        ("becomes-file/", None),
        ("becomes-file/inner", b"gone"),
        ("becomes-folder", b"gone"),
        ("original", b"shared"),
        links={"second": "original"},
    ),
    layer(
        ("./etc/changed", b"new"),
        ("etc/.wh.removed", b""),
        (".wh.gone", b""),
        ("emptied/", None),
        ("emptied/.wh..wh..opq", b""),
        ("emptied/new", b"new"),
        ("becomes-file", b"file"),
        ("becomes-folder/", None),
        ("becomes-folder/inner", b"inner"),
        ("original", b"replaced"),
        ("link", "/etc/kept"),
    ),
    layer(("gone/", None), ("gone/again", b"again")),
)


def saved() -> bytes:
    """An archive as `orc save` writes it, of an image with these layers, some compressed."""
    buffer = io.BytesIO()
    names = [f"blobs/{number}" for number in range(len(LAYERS))]
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        contents = [LAYERS[0], *(gzip.compress(layer, mtime=0) for layer in LAYERS[1:])]
        manifest = json.dumps([{"Layers": names}]).encode()
        for name, content in [*zip(names, contents, strict=True), ("manifest.json", manifest)]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


TREE = {
    "etc": None,
    "etc/kept": b"kept",
    "etc/changed": b"new",
    "emptied": None,
    "emptied/new": b"new",
    "becomes-file": b"file",
    "becomes-folder": None,
    "becomes-folder/inner": b"inner",
    "original": b"replaced",
    "second": b"shared",
    "link": "/etc/kept",
    "gone": None,
    "gone/again": b"again",
}


def test_flattened_layers_equal_the_tree_in_a_container() -> None:
    target = io.BytesIO()
    flatten(io.BytesIO(saved()), target)
    found: dict[str, Any] = {}
    with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as tar:
        for entry in tar:
            assert entry.name not in found
            file = tar.extractfile(entry) if entry.isreg() else None
            found[entry.name] = file.read() if file else entry.linkname or None
            assert entry.uid == (7 if entry.isreg() else 0)
    assert found == TREE


class FakeClient:
    def stream(self, method: str, request: Any) -> Any:
        assert method == "Images.Save"
        data = saved()
        for start in range(0, len(data), 1000):
            yield images_pb2.FileData(data=data[start : start + 1000])


def test_outputs_are_written(tmp_path: Path) -> None:
    outputs = [
        Output("local", str(tmp_path / "files")),
        Output("tar", str(tmp_path / "files.tar")),
        Output("oci", str(tmp_path / "image.tar")),
    ]
    write_outputs(FakeClient(), "a", outputs, quiet=True)  # type: ignore[arg-type]
    for path, content in TREE.items():
        file = tmp_path / "files" / path
        if isinstance(content, str):
            assert str(file.readlink()) == content
        else:
            assert (file.read_bytes() if content is not None else None) == content
    with tarfile.open(tmp_path / "files.tar") as tar:
        assert set(tar.getnames()) == set(TREE)
    assert (tmp_path / "image.tar").read_bytes() == saved()
    assert {path.name for path in tmp_path.iterdir()} == {"files", "files.tar", "image.tar"}
