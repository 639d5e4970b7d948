# SPDX-License-Identifier: Apache-2.0
"""A real registry (Debian's docker-registry) on loopback, and an image to push to it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agent.images.transfer.layout import make_dir_layout
from tests.freeports import free_ports


def take_insecure(home: Path, *registries: str) -> None:
    """Make skopeo, with this home, speak to registries without TLS."""
    folder = home / ".config" / "containers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "registries.conf").write_text(
        "".join(f'[[registry]]\nlocation = "{name}"\ninsecure = true\n' for name in registries)
    )


@contextmanager
def registry_in(folder: Path, htpasswd: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Serve one for the length of the block, in which it is HOME's insecure one: the name of an
    image in it, and its access log. `htpasswd`: who may do anything with it; else everybody."""
    port = free_ports()
    config, log, home = folder / "registry.yml", folder / "registry.log", folder / "home"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: false}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
        + (f"auth: {{htpasswd: {{realm: r, path: {htpasswd}}}}}\n" if htpasswd else "")
    )
    take_insecure(home, f"127.0.0.1:{port}")
    before = os.environ.get("HOME", "/root")
    os.environ["HOME"] = str(home)
    with log.open("w") as out:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        _await_port(port, process)
        yield f"127.0.0.1:{port}/web:1", log
    finally:
        os.environ["HOME"] = before
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None
            assert time.monotonic() < deadline


def layout_of(tmp_path: Path, size: int, docker: bool = False) -> Path:
    """An image of one layer, laid out as it is pushed."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    source = tmp_path / "files"
    source.mkdir()
    (source / "data").write_bytes(os.urandom(size))
    subprocess.run(["tar", "-cf", tmp_path / "l.tar", "-C", source, "."], check=True)
    layer = (tmp_path / "l.tar").read_bytes()
    kinds = {name: f"application/vnd.oci.image.{name}.v1" for name in ("manifest", "config")}
    kinds = {name: f"{kind}+json" for name, kind in kinds.items()}
    kinds["layer"] = "application/vnd.oci.image.layer.v1.tar"
    if docker:
        kinds["manifest"] = "application/vnd.docker.distribution.manifest.v2+json"
        kinds["config"] = "application/vnd.docker.container.image.v1+json"
        kinds["layer"] = "application/vnd.docker.image.rootfs.diff.tar"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": kinds["manifest"],
        "config": blob(json.dumps(config).encode(), kinds["config"]),
        "layers": [blob(layer, kinds["layer"])],
    }
    digest = str(blob(json.dumps(manifest).encode(), "")["digest"])
    make_dir_layout(tmp_path / "layout", blobs / digest.removeprefix("sha256:"))
    return tmp_path / "layout"
