# SPDX-License-Identifier: Apache-2.0
"""Manifests, indexes and configs, as facts."""

import json
from typing import Any

import pytest

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_spec import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    parse_config,
    parse_manifest,
)

DIGEST = "sha256:" + "ab" * 32
AMD = Platform("linux", "amd64")


def described(text: str) -> Descriptor:
    return Descriptor(DIGEST, 1, platform=Platform(*text.split("/")), name=text)


def config(**more: Any) -> bytes:
    return json.dumps({"rootfs": {"diff_ids": [DIGEST]}, **more}).encode()


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "",
    ],
)
def test_docker_and_oci_manifests_are_equivalent(kind: str) -> None:
    part = {"digest": DIGEST, "size": 7, "mediaType": "x"}
    data = {"schemaVersion": 2, "mediaType": kind, "config": part, "layers": [part, part]}
    parsed = parse_manifest(json.dumps(data).encode())
    assert isinstance(parsed, Manifest)
    assert parsed.config == Descriptor(DIGEST, 7, "x")
    assert len(parsed.layers) == 2


def test_an_index_lists_platforms_and_names() -> None:
    entry = {
        "digest": DIGEST,
        "size": 7,
        "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
        "annotations": {
            "org.opencontainers.image.ref.name": "1",
            "io.containerd.image.name": "docker.io/library/x:1",
        },
    }
    parsed = parse_manifest(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    assert isinstance(parsed, Index)
    assert str(parsed.manifests[0].platform) == "linux/arm/v7"
    assert parsed.manifests[0].name == "docker.io/library/x:1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"config":{},"layers":[]}',
        b'{"manifests":[{"digest":"sha256:../../x","size":1}]}',
        b'{"manifests":7}',
        b'{"schemaVersion":1,"fsLayers":[]}',
        json.dumps({"manifests": [{"digest": DIGEST, "size": -1}]}).encode(),
    ],
)
def test_malformed_manifests(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"manifest|is not a digest"):
        parse_manifest(data)


@pytest.mark.parametrize(
    ("there", "wanted", "chosen"),
    [
        (["linux/arm64", "linux/amd64"], AMD, "linux/amd64"),
        (["linux/amd64/v3", "linux/amd64"], AMD, "linux/amd64"),
        (["windows/amd64", "linux/amd64/v1"], AMD, "linux/amd64/v1"),
        (["linux/arm64/v8", "linux/amd64"], Platform("linux", "arm64"), "linux/arm64/v8"),
        (["linux/arm/v5", "linux/arm/v7"], Platform("linux", "arm", "v7"), "linux/arm/v7"),
        (["linux/arm/v7", "linux/arm/v6"], Platform("linux", "arm", "v6"), "linux/arm/v6"),
    ],
)
def test_choosing_the_nodes_platform(there: list[str], wanted: Platform, chosen: str) -> None:
    assert choose([described(t) for t in there], wanted).name == chosen


def test_the_error_for_a_missing_platform_lists_the_available_ones() -> None:
    there = [described(t) for t in ("linux/s390x", "linux/arm64", "unknown/unknown")]
    with pytest.raises(ImageError, match=r"linux/amd64: it has linux/arm64, linux/s390x$"):
        choose(there, AMD)


def test_process_defaults_of_a_config() -> None:
    process = {
        "Entrypoint": ["/bin/a"],
        "Cmd": None,
        "Env": ["A=1"],
        "User": "7:8",
        "WorkingDir": "/w",
        "StopSignal": "SIGINT",
        "Labels": {"k": "v"},
    }
    parsed = parse_config(
        config(config=process, architecture="amd64", os="linux", created="1970-01-01T00:01:00.5Z")
    )
    assert parsed.process.entrypoint == ("/bin/a",)
    assert parsed.process.command == ()
    assert parsed.process.env == ("A=1",)
    assert parsed.process.user == "7:8"
    assert parsed.process.workdir == "/w"
    assert parsed.process.stop_signal == "SIGINT"
    assert parsed.process.labels == {"k": "v"}
    assert parsed.created_at == 60.5
    assert parsed.platform == AMD


@pytest.mark.parametrize(
    ("created", "seconds"),
    [
        ("2024-05-06T07:08:09.123456789Z", 1714979289.123456),
        ("2024-05-06T07:08:09+02:00", 1714972089.0),
        ("0001-01-01T00:00:00Z", 0.0),
        (None, 0.0),
    ],
)
def test_creation_times(created: str | None, seconds: float) -> None:
    assert parse_config(config(created=created)).created_at == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "data",
    [b"{}", b'{"rootfs":{"diff_ids":["x"]}}', config(config={"Cmd": "sh"}), config(created="now")],
)
def test_malformed_configs(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_config(data)
